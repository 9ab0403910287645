"""Canonical correlations between views, corrected for the number of images, with intervals."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..arguments import ArrayLike, as_int
from .covariances import check_views, contrasts

FOLDS = 10
RESAMPLES = 500
# 95 % quantile of a normal distribution, two-sided.
_QUANTILES = (0.025, 0.975)
# Directions in which the variance of views is below this share of the largest are dropped.
_TOLERANCE = 1e-9
# In whitened coordinates; bounds the filter of a direction that occurs in few images when these are held out.
_RIDGE = 1e-2


@dataclass
class CanonicalCorrelations:
    """k between two views of an image, estimated from n images, and covariances that have exactly these k.

    Attributes:
        values (`Tensor`): k corrected for the number of images, shape `(r,)`, descending, in [0, 1].
        low (`Tensor`): Lower ends of the 95 % intervals, shape `(r,)`.
        high (`Tensor`): Upper ends of the 95 % intervals, shape `(r,)`.
        sample (`Tensor`): k of the same directions in the sample, shape `(r,)`, which spread too widely: the large ones
            are too large, and some of the small ones negative.
        filters (`Tensor`): Rows w that extract the directions, wΣwᵀ = 1, shape `(r, p)`.
        Sigma (`Tensor`): Unbiased covariance of views, shape `(p, p)`.
    """

    values: Tensor
    low: Tensor
    high: Tensor
    sample: Tensor
    filters: Tensor = field(repr=False)
    Sigma: Tensor = field(repr=False)

    def of_equal_images(self) -> "CanonicalCorrelations":
        """Return the same directions with k = 0, which is exact if all images are equal.

        Two views of one image then differ as much as any two.
        """
        none = torch.zeros_like(self.values)
        return replace(self, values=none, low=none, high=none, sample=none)

    @property
    def patterns(self) -> Tensor:
        """Return the directions as inputs, Σw, shape `(r, p)`; the sum of their outer products is Σ."""
        return self.filters @ self.Sigma

    def B(self, values: Tensor) -> Tensor:
        """Return the B `(p, p)` along the same directions whose canonical correlations are `values` `(r,)`."""
        patterns = self.patterns
        return patterns.T @ (values[:, None] * patterns)


class _Moments:
    """Sums over images that determine B and Σ; the sums of disjoint sets of images are additive."""

    def __init__(self, views: Tensor, draws: int):
        means, between, within = (part.double() for part in contrasts(views, draws))
        self.count, self.draws, self.total = len(views), draws, views.shape[1]
        self.sum, self.means = means.sum(0), means.T @ means
        self.between, self.within = (rows.flatten(0, 1).T @ rows.flatten(0, 1) for rows in (between, within))

    def combined(self, other: "_Moments", sign: int) -> "_Moments":
        """Return the sums with those of `other` added (`sign` 1) or subtracted (−1)."""
        result = object.__new__(_Moments)
        result.draws, result.total = self.draws, self.total
        for name in ("count", "sum", "means", "between", "within"):
            setattr(result, name, getattr(self, name) + sign * getattr(other, name))
        return result

    def covariances(self, centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return B and Σ about a known `centre`, or else about the mean of these images."""
        if centre is None:
            means = (self.means - torch.outer(self.sum, self.sum) / self.count) / (self.count - 1)
        else:
            cross = torch.outer(self.sum, centre)
            means = (self.means - cross - cross.T) / self.count + torch.outer(centre, centre)
        kinds = self.total // self.draws
        B = means - self.between / (self.count * kinds * (kinds - 1))
        return B, means + (self.draws * self.between + self.within) / (self.count * self.total)


def canonical_correlations(
    views: ArrayLike, draws: int = 1, *, folds: int = FOLDS, resamples: int = RESAMPLES, seed: int = 0
) -> CanonicalCorrelations:
    """Estimate k of B and Σ, corrected for the number of images, with 95 % intervals.

    The sample's k are extremes over all directions and spread too widely, increasingly with p / n; the k of directions
    that are found in one part of the images and measured in another spread too little. The estimate is their
    average, which is right to first order in 1 / n if the k are distinct. The interval is a bootstrap over images with
    fixed directions (to first order, eigenvalues do not depend on their change), widened by the gap between the two.
    Plain percentiles of bootstrapped k would lie above the sample's, which already lie above the truth.

    Args:
        views (`Tensor` or array): Shape `(n, v, p)`, p well below n: reduce larger views to their leading principal
            directions first.
        draws (`int`, defaults to 1): Number of draws of the recipe per image, see [`StreamingViewCovariance`].
        folds (`int`, defaults to 10): The number of parts that are held out in turn, at least 2.
        resamples (`int`, defaults to 500): The number of bootstrap samples of images.
        seed (`int`, defaults to 0): The seed of folds and bootstrap.

    Raises:
        TypeError: `views` is not an array of numbers.
        ValueError: There are fewer than 4 images or too few views, views do not vary, or they are not finite.

    Example:
        >>> views = torch.cat(list(view_batches(images, pipeline, draws=2)))  # (n, 4, p)
        >>> canonical_correlations(views, draws=2).values
    """
    batch = check_views(views, draws)
    folds, resamples = as_int("folds", folds, at_least=2), as_int("resamples", resamples, at_least=1)
    if len(batch) < 4:
        raise ValueError(f"images must be at least 4 for intervals, got {len(batch)}: pass more")
    generator = np.random.default_rng(seed)
    centre = batch.double().mean((0, 1))
    _, Sigma = _Moments(batch - centre, draws).covariances()
    variances, axes = torch.linalg.eigh(Sigma)
    varies = variances > max(float(variances[-1]) * _TOLERANCE, 0.0)
    if not bool(varies.any()):
        raise ValueError("all views are equal: the images are constant, or the recipe erases them")
    whiten = axes[:, varies] / variances[varies].sqrt()
    white = (batch.double() - centre) @ whiten

    parts = torch.from_numpy(generator.permutation(len(batch)) % min(folds, len(batch)))
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

    counts = torch.from_numpy(generator.multinomial(len(batch), np.full(len(batch), 1 / len(batch)), resamples))
    below, above = _bootstrap(white @ vectors, draws, counts.double())
    return CanonicalCorrelations(
        values=values.clamp(0, 1),
        low=(values - (below.square() + gap.square()).sqrt()).clamp(0, 1),
        high=(values + (above.square() + gap.square()).sqrt()).clamp(0, 1),
        sample=sample,
        filters=(whiten @ vectors).T,
        Sigma=Sigma,
    )


def _held_out(everything: _Moments, moments: list[_Moments]) -> Tensor:
    """Return k `(r,)` in the i-th direction of all images but one part, measured on that part; the mean over parts."""
    identity = torch.eye(len(everything.sum), dtype=torch.float64)
    survives, varies = torch.zeros_like(everything.sum), torch.zeros_like(everything.sum)
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


def _bootstrap(views: Tensor, draws: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bootstrap distances `(r,)` of k in fixed directions to its lower and upper quantile.

    Args:
        views (`Tensor`): Views along the directions, shape `(n, v, r)`.
        draws (`int`): Number of draws of the recipe per image.
        counts (`Tensor`): Number of occurrences of each image in each sample, shape `(resamples, n)`.
    """
    means, between, within = contrasts(views, draws)
    between, within = between.square().sum(1), within.square().sum(1)
    total = views.shape[1]
    kinds, size = total // draws, len(views)

    def correlations(weights: Tensor) -> Tensor:
        spread = (weights @ means.square() / size - (weights @ means / size).square()) * (size / (size - 1))
        survives = spread - weights @ between / (size * kinds * (kinds - 1))
        return survives / (spread + weights @ (draws * between + within) / (size * total))

    levels = torch.tensor(_QUANTILES, dtype=views.dtype)
    below, above = torch.quantile(correlations(counts), levels, dim=0)
    centre = correlations(torch.ones(1, size, dtype=views.dtype))[0]
    return (centre - below).clamp(min=0), (above - centre).clamp(min=0)
