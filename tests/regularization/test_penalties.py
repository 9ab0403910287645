"""Penalties and their gradients against float64 autograd through formed Gram matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_orthossl.regularization import get_penalty

so, dso, mc = (get_penalty(name)() for name in ("so", "dso", "mc"))


def srip(W, iterations=2, start=None, generator=None):
    return get_penalty("srip")(iterations)(W, None if start is None else start.unsqueeze(-2), generator)


SHAPES = [(40, 16), (16, 40), (12, 12), (7, 1), (1, 7), (300, 200), (200, 300), (3, 30, 20), (2, 2, 5, 9)]


def excess(W):
    """G − I of the smaller side, by the definition."""
    G = W.mT @ W if W.shape[-2] > W.shape[-1] else W @ W.mT
    return G - torch.eye(G.shape[-1], dtype=W.dtype)


def reference_so(W):
    return (excess(W) ** 2).sum((-2, -1))


def reference_dso(W):
    eye = [torch.eye(n, dtype=W.dtype) for n in W.shape[-2:]]
    return ((W.mT @ W - eye[1]) ** 2).sum((-2, -1)) + ((W @ W.mT - eye[0]) ** 2).sum((-2, -1))


def reference_mc(W):
    return excess(W).abs().amax((-2, -1))


def reference_srip(W, iterations, start):
    E, x = excess(W), start.unsqueeze(-1)
    for _ in range(iterations):
        previous, x = x, E @ x
    return (x.norm(dim=(-2, -1))) / previous.norm(dim=(-2, -1))


def weights(shape, seed=0, dtype=torch.float64):
    scale = max(shape[-2:]) ** -0.5
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return W.to(dtype).requires_grad_()


def starts(W, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*W.shape[:-2], min(W.shape[-2:]), generator=generator, dtype=W.dtype)


def assert_same(ours, reference, W, tolerance=1e-10):
    torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)
    weight_of_each = torch.arange(1, ours.numel() + 1, dtype=ours.dtype).view(ours.shape)
    (a,) = torch.autograd.grad((ours * weight_of_each).sum(), W)
    (b,) = torch.autograd.grad((reference * weight_of_each).sum(), W)
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ours", "reference"), [(so, reference_so), (dso, reference_dso), (mc, reference_mc)])
def test_value_and_gradient_equal_autograd(ours, reference, shape):
    W = weights(shape)
    assert_same(ours(W), reference(W), W)


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_srip_value_and_gradient_equal_autograd_through_all_products(shape, iterations):
    W = weights(shape)
    start = starts(W)
    assert_same(srip(W, iterations, start), reference_srip(W, iterations, start), W)


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 3), rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99))
def test_any_shape(batch, rows, columns, seed):
    W = weights((batch, rows, columns), seed)
    assert_same(so(W), reference_so(W), W)
    assert_same(dso(W), reference_dso(W), W)
    start = starts(W, seed)
    assert_same(srip(W, 2, start), reference_srip(W, 2, start), W, tolerance=1e-8)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 4)])
def test_gradcheck(shape):
    W = weights(shape)
    start = starts(W)
    for penalty in (so, dso, mc, lambda w: srip(w, 3, start)):
        assert torch.autograd.gradcheck(penalty, W)


@pytest.mark.parametrize("shape", [(60, 30), (30, 60), (25, 25)])
def test_srip_converges_to_the_spectral_norm(shape):
    W = weights(shape)
    exact = torch.linalg.matrix_norm(excess(W), 2)
    torch.testing.assert_close(srip(W, 2000, starts(W)), exact, rtol=1e-8, atol=0)
    assert srip(W, 2, starts(W)) < exact
    # At convergence the gradient is that of σ_max: 2·λ-sign·(W v) vᵀ, from the eigenvector v.
    (grad,) = torch.autograd.grad(srip(W, 2000, starts(W)), W)
    (oracle,) = torch.autograd.grad(torch.linalg.matrix_norm(excess(W), 2), W)
    torch.testing.assert_close(grad, oracle, rtol=1e-5, atol=1e-6)


def test_srip_of_large_weights_does_not_overflow():
    W = weights((20, 10), dtype=torch.float32).detach() * 1e4
    value = srip(W.requires_grad_(), 50, starts(W))
    exact = torch.linalg.matrix_norm(excess(W.detach().double()), 2)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=0)
    value.backward()
    assert W.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)])
@pytest.mark.parametrize("penalty", [so, dso, mc, srip])
def test_zero_and_orthonormal_matrices_have_zero_gradient(penalty, shape):
    orthonormal = torch.eye(*shape)
    for W, spectral in ((torch.zeros(shape), 1.0), (orthonormal, 0.0)):
        W.requires_grad_()
        value = penalty(W)
        value.backward()
        torch.testing.assert_close(W.grad, torch.zeros(shape))
        if penalty in (srip, mc):
            torch.testing.assert_close(value, torch.tensor(spectral))
        elif penalty is so:
            torch.testing.assert_close(value, torch.tensor(4.0 * spectral))


def test_one_orthonormal_matrix_does_not_spoil_its_batch():
    W = torch.stack([torch.eye(6, 4), weights((6, 4), dtype=torch.float32).detach()]).requires_grad_()
    start = starts(W)
    values = srip(W, 2, start)
    values.sum().backward()
    alone = W.detach()[1].requires_grad_()
    srip(alone, 2, start[1]).backward()
    assert values[0] == 0
    torch.testing.assert_close(W.grad[1], alone.grad)
    torch.testing.assert_close(W.grad[0], torch.zeros(6, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("penalty", [so, dso, mc, lambda w: srip(w, 2, torch.ones(300))])
def test_float32_under_autocast_and_for_half_weights(penalty, dtype):
    W = weights((400, 300), dtype=dtype)
    exact = W.detach().double().requires_grad_()
    (oracle,) = torch.autograd.grad(penalty(exact), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = penalty(W)
        value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), penalty(exact).detach(), rtol=1e-5, atol=0)
    assert W.grad.dtype == dtype
    relative = (W.grad.double() - oracle).norm() / oracle.norm()
    assert relative < (1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
def test_gradient_has_the_memory_order_of_the_weight(shape, transposed):
    parameter = weights(shape[::-1] if transposed else shape)
    W = parameter.mT if transposed else parameter
    for penalty in (so, srip):
        (grad,) = torch.autograd.grad(penalty(W), parameter)
        assert grad.is_contiguous()


def test_second_derivative_is_refused():
    W = weights((6, 4))
    for penalty in (so, dso, srip):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(penalty(W), W, create_graph=True)


def test_generator_decides_the_start():
    W = weights((9, 5))
    first, again, other = (srip(W, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_bad_input():
    W = weights((4, 3))
    for penalty in (so, dso, mc, srip):
        with pytest.raises(ValueError, match="batch of matrices"):
            penalty(torch.ones(3))
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        srip(W, 0)
    with pytest.raises(ValueError, match=r"vectors has shape \(1, 4\).*need \(1, 3\)"):
        srip(W, 2, torch.ones(4))


def test_the_scale_of_a_large_matrix_keeps_its_digits():
    W = 0.02 * torch.randn(25088, 512, generator=torch.Generator().manual_seed(0)) + 0.01
    scaled = get_penalty("scaled_so")()
    assert float(scaled.value(W)) == pytest.approx(float(scaled.value(W.double())), rel=1e-4)


def test_the_value_of_a_large_matrix_keeps_its_digits():
    """One float32 sum over the 16 million entries of its Gram matrix was wrong by 0.2 %."""
    generator = torch.Generator().manual_seed(0)
    W = 0.02 * torch.randn(4096, 4096, generator=generator)
    G = (W.T @ W).double()  # the product itself is exact to 1e-6
    expected = (G - torch.eye(4096, dtype=torch.float64)).square().sum()
    assert float(get_penalty("so")().value(W)) == pytest.approx(float(expected), rel=1e-5)
