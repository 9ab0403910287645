"""Sketched SO against exact SO, and against float64 autograd through a formed Gram matrix with the same vectors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_orthossl.regularization import OrthogonalityRegularizer, get_penalty

so = get_penalty("so")()


def sketched_so(W, probes=16, vectors=None, generator=None):
    return get_penalty("sketched_so")(probes)(W, vectors, generator)


SHAPES = [(40, 16), (16, 40), (12, 12), (7, 1), (1, 7), (130, 90), (3, 30, 20), (2, 2, 5, 9)]


def weights(shape, seed=0, dtype=torch.float64):
    scale = max(shape[-2:]) ** -0.5
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return W.to(dtype).requires_grad_()


def normal_vectors(W, probes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*W.shape[:-2], probes, min(W.shape[-2:]), generator=generator, dtype=torch.float64)


def reference(W, vectors):
    G = W.mT @ W if W.shape[-2] > W.shape[-1] else W @ W.mT
    residuals = (G - torch.eye(G.shape[-1], dtype=W.dtype)) @ vectors.mT
    return residuals.square().sum(-2).mean(-1)


def gradient(values, W):
    factors = torch.arange(1, values.numel() + 1, dtype=values.dtype).view(values.shape)
    return torch.autograd.grad((values * factors).sum(), W)[0]


def assert_same(W, probes, seed=1):
    vectors = normal_vectors(W, probes, seed)
    ours, expected = sketched_so(W, probes, vectors), reference(W, vectors)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient(ours, W), gradient(expected, W), rtol=1e-10, atol=1e-10)


def all_signs(n):
    return torch.tensor(list(itertools.product((1.0, -1.0), repeat=n)), dtype=torch.float64)


@pytest.mark.parametrize("probes", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_equal_autograd(shape, probes):
    assert_same(weights(shape), probes)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    probes=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_shape(batch, rows, columns, probes, seed):
    assert_same(weights((batch, rows, columns), seed), probes, seed)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_over_all_signs_it_is_so_with_the_stated_variance(shape):
    """Every vector of signs is as probable: their mean is the expectation, to the last digits."""
    W = weights(shape)
    signs = all_signs(min(shape))
    torch.testing.assert_close(sketched_so(W, len(signs), signs), so(W), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(sketched_so(W, len(signs), signs), W), gradient(so(W), W))
    W = W.detach()
    each = torch.stack([sketched_so(W, 1, sign[None]) for sign in signs])
    G = min(W @ W.T, W.T @ W, key=len)
    A = (G - torch.eye(len(G))) @ (G - torch.eye(len(G)))
    variance = 2 * (A.square().sum() - A.diagonal().square().sum())
    torch.testing.assert_close(each.var(correction=0), variance)


@pytest.mark.parametrize("probes", [1, 8])
def test_what_is_drawn_for_a_model_is_unbiased(probes):
    """Value, and gradient in some direction, of 400 draws: their mean within four standard errors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(9, 20)).double()
    exact = OrthogonalityRegularizer(model)
    sketched = OrthogonalityRegularizer(model, "sketched_so", probes=probes)
    directions = [(p, torch.randn_like(p)) for p in model.parameters()]

    def measured(regularizer, generator=None):
        model.zero_grad()
        value = regularizer(generator)
        value.backward()
        slope = sum((p.grad * d).sum() for p, d in directions if p.grad is not None)
        return torch.stack([value.detach(), slope])

    expected = measured(exact)
    draws = torch.stack([measured(sketched, torch.Generator().manual_seed(seed)) for seed in range(400)])
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 0).all()
    assert ((draws.mean(0) - expected).abs() < 4 * error).all()


def test_more_probes_come_closer():
    W = weights((60, 50)).detach()
    generator = torch.Generator().manual_seed(0)
    spreads = []
    for probes in (1, 16):
        spreads.append(torch.stack([sketched_so(W, probes, generator=generator) for _ in range(300)]).std())
    assert spreads[1] == pytest.approx(spreads[0] / 4, rel=0.25)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6), (2, 7, 3)])
def test_orthonormal_matrices_have_penalty_and_gradient_zero(shape):
    W = weights(shape).detach()
    Q = torch.linalg.qr(W if shape[-2] >= shape[-1] else W.mT)[0]
    W = (Q if shape[-2] >= shape[-1] else Q.mT).requires_grad_()
    value = sketched_so(W)
    assert (value < 1e-25).all()
    assert (gradient(value, W).abs() < 1e-12).all()
    identity = torch.eye(*shape[-2:]).requires_grad_()
    value = sketched_so(identity)
    value.backward()
    assert value == 0
    assert torch.equal(identity.grad, torch.zeros(shape[-2:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_float32_under_autocast_and_for_half_weights(dtype):
    W = weights((400, 300), dtype=dtype)
    exact = W.detach().double().requires_grad_()
    vectors = normal_vectors(W, 4)
    oracle = reference(exact, vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = sketched_so(W, 4, vectors)
        value.backward()
    assert value.dtype == torch.float32
    assert W.grad.dtype == dtype
    torch.testing.assert_close(value.double(), oracle.detach(), rtol=1e-5, atol=0)
    expected = gradient(oracle, exact)
    relative = (W.grad.double() - expected).norm() / expected.norm()
    assert relative < (1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
def test_gradient_has_the_memory_order_of_the_weight(shape, transposed):
    parameter = weights(shape[::-1] if transposed else shape)
    W = parameter.mT if transposed else parameter
    assert torch.autograd.grad(sketched_so(W), parameter)[0].is_contiguous()


def test_gradcheck_and_no_second_derivative():
    W = weights((5, 4))
    vectors = normal_vectors(W, 3)
    assert torch.autograd.gradcheck(lambda w: sketched_so(w, 3, vectors), W)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(sketched_so(W), W, create_graph=True)


def test_generator_decides_the_signs():
    W = weights((9, 5))
    first, again, other = (sketched_so(W, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_bad_input():
    W = weights((4, 3))
    with pytest.raises(ValueError, match="batch of matrices"):
        sketched_so(torch.ones(3))
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        sketched_so(W, 0)
    with pytest.raises(ValueError, match=r"vectors has shape \(2, 4\).*need \(2, 3\)"):
        sketched_so(W, 2, torch.ones(2, 4))
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        OrthogonalityRegularizer(nn.Linear(3, 3), "sketched_so", probes=0)
