"""The orthogonality penalty: minima with it, and the strength that revives a direction."""

import pytest
import torch
from descent import covariance, minimize, rotation, spectrum
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_orthossl.landscape import LinearLandscape

FEW = settings(max_examples=5, deadline=None, derandomize=True)


def commuting(inputs: int) -> LinearLandscape:
    axes = rotation(inputs)
    variances, k = 0.3 + 2 * torch.rand(inputs, dtype=torch.float64), torch.rand(inputs, dtype=torch.float64)
    return LinearLandscape((axes * variances * k) @ axes.T, (axes * variances) @ axes.T)


def general(inputs: int) -> LinearLandscape:
    B = covariance(inputs)
    return LinearLandscape(B, B + covariance(inputs))


@pytest.mark.parametrize("make", [commuting, general])
@pytest.mark.parametrize(
    ("loss", "chosen"),
    [
        ("quartic", {"alpha": 2.5}),
        ("spectral", {"alpha": 1.2, "weight_decay": 0.3}),
        ("infonce", {"alpha": 1.6, "temperature": 0.7}),
        ("normalized", {"temperature": 2.0}),
    ],
)
@FEW
@given(seed=st.integers(0, 2**31), inputs=st.integers(3, 4), extra=st.integers(-2, 2), gamma=st.floats(0.05, 0.6))
def test_minimum_is_what_descent_finds(make, loss, chosen, seed, inputs, extra, gamma):
    torch.manual_seed(seed)
    landscape, dim = make(inputs), inputs + extra
    chosen = chosen | {"gamma": gamma}
    minimum = landscape.minimum(loss, dim=dim, **chosen)
    value, weights = minimize(lambda W: landscape.loss(W, loss, **chosen), dim, inputs, starts=6)
    assert minimum.value == pytest.approx(value, abs=1e-9)
    measured = spectrum(weights @ landscape.Sigma @ weights.T)
    torch.testing.assert_close(minimum.eigenvalues, measured, atol=1e-6, rtol=1e-6)
    assert minimum.surviving == int((measured > 1e-9).sum())
    if make is commuting and extra >= 0 and loss != "normalized":
        assert minimum.exact


def test_squared_singular_value_along_each_common_direction():
    variances, k, gamma, alpha = (
        torch.tensor([2.0, 1.0, 0.5]).double(),
        torch.tensor([0.9, 0.5, 0.1]).double(),
        0.1,
        2.5,
    )
    landscape = LinearLandscape(torch.diag(variances * k), torch.diag(variances))
    minimum = landscape.minimum("quartic", alpha=alpha, gamma=gamma, kappa=0.7)
    b = variances * (1 - alpha * (1 - k))
    expected = (b + 2 * gamma).clamp_min(0) / (2 * (0.7 * variances**2 + gamma))
    torch.testing.assert_close((minimum.weights.T @ minimum.weights).diagonal(), expected)
    assert int((expected > 0).sum()) == minimum.surviving < 3


def test_one_output_may_read_a_mixture_of_common_directions():
    """With fewer outputs than living directions the best single direction is not the best there is."""
    landscape = LinearLandscape(torch.diag(torch.tensor([0.05, 1.3])), torch.diag(torch.tensor([1.0, 3.0])))
    minimum = landscape.minimum("quartic", dim=1, gamma=0.5, kappa=0.5)
    b, variances = torch.tensor([0.05, 1.3]) + 2 * 0.5, torch.tensor([1.0, 3.0])
    best_single = 0.5 - float((b**2 / (4 * (0.5 * variances**2 + 0.5))).max())
    value, _ = minimize(lambda W: landscape.loss(W, gamma=0.5, kappa=0.5), 1, 2)
    assert minimum.value == pytest.approx(value, abs=1e-9)
    assert minimum.value < best_single - 1e-3
    assert not minimum.exact


def test_revival_along_common_directions_is_minus_half_b():
    torch.manual_seed(0)
    for _ in range(5):
        landscape = commuting(4)
        alpha = 4.0
        w = landscape.filters
        b = (w @ (landscape.Sigma - alpha * landscape.noise) * w).sum(1) / w.square().sum(1)
        expected = (-0.5 * b).clamp_min(0)
        found = [landscape.gamma_to_revive(i, alpha=alpha) for i in range(4)]
        assert found == pytest.approx(expected.tolist(), abs=1e-9)
        assert landscape.gamma_to_revive(alpha=alpha) == pytest.approx(float(expected.max()), abs=1e-9)
        # the same in the spectral loss, which is twice the quartic one
        assert landscape.gamma_to_revive(alpha=alpha, loss="spectral") == pytest.approx(2 * float(expected.max()))


def living(landscape: LinearLandscape, loss: str, **chosen) -> int:
    _, weights = minimize(lambda W: landscape.loss(W, loss, **chosen), 4, 4, starts=3)
    return int((spectrum(weights @ landscape.Sigma @ weights.T) > 1e-9).sum())


@pytest.mark.parametrize("loss", ["quartic", "infonce"])
@pytest.mark.parametrize("make", [commuting, general])
def test_all_directions_live_above_the_reviving_gamma_and_not_below(make, loss):
    torch.manual_seed(3)
    landscape, chosen = make(4), {"alpha": 4.0, "weight_decay": 0.1}
    gamma = landscape.gamma_to_revive(loss=loss, **chosen)
    assert gamma > 0
    assert living(landscape, loss, gamma=1.02 * gamma, **chosen) == 4
    assert living(landscape, loss, gamma=0.98 * gamma, **chosen) < 4


def test_a_mixed_direction_is_revived_when_half_of_it_is_captured():
    torch.manual_seed(5)
    landscape = general(4)
    gamma = landscape.gamma_to_revive(3, alpha=3.0)
    assert 0 < gamma <= landscape.gamma_to_revive(alpha=3.0) * 1.001
    above = landscape.minimum(alpha=3.0, gamma=1.01 * gamma)
    below = landscape.minimum(alpha=3.0, gamma=0.99 * gamma)
    assert float(above.captured[3]) > 0.5 > float(below.captured[3])


def test_a_living_direction_needs_no_penalty():
    landscape = commuting(4)
    assert landscape.gamma_to_revive() == 0
    assert landscape.gamma_to_revive(0) == 0


def test_penalty_fills_directions_in_which_views_do_not_vary():
    """‖WWᵀ − I‖² takes an output wherever it is free, and no survivor is counted for it."""
    landscape = LinearLandscape(torch.diag(torch.tensor([0.5, 0.01, 0.0])), torch.diag(torch.tensor([1.0, 1.0, 0.0])))
    minimum = landscape.minimum(alpha=2.5, gamma=0.3, dim=3)
    weights = minimize(lambda W: landscape.loss(W, alpha=2.5, gamma=0.3), 3, 3)[1]
    torch.testing.assert_close(minimum.weights.T @ minimum.weights, weights.T @ weights, atol=1e-6, rtol=0)
    assert float(minimum.weights[:, 2].square().sum()) == pytest.approx(1)
    assert minimum.surviving == 1
