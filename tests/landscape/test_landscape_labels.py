"""Class imbalance and label signal, and one clear line for bad input."""

import pytest
import torch
from descent import covariance

from hf_orthossl.landscape import LinearLandscape, Objective, imbalance, label_signal, simplex_projection


def test_imbalance_is_the_landscape_of_its_own_covariances_and_least_squares():
    torch.manual_seed(0)
    shares, means, noise = (
        torch.tensor([0.9, 0.07, 0.03], dtype=torch.float64),
        torch.randn(3, 5).double(),
        covariance(5),
    )
    result = imbalance(shares, means, noise)
    centre = shares @ means
    between = sum(p * torch.outer(m - centre, m - centre) for p, m in zip(shares, means, strict=True))
    landscape = LinearLandscape(between, between + noise)
    torch.testing.assert_close(result.canonical_correlations, landscape.canonical_correlations, atol=1e-9, rtol=0)
    for c in range(3):
        # least squares of the indicator of class c on x
        cross = shares[c] * (means[c] - centre)
        weights = torch.linalg.solve(between + noise, cross)
        assert float(result.supervised[c]) == pytest.approx(float(weights @ (between + noise) @ weights))
        k = (weights @ between @ weights) / (weights @ (between + noise) @ weights)
        assert float(result.class_correlations[c]) == pytest.approx(float(k))


def test_a_rare_class_keeps_its_direction_where_supervision_loses_it():
    """Two classes: one direction with k = x / (1 + x), x the signal over the noise."""
    for share in (0.5, 0.05, 0.005):
        means = torch.tensor([[0.0, 0.0], [30.0, 0.0]])
        result = imbalance(torch.tensor([1 - share, share]), means, torch.eye(2))
        x = share * (1 - share) * 900
        assert result.class_correlations.tolist() == [pytest.approx(x / (1 + x))] * 2
        assert float(result.supervised[1]) == pytest.approx(share * (1 - share) * x / (1 + x))
    # 100 times rarer, 80 % of it is there; supervision keeps less than 2 % of what it had
    assert float(result.class_correlations[1]) > 0.8
    assert float(result.supervised[1]) < 0.02 * 0.25


def test_shares_need_not_sum_to_one_and_noise_may_be_singular():
    means, noise = torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    one, two = imbalance(torch.ones(3), means, noise), imbalance(torch.ones(3) / 3, means, noise)
    torch.testing.assert_close(one.class_correlations, two.class_correlations)
    assert float(one.canonical_correlations[0]) == pytest.approx(1)


@pytest.fixture
def axis_landscape() -> LinearLandscape:
    return LinearLandscape(torch.diag(torch.tensor([0.9, 0.5, 0.1])), torch.eye(3))


@pytest.mark.parametrize(
    ("means", "lost", "kind"),
    [
        ([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]], 0.0, "benign"),
        ([[0.0, 0.0, 0.3], [0.0, 0.0, -0.3]], 1.0, "harmful"),
        ([[0.3, 0.0, 0.1], [-0.3, 0.0, -0.1]], 0.1, "partly harmful"),
    ],
)
def test_label_signal_in_dead_directions(axis_landscape, means, lost, kind):
    alive = axis_landscape.minimum(alpha=1.5).alive
    assert alive.tolist() == [True, True, False]
    signal = axis_landscape.label_signal(torch.tensor(means), torch.tensor([0.5, 0.5]), alive)
    assert signal.lost == pytest.approx(lost, abs=1e-6)
    assert signal.kind == kind
    assert f"{100 * lost:.1f}%" in signal.verdict


def test_label_signal_is_the_share_of_variance_between_classes():
    torch.manual_seed(1)
    x = torch.randn(500, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
    labels = torch.randint(3, (500,))
    x = x + torch.randn(3, 4, dtype=torch.float64)[labels]
    Sigma = torch.cov(x.T, correction=0)
    landscape = LinearLandscape(0.5 * Sigma, Sigma)
    means = torch.stack([x[labels == c].mean(0) for c in range(3)])
    shares = torch.bincount(labels) / 500
    signal = landscape.label_signal(means, shares, torch.ones(4, dtype=torch.bool))
    z = (x - x.mean(0)) @ landscape.filters.T
    within = sum((z[labels == c] - z[labels == c].mean(0)).square().sum(0) for c in range(3)) / 500
    torch.testing.assert_close(signal.per_direction, 1 - within / z.square().mean(0), atol=1e-6, rtol=1e-6)
    assert signal.kind == "none"


def test_chance_differences_of_class_means_are_taken_off():
    """Labels that depend on one direction of 20: few images make the others look as if they carried signal."""
    torch.manual_seed(2)
    images, classes, inputs = 300, 10, 20
    lost = {None: [], images: []}
    for _ in range(20):
        labels = torch.arange(images) % classes
        x = torch.randn(images, inputs, dtype=torch.float64)
        x[:, 0] = x[:, 0] * 0.5 + 0.3 * (labels - 4.5)
        Sigma = torch.cov(x.T, correction=0)
        landscape = LinearLandscape(0.5 * Sigma, Sigma)
        means = torch.stack([x[labels == c].mean(0) for c in range(classes)])
        alive = landscape.filters[:, 0].abs() > 0
        alive[:] = True
        signal = {n: label_signal(torch.eye(inputs), means, torch.ones(classes), alive, images=n) for n in lost}
        for n, found in signal.items():
            lost[n].append(float(found.per_direction[1:].mean()))
    average = {n: sum(values) / len(values) for n, values in lost.items()}
    assert average[None] == pytest.approx((classes - 1) / images, rel=0.15)
    assert average[images] < 0.5 * average[None]


EYE = torch.eye(3)
BAD = [
    (lambda: LinearLandscape(torch.ones(2, 3), EYE), "B has shape"),
    (lambda: LinearLandscape(EYE, torch.ones(3)), "Sigma has shape"),
    (lambda: LinearLandscape(torch.eye(2), EYE), "same size"),
    (lambda: LinearLandscape(EYE, EYE + torch.triu(torch.ones(3, 3), 1)), "Sigma is not symmetric"),
    (lambda: LinearLandscape(EYE * float("nan"), EYE), "B has entries that are not finite"),
    (lambda: LinearLandscape(EYE, -EYE), "Sigma is not positive"),
    (lambda: LinearLandscape(EYE, torch.diag(torch.tensor([1.0, 1.0, -0.5]))), "Sigma is not positive"),
    (lambda: LinearLandscape(-0.1 * EYE, EYE), "B is not positive"),
    (lambda: LinearLandscape(1.1 * EYE, EYE), "B is not below Sigma"),
    (lambda: LinearLandscape(EYE, torch.diag(torch.tensor([1.0, 1.0, 0.0]))), "B is not below Sigma"),
    (lambda: LinearLandscape(0 * EYE, 0 * EYE), "Sigma is zero"),
    (lambda: LinearLandscape(EYE, EYE, mean=torch.ones(2)), "mean has shape"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum(alpha=0), "alpha = 0"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("infonce", temperature=-1), "temperature = -1"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum(weight_decay=-1.0), "weight_decay = -1.0"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum(gamma=float("nan")), "gamma = nan"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum(dim=0), "dim = 0"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("infonse"), "did you mean 'infonce'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum(bias="centered"), "did you mean 'centred'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("spectral", kappa=1.0), "kappa belongs"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("spectral", temperature=0.5), "temperature = 0.5 belongs"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("normalized", weight_decay=0.1), "weight_decay = 0.1"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("normalized", bias="learnable"), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("spectral", bias="learnable", gamma=1.0), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE, mean=torch.ones(3)).minimum("normalized"), "bias='none'"),
    (lambda: LinearLandscape(EYE, EYE).minimum("infonce"), "no minimum"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).stationary_points("normalized"), "stationary points"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).stationary_points(gamma=1.0), "gamma = 1.0"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).stationary_points(limit=0), "limit = 0"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).stationary_points(bias="learnable"), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).hessian_at_origin("normalized"), "origin"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).hessian_at_origin(bias="learnable"), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).collapse_threshold("gamma"), "setting='gamma'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).collapse_threshold("temperature", "infonce"), "setting='temperature'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).collapse_threshold("alpha", weight_decay=0.1), "weight_decay = 0.1"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).collapse_threshold("alpha", gamma=0.1), "gamma = 0.1"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).gamma_to_revive(3), "direction = 3"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).gamma_to_revive(loss="normalized"), "lower the temperature"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).gamma_to_revive(bias="learnable"), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).loss(torch.ones(2, 4)), "weights has shape"),
    (lambda: imbalance(torch.ones(2), torch.ones(3, 3), EYE), "shares has shape"),
    (lambda: imbalance(torch.tensor([1.0, -1.0, 1.0]), EYE, EYE), "shares must be"),
    (lambda: imbalance(torch.ones(3), EYE, torch.eye(2)), "noise_covariance has shape"),
    (lambda: imbalance(torch.ones(3), EYE, -EYE), "noise_covariance is not positive"),
    (lambda: label_signal(EYE, EYE, torch.ones(3), torch.ones(2, dtype=torch.bool)), "alive has shape"),
    (lambda: label_signal(EYE, torch.ones(2, 3), torch.ones(2), torch.ones(3, dtype=torch.bool)), "do not differ"),
    (lambda: label_signal(EYE, EYE, torch.ones(3), torch.ones(3, dtype=torch.bool), images=3), "images = 3"),
    (lambda: simplex_projection(torch.ones(0)), "point has shape"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        call()
    assert message in str(error.value)


def test_slack_clips_estimates_that_leave_the_range():
    B = torch.diag(torch.tensor([1.02, 0.5, -0.03]))
    landscape = LinearLandscape(B, EYE, slack=0.05)
    assert landscape.canonical_correlations.tolist() == [1, pytest.approx(0.5), 0]
    torch.testing.assert_close(landscape.B.diagonal(), torch.tensor([1.0, 0.5, 0.0]).double())


def test_objective_is_hashable_and_says_its_settings():
    assert Objective("infonce", temperature=0.5) in {Objective("infonce", temperature=0.5)}
