"""Class directions and label signal, and one clear line for bad input."""

import pytest
import torch
from descent import covariance

from hf_orthossl.landscape import LinearLandscape, Objective, class_directions, label_signal, simplex_projection


def of_classes(shares: torch.Tensor, means: torch.Tensor, noise: torch.Tensor) -> LinearLandscape:
    """Classes under noise: B is the variance between classes."""
    shares = shares.double() / shares.sum()
    offsets = means.double() - shares @ means.double()
    between = offsets.T @ (shares[:, None] * offsets)
    return LinearLandscape(between, between + noise)


def test_class_directions_are_those_of_least_squares():
    """Every number against the least-squares fit of the class's indicator on x, written out."""
    torch.manual_seed(0)
    shares, means = torch.tensor([0.9, 0.07, 0.03], dtype=torch.float64), torch.randn(3, 5).double()
    centre, noise, other = shares @ means, covariance(5), covariance(5)
    between = sum(p * torch.outer(m - centre, m - centre) for p, m in zip(shares, means, strict=True))
    # Images of one class differ, too: B is more than the variance between classes.
    B, Sigma = between + other, between + other + noise
    landscape = LinearLandscape(B, Sigma)
    minimum = landscape.minimum("spectral", dim=2)
    result = landscape.class_directions(means, 7 * shares, minimum.alive)
    torch.testing.assert_close(result.shares, shares)
    for c in range(3):
        weights = torch.linalg.solve(Sigma, shares[c] * (means[c] - centre))
        assert float(result.supervised[c]) == pytest.approx(float(weights @ Sigma @ weights))
        assert float(result.correlations[c]) == pytest.approx(
            float((weights @ B @ weights) / (weights @ Sigma @ weights))
        )
        # R² of the regression of the fit on the representation f = Wx
        W = minimum.weights[: minimum.surviving]
        cross = W @ Sigma @ weights
        explained = cross @ torch.linalg.solve(W @ Sigma @ W.T, cross)
        assert float(result.captured[c]) == pytest.approx(float(explained / (weights @ Sigma @ weights)))
        assert bool(result.survives[c]) == (float(result.captured[c]) >= 0.5)


def test_a_rare_class_keeps_its_direction_where_supervision_loses_it():
    """Two classes: one direction with k = x / (1 + x), x the signal over the noise."""
    for share in (0.5, 0.05, 0.005):
        means, shares = torch.tensor([[0.0, 0.0], [30.0, 0.0]]), torch.tensor([1 - share, share])
        landscape = of_classes(shares, means, torch.eye(2))
        result = landscape.class_directions(means, shares, landscape.minimum("spectral", alpha=2.0).alive)
        x = share * (1 - share) * 900
        assert result.correlations.tolist() == [pytest.approx(x / (1 + x))] * 2
        assert float(result.supervised[1]) == pytest.approx(share * (1 - share) * x / (1 + x))
        # With α = 2 a direction needs k above one half.
        assert result.survives.tolist() == [True, True]
    # 100 times rarer, 80 % of it is there; supervision keeps less than 2 % of what it had
    assert float(result.correlations[1]) > 0.8
    assert float(result.supervised[1]) < 0.02 * 0.25
    alive = landscape.minimum("spectral", alpha=6.0).alive
    assert landscape.class_directions(means, shares, alive).survives.tolist() == [False, False]


def test_shares_need_not_sum_to_one_and_noise_may_be_singular():
    means, noise = torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    landscape = of_classes(torch.ones(3), means, noise)
    alive = torch.ones(landscape.rank, dtype=torch.bool)
    one, two = (landscape.class_directions(means, shares, alive) for shares in (torch.ones(3), torch.ones(3) / 3))
    torch.testing.assert_close(one.correlations, two.correlations)
    assert float(landscape.canonical_correlations[0]) == pytest.approx(1)


def test_a_class_that_differs_by_chance_has_no_direction():
    """Of three classes only the first differs; with few images the means of the others differ by chance."""
    torch.manual_seed(3)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 20, dtype=torch.float64)
    x[labels == 0, 0] += 3
    Sigma = torch.cov(x.T, correction=0)
    landscape = LinearLandscape(0.5 * Sigma, Sigma)
    means, alive = torch.stack([x[labels == c].mean(0) for c in range(3)]), torch.ones(20, dtype=torch.bool)
    counted, plain = (landscape.class_directions(means, torch.ones(3), alive, images=n) for n in (300, None))
    assert float(counted.supervised[0]) == pytest.approx(float(plain.supervised[0]), rel=0.1)
    equal = landscape.class_directions(torch.zeros(3, 20), torch.ones(3), alive)
    assert equal.supervised.tolist() == equal.captured.tolist() == [0, 0, 0]


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


def classes(means, shares, alive=EYE[0]):
    return LinearLandscape(0.5 * EYE, EYE).class_directions(means, shares, alive)


BAD = [
    (lambda: LinearLandscape(torch.ones(2, 3), EYE), "B has shape"),
    (lambda: LinearLandscape(EYE, torch.ones(3)), "Sigma has shape"),
    (lambda: LinearLandscape(torch.eye(2), EYE), "same size"),
    (lambda: LinearLandscape(EYE, EYE + torch.triu(torch.ones(3, 3), 1)), "Sigma is not symmetric"),
    (lambda: LinearLandscape(EYE * float("nan"), EYE), "B holds NaN or infinity"),
    (lambda: LinearLandscape(EYE, -EYE), "Sigma is not positive"),
    (lambda: LinearLandscape(EYE, torch.diag(torch.tensor([1.0, 1.0, -0.5]))), "Sigma is not positive"),
    (lambda: LinearLandscape(-0.1 * EYE, EYE), "B is not positive"),
    (lambda: LinearLandscape(1.1 * EYE, EYE), "B is not below Sigma"),
    (lambda: LinearLandscape(EYE, torch.diag(torch.tensor([1.0, 1.0, 0.0]))), "B is not below Sigma"),
    (lambda: LinearLandscape(0 * EYE, 0 * EYE), "Sigma is zero"),
    (lambda: LinearLandscape(EYE, EYE, mean=torch.ones(2)), "mean has shape"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum(alpha=0), "alpha must be a finite number above 0, got 0"),
    (
        lambda: LinearLandscape(0.5 * EYE, EYE).minimum("infonce", temperature=-1),
        "temperature must be a finite number above 0, got -1",
    ),
    (
        lambda: LinearLandscape(0.5 * EYE, EYE).minimum(weight_decay=-1.0),
        "weight_decay must be a finite number of at least 0, got -1.0",
    ),
    (
        lambda: LinearLandscape(0.5 * EYE, EYE).minimum(gamma=float("nan")),
        "gamma must be a finite number of at least 0, got nan",
    ),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum(dim=0), "dim must be at least 1, got 0"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("infonse"), "did you mean 'infonce'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum(bias="centered"), "did you mean 'centred'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("spectral", kappa=1.0), "kappa is a setting of loss='quartic'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("spectral", temperature=0.5), "temperature = 0.5 is a setting of"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("normalized", weight_decay=0.1), "weight_decay = 0.1"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("normalized", bias="learnable"), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).minimum("spectral", bias="learnable", gamma=1.0), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE, mean=torch.ones(3)).minimum("normalized"), "bias='none'"),
    (lambda: LinearLandscape(EYE, EYE).minimum("infonce"), "no minimum"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).stationary_points("normalized"), "stationary points"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).stationary_points(gamma=1.0), "gamma = 1.0"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).stationary_points(limit=0), "limit must be at least 1, got 0"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).stationary_points(bias="learnable"), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).hessian_at_origin("normalized"), "origin"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).hessian_at_origin(bias="learnable"), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).collapse_threshold("gamma"), "got 'gamma'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).collapse_threshold("temperature", "infonce"), "got 'temperature'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).collapse_threshold("alpha", weight_decay=0.1), "weight_decay = 0.1"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).collapse_threshold("alpha", gamma=0.1), "gamma = 0.1"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).gamma_to_revive(3), "direction must be 0 to 2, got 3"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).gamma_to_revive(loss="normalized"), "lower the temperature"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).gamma_to_revive(bias="learnable"), "bias='learnable'"),
    (lambda: LinearLandscape(0.5 * EYE, EYE).loss(torch.ones(2, 4)), "weights has shape"),
    (lambda: classes(EYE, torch.ones(2)), "shares has shape"),
    (lambda: classes(EYE, torch.tensor([1.0, -1.0, 1.0])), "shares must be"),
    (lambda: classes(torch.ones(3, 2), torch.ones(3)), "class_means has shape"),
    (lambda: classes(torch.ones(1, 3), torch.ones(1)), "at least two classes"),
    (lambda: classes(EYE, torch.ones(3), torch.ones(2)), "alive has shape"),
    (lambda: class_directions(EYE, torch.ones(2), EYE, torch.ones(3), torch.ones(3)), "correlations has shape"),
    (lambda: label_signal(EYE, EYE, torch.ones(3), torch.ones(2, dtype=torch.bool)), "alive has shape"),
    (lambda: label_signal(EYE, torch.ones(2, 3), torch.ones(2), torch.ones(3, dtype=torch.bool)), "do not differ"),
    (
        lambda: label_signal(EYE, EYE, torch.ones(3), torch.ones(3, dtype=torch.bool), images=3),
        "images must be more than the 3 classes, got 3",
    ),
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
