"""Closed-form minima against direct minimization of the loss in its defining form."""

import math

import pytest
import torch
from descent import covariance, minimize, rotation, spectrum
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_orthossl.landscape import LinearLandscape, simplex_projection

FEW = settings(max_examples=6, deadline=None, derandomize=True)
SETTINGS = [
    ("quartic", {}),
    ("quartic", {"alpha": 2.5}),  # B_eff indefinite
    ("quartic", {"alpha": 1.3, "weight_decay": 0.4, "kappa": 0.9}),
    ("quartic", {"bias": "none"}),
    ("spectral", {"alpha": 1.5, "weight_decay": 0.3}),
    ("spectral", {"bias": "centred"}),
    ("spectral", {"bias": "learnable", "weight_decay": 0.2}),
    ("quartic", {"bias": "learnable", "alpha": 1.5, "kappa": 0.75}),
    ("infonce", {"alpha": 1.4}),
    ("infonce", {"weight_decay": 0.6, "temperature": 0.5}),
]


@pytest.mark.parametrize(("loss", "chosen"), SETTINGS)
@FEW
@given(seed=st.integers(0, 2**31), inputs=st.integers(3, 5), extra=st.integers(-2, 2))
def test_minimum_is_what_descent_finds(loss, chosen, seed, inputs, extra):
    torch.manual_seed(seed)
    B, C, mean = covariance(inputs), covariance(inputs), torch.randn(inputs, dtype=torch.float64)
    dim = inputs + extra
    landscape = LinearLandscape(B, B + C, mean=mean)
    minimum = landscape.minimum(loss, dim=dim, **chosen)

    learnable = chosen.get("bias") == "learnable"

    def direct(point):
        offset = point[:, inputs] if learnable else None
        return landscape.loss(point[:, :inputs], loss, offset=offset, **chosen)

    value, point = minimize(direct, dim, inputs + learnable)
    weights = point[:, :inputs]
    assert minimum.value == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(minimum.eigenvalues, spectrum(weights @ (B + C) @ weights.T), atol=1e-6, rtol=1e-6)
    offset = minimum.offset if learnable else None
    assert float(landscape.loss(minimum.weights, loss, offset=offset, **chosen)) == pytest.approx(value, abs=1e-9)
    assert minimum.exact
    assert minimum.surviving == int((minimum.eigenvalues > 0).sum()) == int(minimum.alive.sum())


@FEW
@given(
    seed=st.integers(0, 2**31),
    inputs=st.integers(3, 5),
    extra=st.integers(-2, 2),
    temperature=st.floats(0.3, 4),
    alpha=st.floats(0.7, 2),
)
def test_normalized_minimum_is_what_descent_finds(seed, inputs, extra, temperature, alpha):
    torch.manual_seed(seed)
    B, C = covariance(inputs), covariance(inputs)
    landscape = LinearLandscape(B, B + C)
    chosen = {"temperature": temperature, "alpha": alpha}
    minimum = landscape.minimum("normalized", dim=inputs + extra, **chosen)
    value, weights = minimize(lambda W: landscape.loss(W, "normalized", **chosen), inputs + extra, inputs)
    measured = spectrum(weights @ (B + C) @ weights.T)
    assert minimum.value == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(minimum.eigenvalues, measured / measured.sum(), atol=1e-6, rtol=1e-6)
    assert minimum.surviving == landscape.surviving_under_temperature(temperature, alpha=alpha, dim=inputs + extra)


@pytest.mark.parametrize("loss", ["quartic", "infonce", "normalized", "spectral"])
def test_losses_are_their_definitions_on_samples(loss):
    """Averages over all pairs of different images of a Gaussian sample, at the sample's own covariances."""
    torch.manual_seed(0)
    images, inputs, temperature, alpha = 3000, 4, 2.0, 1.5
    x = torch.randn(images, inputs, dtype=torch.float64) @ torch.linalg.cholesky(covariance(inputs)).T
    x = x + 0.5 * torch.randn(2, images, inputs, dtype=torch.float64)
    x = x - x.mean((0, 1))
    if loss != "normalized":
        x = x + torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    mean = x.mean((0, 1))
    cross = (x[0] - mean).T @ (x[1] - mean) / images
    Sigma = torch.cov(x.flatten(0, 1).T, correction=0)
    landscape = LinearLandscape(0.5 * (cross + cross.T), Sigma, mean=mean if loss != "normalized" else None)

    weights = 0.4 * torch.randn(3, inputs, dtype=torch.float64)
    chosen = {"alpha": alpha, "gamma": 0.1}
    extra = 0.1 * (weights @ weights.T - torch.eye(3)).square().sum()
    if loss != "normalized":
        chosen["weight_decay"] = 0.2
        extra = extra + 0.1 * weights.square().sum()
    f = x @ weights.T
    if loss == "normalized":
        f = f / f.square().sum(-1).mean().sqrt()
    apart = ~torch.eye(images, dtype=torch.bool)
    others, distance = f[0] @ f[1].T, torch.cdist(f[0], f[1]).square()
    alignment, length = 0.5 * (f[0] - f[1]).square().sum(-1).mean(), f.square().sum(-1).mean()
    if loss == "quartic":
        expected = alpha * alignment - length + 0.5 * others[apart].square().mean()
    elif loss == "spectral":
        expected = 2 * (alpha * alignment - length) + others[apart].square().mean()
    else:
        chosen["temperature"] = temperature
        # InfoNCE's candidates; alpha weighs the alignment only, which is 1 − z·z⁺ at unit length.
        logits = (others if loss == "normalized" else -0.5 * distance) / temperature
        candidates = logits.masked_fill(~apart, float("-inf")).logsumexp(1).mean() - math.log(images - 1)
        expected = alpha * alignment / temperature + candidates
        if loss == "normalized":
            expected = expected - 1 / temperature
    ours = float(landscape.loss(weights, loss, **chosen))
    assert ours == pytest.approx(float(expected + extra), rel=0.01, abs=0.01)


def test_singular_views_are_dropped_and_change_nothing():
    torch.manual_seed(1)
    inner_B, inner_C = covariance(3), covariance(3)
    embedding = rotation(5)[:, :3]
    landscape = LinearLandscape(embedding @ inner_B @ embedding.T, embedding @ (inner_B + inner_C) @ embedding.T)
    inner = LinearLandscape(inner_B, inner_B + inner_C)
    assert (landscape.rank, landscape.dropped) == (3, 2)
    torch.testing.assert_close(landscape.canonical_correlations, inner.canonical_correlations)
    for loss, chosen in (("quartic", {"weight_decay": 0.3}), ("infonce", {"alpha": 1.2}), ("quartic", {"gamma": 0.2})):
        outer_minimum = landscape.minimum(loss, dim=5, **chosen)
        expected = inner.minimum(loss, dim=5, **chosen)
        torch.testing.assert_close(outer_minimum.eigenvalues, expected.eigenvalues, atol=1e-6, rtol=1e-6)
        assert outer_minimum.surviving == expected.surviving
        assert outer_minimum.dropped == 2


def test_canonical_directions_diagonalize_both_covariances():
    torch.manual_seed(2)
    B, C = covariance(5, 3), covariance(5)
    landscape = LinearLandscape(B, B + C)
    w, k = landscape.filters, landscape.canonical_correlations
    torch.testing.assert_close(w @ (B + C) @ w.T, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(w @ B @ w.T, torch.diag(k))
    # the best and the worst that any filter can do, by definition of the canonical correlation
    random = torch.randn(4000, 5, dtype=torch.float64)
    shares = ((random @ B) * random).sum(1) / ((random @ (B + C)) * random).sum(1)
    assert float(k[0]) >= float(shares.max()) > 0.8 * float(k[0])
    assert int((k > 1e-9).sum()) == 3
    torch.testing.assert_close(landscape.patterns.T @ (k[:, None] * landscape.patterns), B)


@given(seed=st.integers(0, 2**31), size=st.integers(1, 5))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_simplex_projection_against_every_support(seed, size):
    torch.manual_seed(seed)
    point = 2 * torch.randn(size, dtype=torch.float64)
    nearest, best = None, float("inf")
    for mask in range(1, 2**size):
        support = torch.tensor([bool(mask >> i & 1) for i in range(size)])
        candidate = torch.where(support, point - (point[support].sum() - 1) / support.sum(), 0.0)
        distance = float((candidate - point).square().sum())
        if bool((candidate >= 0).all()) and distance < best:
            nearest, best = candidate, distance
    torch.testing.assert_close(simplex_projection(point), nearest)


def test_weight_decay_mixes_directions_and_captured_says_how():
    """R² of the linear regression of each canonical variable on the representation."""
    torch.manual_seed(3)
    B, C = covariance(5), covariance(5)
    landscape = LinearLandscape(B, B + C)
    minimum = landscape.minimum("quartic", weight_decay=1.0)
    assert 0 < minimum.surviving < 5
    W = minimum.weights[: minimum.surviving]
    cross = landscape.filters @ (B + C) @ W.T
    explained = ((cross @ torch.linalg.inv(W @ (B + C) @ W.T)) * cross).sum(1)
    torch.testing.assert_close(minimum.captured, explained)
    assert float(minimum.captured.sum()) == pytest.approx(minimum.surviving)


@pytest.mark.parametrize("chosen", [{}, {"weight_decay": 0.2}, {"gamma": 0.1}])
def test_a_constant_pixel_takes_an_output_without_a_bias(chosen):
    """The mean has a part in a direction where views do not vary: it costs an output, and is no survivor."""
    torch.manual_seed(4)
    B, C, mean = torch.zeros(3, 3).double(), torch.zeros(3, 3).double(), torch.tensor([0.2, 0.1, 1.5]).double()
    B[:2, :2], C[:2, :2] = covariance(2), covariance(2)
    landscape = LinearLandscape(B, B + C, mean=mean)
    minimum = landscape.minimum("spectral", dim=2, **chosen)
    value, weights = minimize(lambda W: landscape.loss(W, "spectral", **chosen), 2, 3)
    measured = spectrum(weights @ (B + C) @ weights.T)
    assert minimum.value == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(minimum.eigenvalues, measured, atol=1e-6, rtol=0)
    assert minimum.surviving == int((measured > 1e-9).sum())
    assert landscape.minimum("spectral", dim=3, **chosen).surviving == 2


def test_one_output_with_a_learnable_bias_is_a_constant():
    landscape = LinearLandscape(torch.diag(torch.tensor([0.9, 0.5])), torch.eye(2), mean=torch.tensor([1.0, 2.0]))
    minimum = landscape.minimum("spectral", dim=1, bias="learnable")
    assert (minimum.surviving, minimum.value) == (0, pytest.approx(-1))
    assert minimum.offset.tolist() == [pytest.approx(1)]


def test_half_precision_in_float64_out():
    minimum = LinearLandscape(torch.diag(torch.tensor([0.5, 0.25])).half(), torch.eye(2).half()).minimum("spectral")
    assert minimum.weights.dtype == torch.float64
    assert minimum.eigenvalues.tolist() == [pytest.approx(0.5), pytest.approx(0.25)]
