"""Stationary points, the origin's Hessian and collapse thresholds against autograd and minimization."""

import math
from itertools import combinations

import pytest
import torch
from descent import covariance
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_orthossl.landscape import LinearLandscape

FEW = settings(max_examples=6, deadline=None, derandomize=True)
SETTINGS = [
    ("quartic", {}),
    ("quartic", {"alpha": 1.8, "weight_decay": 0.2, "kappa": 0.75}),
    ("spectral", {"bias": "none", "weight_decay": 0.1}),
    ("infonce", {"alpha": 1.3, "temperature": 0.6, "weight_decay": 0.1}),
]


def random_landscape(inputs: int) -> LinearLandscape:
    B = covariance(inputs)
    return LinearLandscape(B, B + covariance(inputs), mean=torch.randn(inputs, dtype=torch.float64))


def derivatives(landscape, weights, loss, chosen):
    def flat(vector):
        return landscape.loss(vector.reshape(weights.shape), loss, **chosen)

    vector = weights.flatten()
    gradient = torch.func.grad(flat)(vector)
    return gradient, torch.linalg.eigvalsh(torch.autograd.functional.hessian(flat, vector))


@pytest.mark.parametrize(("loss", "chosen"), SETTINGS)
@FEW
@given(seed=st.integers(0, 2**31), inputs=st.integers(2, 4), dim=st.integers(1, 5))
def test_stationary_points(loss, chosen, seed, inputs, dim):
    torch.manual_seed(seed)
    landscape = random_landscape(inputs)
    points = list(landscape.stationary_points(loss, dim=dim, limit=None, **chosen))
    for point in points:
        gradient, bends = derivatives(landscape, point.weights, loss, chosen)
        assert float(gradient.abs().max()) < 1e-8
        assert point.index == int((bends < -1e-7).sum())
        assert point.kind == ("saddle" if point.index else "minimum")
        assert point.value == pytest.approx(float(landscape.loss(point.weights, loss, **chosen)), abs=1e-9)
    values = [point.value for point in points]
    assert values == sorted(values)
    minimum = landscape.minimum(loss, dim=dim, **chosen)
    assert values[0] == pytest.approx(minimum.value, abs=1e-9)
    assert [point.kind for point in points] == ["minimum"] + ["saddle"] * (len(points) - 1)
    positive = landscape.minimum(loss, dim=inputs, **chosen).surviving
    expected = {s for size in range(min(dim, positive) + 1) for s in combinations(range(positive), size)}
    assert {point.directions for point in points} == expected
    assert len(points) == len(expected)


def test_stationary_points_stop_at_the_limit_without_listing_all():
    landscape = LinearLandscape(torch.diag(torch.linspace(0.1, 0.9, 60)), torch.eye(60))
    points = list(landscape.stationary_points(dim=30, limit=5))
    assert [len(point.directions) for point in points[:1]] == [30]
    assert len(points) == 5


@pytest.mark.parametrize(
    ("loss", "chosen"), [*SETTINGS, ("quartic", {"gamma": 0.2, "alpha": 3.0}), ("spectral", {"alpha": 50.0})]
)
@FEW
@given(seed=st.integers(0, 2**31), inputs=st.integers(2, 4))
def test_hessian_at_origin(loss, chosen, seed, inputs):
    torch.manual_seed(seed)
    landscape = random_landscape(inputs)
    hessian = landscape.hessian_at_origin(loss, **chosen)
    _, bends = derivatives(landscape, torch.zeros(2, inputs, dtype=torch.float64), loss, chosen)
    torch.testing.assert_close(hessian.eigenvalues.repeat_interleave(2), bends, atol=1e-8, rtol=1e-8)
    assert hessian.negative == int((bends < 0).sum()) // 2
    assert hessian.kind == ("saddle" if bends[0] < 0 else "minimum")


def test_flat_origin():
    assert LinearLandscape(torch.zeros(2, 2), torch.eye(2)).hessian_at_origin().kind == "flat"


@pytest.mark.parametrize("loss", ["quartic", "infonce", "spectral"])
@pytest.mark.parametrize("setting", ["alpha", "weight_decay"])
def test_directions_die_at_their_threshold(loss, setting):
    torch.manual_seed(0)
    landscape = random_landscape(4)
    chosen = {"bias": "centred"} | ({"alpha": 1.1} if setting == "weight_decay" else {})
    threshold = landscape.collapse_threshold(setting, loss, **chosen)
    values = threshold.values
    assert bool((values.diff() <= 0).all())
    for i, value in enumerate(values.tolist()):
        if value > 0:
            assert landscape.minimum(loss, **chosen | {setting: value * 0.999}).surviving >= i + 1
        assert landscape.minimum(loss, **chosen | {setting: value * 1.001 + 1e-9}).surviving == i
    assert threshold.complete == float(values[0])
    origin = landscape.hessian_at_origin(loss, **chosen | {setting: threshold.complete * 1.001})
    assert origin.kind == "minimum"
    assert landscape.hessian_at_origin(loss, **chosen | {setting: threshold.complete * 0.999}).negative == 1


@pytest.mark.parametrize("setting", ["alpha", "temperature"])
def test_normalized_directions_die_at_their_threshold(setting):
    torch.manual_seed(1)
    landscape = LinearLandscape((B := covariance(5)), B + covariance(5))
    chosen = {"temperature": 0.7} if setting == "alpha" else {"alpha": 1.4}
    threshold = landscape.collapse_threshold(setting, "normalized", **chosen)
    assert threshold.complete == math.inf == float(threshold.values[0])
    for i, value in enumerate(threshold.values[1:].tolist(), start=1):
        assert landscape.minimum("normalized", **chosen | {setting: value * 0.999}).surviving >= i + 1
        assert landscape.minimum("normalized", **chosen | {setting: value * 1.001}).surviving <= i


@pytest.mark.parametrize(
    ("loss", "chosen"),
    [
        ("quartic", {"alpha": 1.7}),
        ("infonce", {"alpha": 1.7, "temperature": 0.5}),
        ("normalized", {"temperature": 1.5, "alpha": 1.2}),
    ],
)
def test_critical_correlation_separates_the_living_from_the_dead(loss, chosen):
    torch.manual_seed(2)
    landscape = LinearLandscape((B := covariance(6)), B + covariance(6))
    minimum = landscape.minimum(loss, **chosen)
    assert 0 < minimum.surviving < 6
    assert torch.equal(minimum.alive, landscape.canonical_correlations > minimum.critical_correlation)


def test_a_direction_that_augmentation_leaves_alone_never_dies_of_alpha():
    landscape = LinearLandscape(torch.diag(torch.tensor([1.0, 0.5])), torch.eye(2))
    assert landscape.collapse_threshold("alpha").values.tolist() == [math.inf, pytest.approx(2)]
