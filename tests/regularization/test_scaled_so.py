"""Scaled SO against its formula in float64, and what it promises: zero when all eigenvalues are equal, no scale."""

import pytest
import torch

from hf_orthossl.regularization import get_penalty

SHAPES = [(40, 16), (16, 40), (12, 12), (7, 1), (1, 7), (300, 200), (3, 30, 20), (2, 2, 5, 9)]
scaled_so = get_penalty("scaled_so")()


def weights(shape, dtype=torch.float64):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (W * max(shape[-2:]) ** -0.5).to(dtype).requires_grad_()


def by_formula(W):
    """n²·‖G‖²/tr(G)² − n, through the formed Gram matrix."""
    G = W.mT @ W if W.shape[-2] > W.shape[-1] else W @ W.mT
    n = G.shape[-1]
    return n**2 * (G**2).sum((-2, -1)) / G.diagonal(dim1=-2, dim2=-1).sum(-1) ** 2 - n


def gradient(values, W):
    factors = torch.arange(1, values.numel() + 1, dtype=values.dtype).view(values.shape)
    return torch.autograd.grad((values * factors).sum(), W)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_equal_the_formula(shape):
    W = weights(shape)
    ours, expected = scaled_so(W), by_formula(W)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient(ours, W), gradient(expected, W), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_under_autocast_and_for_half_weights(dtype):
    W = weights((40, 30), dtype)
    exact = W.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = scaled_so(W)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), by_formula(exact).detach(), rtol=1e-5, atol=0)
    expected = gradient(by_formula(exact), exact)
    error = (gradient(value, W).double() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [1e-25, 1e-3, -7.0, 1e12])
def test_the_scale_of_a_matrix_does_not_matter(scale):
    W = weights((20, 30), torch.float32)
    scaled = (W.detach() * scale).requires_grad_()
    torch.testing.assert_close(scaled_so(scaled), scaled_so(W), rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient(scaled_so(scaled), scaled) * scale, gradient(scaled_so(W), W))


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_zero_exactly_when_all_eigenvalues_are_equal(shape):
    Q = torch.linalg.qr(weights(shape).detach() if shape[0] >= shape[1] else weights(shape).detach().T)[0]
    Q = (Q if shape[0] >= shape[1] else Q.T).contiguous()
    W = (0.01 * Q).requires_grad_()
    assert scaled_so(W) < 1e-25
    assert gradient(scaled_so(W), W).norm() < 1e-10
    unequal = Q.clone()
    unequal[:, 0] *= 1.1
    assert scaled_so(unequal) > 1e-3


def test_a_zero_matrix_has_penalty_and_gradient_zero():
    W = torch.stack([torch.zeros(4, 6), weights((4, 6), torch.float32).detach()]).requires_grad_()
    values = scaled_so(W)
    assert values[0] == 0
    torch.testing.assert_close(values[1].double(), by_formula(W[1].detach().double()))
    assert torch.equal(gradient(values, W)[0], torch.zeros(4, 6))
    assert gradient(scaled_so(W), W)[1].norm() > 0


def test_descending_it_equalizes_the_singular_values_and_keeps_the_scale():
    W = weights((12, 8))
    optimizer = torch.optim.SGD([W], lr=0.02)
    norm = W.detach().norm().item()
    for _ in range(400):
        optimizer.zero_grad()
        scaled_so(W).backward()
        optimizer.step()
    singular = torch.linalg.svdvals(W.detach())
    torch.testing.assert_close(singular, singular.mean().expand(8), rtol=1e-3, atol=0)
    assert W.detach().norm().item() == pytest.approx(norm, rel=0.2)
