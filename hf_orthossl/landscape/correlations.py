"""Canonical correlations between views, with what the number of images leaves uncertain."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .covariances import check_views, contrasts

FOLDS = 10
RESAMPLES = 500
# 95 % of a normal distribution.
_QUANTILES = (0.025, 0.975)
# Directions in which the variance of views is below this share of the largest are left out.
_TOLERANCE = 1e-9
# Keeps a direction that only a few images have from blowing up when they are left out; in whitened coordinates.
_RIDGE = 1e-2


@dataclass
class CanonicalCorrelations:
    """
    k between two views of an image, estimated from n images, and the covariances that have exactly these.

    Attributes:
        values (`Tensor`): `(r,)`, k corrected for the number of images, descending, in [0, 1].
        low, high (`Tensor`): `(r,)`, 95 % intervals.
        sample (`Tensor`): `(r,)`, the same directions' k as the sample has them, spread too wide: the large ones too
            large, and some of the small ones negative.
        filters (`Tensor`): `(r, p)`, rows that read the directions, wΣwᵀ = 1.
        Sigma (`Tensor`): `(p, p)`, unbiased.
    """

    values: Tensor
    low: Tensor
    high: Tensor
    sample: Tensor
    filters: Tensor = field(repr=False)
    Sigma: Tensor = field(repr=False)

    @property
    def patterns(self) -> Tensor:
        """`(r, p)`, the directions as inputs, Σw; together they make up Σ."""
        return self.filters @ self.Sigma

    def B(self, values: Tensor) -> Tensor:
        """`(p, p)`, the B along the same directions whose canonical correlations are `values` `(r,)`."""
        patterns = self.patterns
        return patterns.T @ (values[:, None] * patterns)


class _Moments:
    """Sums over images from which B and Σ follow; sums of disjoint sets of images add up."""

    def __init__(self, views: Tensor, draws: int):
        means, between, within = (part.double() for part in contrasts(views, draws))
        self.count, self.draws, self.total = len(views), draws, views.shape[1]
        self.sum, self.means = means.sum(0), means.T @ means
        self.between, self.within = (rows.flatten(0, 1).T @ rows.flatten(0, 1) for rows in (between, within))

    def combined(self, other: "_Moments", sign: int) -> "_Moments":
        result = object.__new__(_Moments)
        result.draws, result.total = self.draws, self.total
        for name in ("count", "sum", "means", "between", "within"):
            setattr(result, name, getattr(self, name) + sign * getattr(other, name))
        return result

    def covariances(self, centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """B and Σ; about a known `centre` if one is given, else about the own mean."""
        if centre is None:
            means = (self.means - torch.outer(self.sum, self.sum) / self.count) / (self.count - 1)
        else:
            cross = torch.outer(self.sum, centre)
            means = (self.means - cross - cross.T) / self.count + torch.outer(centre, centre)
        kinds = self.total // self.draws
        B = means - self.between / (self.count * kinds * (kinds - 1))
        return B, means + (self.draws * self.between + self.within) / (self.count * self.total)


def canonical_correlations(
    views: Tensor, draws: int = 1, *, folds: int = FOLDS, resamples: int = RESAMPLES, seed: int = 0
) -> CanonicalCorrelations:
    """
    k of B̂ and Σ̂, corrected for the number of images, with 95 % intervals.

    The sample's k are the extremes over all directions, so they spread too wide, the more so the larger p / n; the k of
    a direction found in one part of the images and measured in another spreads too little. The estimate is their
    average, which is right to first order in 1 / n where k are apart. The interval is a bootstrap over images with
    directions held (eigenvalues do not feel their change to first order), widened by the gap between the two.
    Plain percentiles of bootstrapped k would lie above the sample's, which lie above the truth already.

    Args:
        views (`Tensor`): `(n, v, p)`, p well below n: reduce larger ones to their leading principal directions first.
        draws (`int`, *optional*, defaults to 1): As of [`StreamingViewCovariance`].
        folds (`int`, *optional*, defaults to 10): Parts that are left out in turn.
        resamples (`int`, *optional*, defaults to 500): Bootstrap samples of images.
        seed (`int`, *optional*, defaults to 0): Of folds and bootstrap.

    Raises:
        ValueError: fewer than 4 images, NaN, too few views, or views that do not vary.
    """
    check_views(views, draws)
    if len(views) < 4:
        raise ValueError(f"intervals need at least 4 images, got {len(views)}: pass more")
    generator = np.random.default_rng(seed)
    centre = views.double().mean((0, 1))
    _, Sigma = _Moments(views - centre, draws).covariances()
    variances, axes = torch.linalg.eigh(Sigma)
    kept = variances > max(float(variances[-1]) * _TOLERANCE, 0.0)
    if not bool(kept.any()):
        raise ValueError("all views are equal: the images are constant, or the recipe erases them")
    whiten = axes[:, kept] / variances[kept].sqrt()
    white = (views.double() - centre) @ whiten

    parts = torch.from_numpy(generator.permutation(len(views)) % min(folds, len(views)))
    moments = [_Moments(white[parts == part], draws) for part in range(int(parts.max()) + 1)]
    everything = moments[0]
    for part in moments[1:]:
        everything = everything.combined(part, 1)
    sample, vectors = torch.linalg.eigh(everything.covariances()[0])
    sample, vectors = sample.flip(0), vectors.flip(1)
    held_out = _held_out(everything, moments)
    values, order = ((sample + held_out) / 2).sort(descending=True)
    sample, held_out, vectors = sample[order], held_out[order], vectors[:, order]
    gap = (sample - held_out).abs()

    numbers = torch.from_numpy(generator.multinomial(len(views), np.full(len(views), 1 / len(views)), resamples))
    below, above = _bootstrap(white @ vectors, draws, numbers.double())
    low = values - (below.square() + gap.square()).sqrt()
    high = values + (above.square() + gap.square()).sqrt()
    clipped = [part.clamp(0, 1) for part in (values, low, high)]
    return CanonicalCorrelations(*clipped, sample, (whiten @ vectors).T, Sigma)


def _held_out(everything: _Moments, moments: list[_Moments]) -> Tensor:
    """k in the i-th direction of all images but some, measured on those, over all parts."""
    identity = torch.eye(len(everything.sum), dtype=torch.float64)
    survives = varies = 0.0
    for part in moments:
        rest = everything.combined(part, -1)
        B, Sigma = rest.covariances()
        factor = torch.linalg.cholesky(Sigma + _RIDGE * identity)
        half = torch.linalg.solve_triangular(factor, B, upper=False)
        core = torch.linalg.solve_triangular(factor, half.T, upper=False)
        vectors = torch.linalg.eigh((core + core.T) / 2).eigenvectors.flip(1)
        directions = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
        B, Sigma = part.covariances(rest.sum / rest.count)
        survives = survives + part.count * (directions * (B @ directions)).sum(0)
        varies = varies + part.count * (directions * (Sigma @ directions)).sum(0)
    return survives / varies


def _bootstrap(views: Tensor, draws: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """
    How far resampling the images moves k in fixed directions: distances `(r,)` to the two quantiles.

    Args:
        views (`Tensor`): `(n, v, r)`, along the directions.
        draws (`int`): As of [`StreamingViewCovariance`].
        numbers (`Tensor`): `(resamples, n)`, how often each image is in each sample.
    """
    means, between, within = contrasts(views, draws)
    between, within = between.square().sum(1), within.square().sum(1)
    total = views.shape[1]
    kinds, count = total // draws, len(views)

    def correlations(weights: Tensor) -> Tensor:
        spread = (weights @ means.square() / count - (weights @ means / count).square()) * (count / (count - 1))
        survives = spread - weights @ between / (count * kinds * (kinds - 1))
        return survives / (spread + weights @ (draws * between + within) / (count * total))

    levels = torch.tensor(_QUANTILES, dtype=views.dtype)
    below, above = torch.quantile(correlations(numbers), levels, dim=0)
    centre = correlations(torch.ones(1, count, dtype=views.dtype))[0]
    return (centre - below).clamp(min=0), (above - centre).clamp(min=0)
