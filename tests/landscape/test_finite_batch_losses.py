"""The losses that people train, over a finite Gaussian batch, end where the landscape says."""

import pytest
import torch
from descent import minimize, rotation, spectrum

from hf_orthossl.landscape import LinearLandscape

IMAGES = 500


def batch(correlations: torch.Tensor):
    """Two centred views of each image, and the landscape of the batch's own covariances."""
    inputs = len(correlations)
    mixing = rotation(inputs) * torch.linspace(0.5, 1.5, inputs, dtype=torch.float64)
    shared = torch.randn(IMAGES, inputs, dtype=torch.float64) * correlations.sqrt()
    views = shared + torch.randn(2, IMAGES, inputs, dtype=torch.float64) * (1 - correlations).sqrt()
    views = views @ mixing
    views = views - views.mean((0, 1))
    cross = views[0].T @ views[1] / IMAGES
    Sigma = torch.cov(views.flatten(0, 1).T, correction=0)
    return views, LinearLandscape(0.5 * (cross + cross.T), Sigma, slack=0.1)


def simclr(features: torch.Tensor, temperature: float, *, euclidean: bool) -> torch.Tensor:
    """NT-Xent over both views, the positive among the candidates and the anchor not."""
    both = features.flatten(0, 1)
    logits = both @ both.T
    if euclidean:
        logits = logits - 0.5 * logits.diagonal()[:, None] - 0.5 * logits.diagonal()
    logits = (logits / temperature).masked_fill(torch.eye(len(both), dtype=torch.bool), float("-inf"))
    positives = torch.arange(len(both)).roll(len(both) // 2)
    return torch.nn.functional.cross_entropy(logits, positives)


def spectral_contrastive(features: torch.Tensor) -> torch.Tensor:
    others = (features[0] @ features[1].T).square()
    apart = (others.sum() - others.diagonal().sum()) / (IMAGES * (IMAGES - 1))
    return -2 * (features[0] * features[1]).sum(1).mean() + apart


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("spectral", {}),
        ("spectral", {"weight_decay": 0.4}),
        ("spectral", {"gamma": 0.1}),
        ("infonce", {"temperature": 0.5}),
        ("infonce", {"temperature": 0.5, "weight_decay": 0.3}),
        ("infonce", {"temperature": 0.5, "gamma": 0.1}),
        ("normalized", {"temperature": 1.0}),
    ],
)
def test_trained_spectrum_is_the_predicted_one(name, chosen):
    torch.manual_seed(0)
    views, landscape = batch(torch.linspace(0.9, 0.1, 4, dtype=torch.float64))

    def loss(W):
        features = views @ W.T
        decay = chosen.get("weight_decay", 0.0) / 2 * W.square().sum()
        penalty = chosen.get("gamma", 0.0) * (W @ W.T - torch.eye(4)).square().sum()
        if name == "spectral":
            return spectral_contrastive(features) + decay + penalty
        if name == "normalized":
            features = features / features.square().sum(-1).mean().sqrt()
        return simclr(features, chosen["temperature"], euclidean=name == "infonce") + decay + penalty

    _, weights = minimize(loss, 4, 4, starts=1)
    measured = spectrum(weights @ landscape.Sigma @ weights.T)
    if name == "normalized":
        measured = measured / measured.sum()
    predicted = landscape.minimum(name, **chosen).eigenvalues
    residual = (measured - predicted).square().sum() / (measured - measured.mean()).square().sum()
    assert 1 - float(residual) > 0.99


def test_cosines_follow_the_mean_field_when_many_directions_survive():
    torch.manual_seed(1)
    views, landscape = batch(torch.linspace(0.95, 0.05, 24, dtype=torch.float64))

    def loss(W):
        return simclr(torch.nn.functional.normalize(views @ W.T, dim=-1), 0.5, euclidean=False)

    _, weights = minimize(loss, 24, 24, starts=1, scale=0.3)
    measured = spectrum(weights @ landscape.Sigma @ weights.T)
    minimum = landscape.minimum("normalized", temperature=0.5)
    predicted = minimum.eigenvalues
    residual = (measured / measured.sum() - predicted).square().sum() / (predicted - predicted.mean()).square().sum()
    assert 1 - float(residual) > 0.95
    assert abs(int((measured > 0.02 * measured[0]).sum()) - minimum.surviving) <= 1
