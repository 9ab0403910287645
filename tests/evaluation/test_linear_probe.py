"""The linear probes against torch's own SGD and scikit-learn's logistic regression."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hf_orthossl.evaluation.linear_probe import PENALTIES, lbfgs_probe, sgd_probe


def blobs(images, dim=12, classes=4, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (images,), generator=generator)
    noise = torch.randn(images, dim, generator=generator)
    # Features of very different scales, as encoders give them.
    return (centres[labels] + spread * noise) * torch.logspace(-2, 1, dim), labels


def test_sgd_is_torchs_nesterov_sgd_with_the_papers_schedule():
    features, labels = blobs(37)
    ours = sgd_probe(features, labels, 4, epochs=10, learning_rate=0.05, batch_size=8, seed=3)

    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(12, 4)
    start = torch.empty(13, 4).uniform_(-(12**-0.5), 12**-0.5, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(start[:-1].T)
        layer.bias.copy_(start[-1])
    optimizer = torch.optim.SGD(layer.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 8])
    for _ in range(10):
        for rows in torch.randperm(37, generator=generator).split(8):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    torch.testing.assert_close(ours(features), layer(features).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_lbfgs_is_scikit_learns_logistic_regression(penalty):
    features, labels = blobs(300)
    queries, truth = blobs(200, seed=1)
    ours = lbfgs_probe(features, labels, 4, penalty=penalty)
    scaler = StandardScaler().fit(features.double())
    theirs = LogisticRegression(C=1 / (penalty * 300), tol=1e-10, max_iter=5000)
    theirs.fit(scaler.transform(features.double()), labels)
    scores = ours(queries)
    agreed = (scores.argmax(1).numpy() == truth.numpy()).sum()
    assert abs(agreed - (theirs.predict(scaler.transform(queries.double())) == truth.numpy()).sum()) <= 1
    # Ours acts on raw features: back on the standardized ones, the coefficients are scikit-learn's.
    standardized = ours.weight.numpy() * scaler.scale_[:, None]
    np.testing.assert_allclose(standardized, theirs.coef_.T, atol=1e-3)
    expected = theirs.decision_function(scaler.transform(queries.double()))
    np.testing.assert_allclose(
        (scores - scores.mean(1, keepdim=True)).numpy(), expected - expected.mean(1, keepdims=True), atol=5e-3
    )


def test_the_penalty_is_chosen_without_the_test_set_and_helps():
    """40 images in 60 dimensions, 4 of which matter: without a penalty the fit is to noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (80,), generator=generator)
    features = torch.randn(80, 60, generator=generator)
    features[:, :4] += 1.2 * (2.0 * labels - 1)[:, None]
    queries, truth = torch.randn(500, 60, generator=generator), torch.randint(2, (500,), generator=generator)
    queries[:, :4] += 1.2 * (2.0 * truth - 1)[:, None]
    chosen = lbfgs_probe(features, labels, 2)
    weakest = lbfgs_probe(features, labels, 2, penalty=min(PENALTIES))
    assert chosen.settings["penalty"] > min(PENALTIES)
    right = [(probe(queries).argmax(1) == truth).double().mean() for probe in (chosen, weakest)]
    assert right[0] > right[1]


def test_a_constant_feature_changes_nothing():
    features, labels = blobs(60)
    with_constant = torch.cat([features, torch.full((60, 1), 7.0)], dim=1)
    plain, more = (lbfgs_probe(x, labels, 4, penalty=1e-2) for x in (features, with_constant))
    torch.testing.assert_close(plain(features), more(with_constant), rtol=1e-4, atol=1e-4)


def test_both_probes_repeat_with_their_seed():
    features, labels = blobs(60)
    for probe in (sgd_probe, lbfgs_probe):
        first, again = (probe(features, labels, 4, seed=5) for _ in range(2))
        torch.testing.assert_close(first.weight, again.weight, rtol=0, atol=0)


def test_nan_features_are_refused():
    features, labels = blobs(20)
    features[3, 2] = float("nan")
    for probe in (sgd_probe, lbfgs_probe):
        with pytest.raises(ValueError, match="diverged"):
            probe(features, labels, 4)


@pytest.mark.parametrize(
    ("probe", "settings", "named"),
    [
        (sgd_probe, {"epochs": 0}, "epochs is 0"),
        (sgd_probe, {"learning_rate": -1.0}, "learning_rate -1"),
        (lbfgs_probe, {"penalty": -1.0}, "penalty is -1"),
        (lbfgs_probe, {"held_out": 1.0}, "held_out is 1"),
    ],
)
def test_settings_out_of_range(probe, settings, named):
    with pytest.raises(ValueError, match=named):
        probe(*blobs(20), 4, **settings)
