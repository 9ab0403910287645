"""Unbiased covariances of augmented views, split into the part that augmentation preserves and that it changes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..arguments import ArrayLike, as_int, as_tensor
from ..messages import describe
from ..spectra.covariance import MAX_DIM, StreamingCovariance

# Variance, relative to the squared mean, that is caused by float32 rounding.
_CONSTANT = 1e-12
# Makes the views of a batch of images, `(images, seed) -> [(B, C, H, W), …]`.
ViewMaker = Callable[[Tensor, int], Sequence[Tensor]]


class EqualViewsError(ValueError):
    """Raised if all views of all images are equal, so that no direction varies; `images` and `dim` count both."""

    def __init__(self, images: int, dim: int):
        super().__init__("all views are equal: the images are constant, or the recipe erases them")
        self.images, self.dim = images, dim


@dataclass
class ViewCovariances:
    """Unbiased estimate of Σ = B + C from views of images.

    Attributes:
        B (`Tensor`): Covariance of two views of one image, shape `(D, D)`: what survives augmentation. Being unbiased,
            the estimate has negative eigenvalues if the true ones are near zero; [`~ViewCovariances.positive`] removes
            them.
        Sigma (`Tensor`): Covariance of views, shape `(D, D)`.
        mean (`Tensor`): Mean of views, shape `(D,)`.
        num_images (`int`): n.
        num_views (`int`): v, views per image.
        shrinkage (`float`): Ledoit–Wolf intensity in [0, 1], used by [`~ViewCovariances.shrunk`].
    """

    num_images: int
    num_views: int
    shrinkage: float
    B: Tensor = field(repr=False)
    Sigma: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)

    @property
    def C(self) -> Tensor:
        """Return the covariance of views within an image, shape `(D, D)`: what augmentation changes."""
        return self.Sigma - self.B

    def positive(self) -> tuple[Tensor, float]:
        """Return B without its negative part: the nearest positive semi-definite matrix in Frobenius norm.

        Returns:
            `tuple[Tensor, float]`: The matrix `(D, D)`, and the share Σ|negative eigenvalues| / Σ|eigenvalues| in
            [0, 1] that was removed.
        """
        values, vectors = torch.linalg.eigh(self.B)
        total = values.abs().sum()
        cut = float(-values.clamp(max=0).sum() / total) if total > 0 else 0.0
        return (vectors * values.clamp(min=0)) @ vectors.T, cut

    def shrunk(self) -> "ViewCovariances":
        """Return B and Σ shrunk towards multiples of the identity that keep their traces, for n not far above D.

        Σ becomes (1 − s)Σ + s·tr(Σ)/D·I with s the `shrinkage`, and B likewise with its own trace, so that Σ = B + C
        still holds. Directions of little variance move towards the mean k.

        Source:
            Ledoit & Wolf (Journal of Multivariate Analysis 2004), section 3, with images as observations.
        """

        def shrink(matrix: Tensor) -> Tensor:
            identity = torch.eye(len(matrix), dtype=matrix.dtype)
            return (1 - self.shrinkage) * matrix + self.shrinkage * matrix.trace() / len(matrix) * identity

        return ViewCovariances(
            self.num_images, self.num_views, self.shrinkage, shrink(self.B), shrink(self.Sigma), self.mean
        )


class StreamingViewCovariance:
    """Accumulate B and Σ of a stream of views: memory O(D²) for any number of images, float64.

    With m the mean of an image's v views, Cov(m) has the expectation B + C/v. So B̂ = Ŝ_m − Ĉ/v and Σ̂ = B̂ + Ĉ, where
    Ŝ_m is divided by n − 1 and the within-image Ĉ by v − 1: both unbiased for any n ≥ 2, v ≥ 2.

    If a recipe makes views of several kinds, a training pair consists of two different ones. Then B̂ = Ŝ_m − Ĉ_kinds/T,
    with Ĉ_kinds the covariance of the T kinds' means within an image, which averages over such pairs only.

    Args:
        dim (`int`): D.
        draws (`int`, defaults to 1): Number of draws of the recipe per image. Views are ordered by draw; with 1 all
            views of an image are of different kinds, or all of the same (which needs no other formula).

    Raises:
        ValueError: `dim` is above 8,192, or `draws` below 1.

    Example:
        >>> covariance = StreamingViewCovariance(3072)
        >>> for views in batches:  # (B, v, 3072)
        ...     covariance.update(views)
        >>> estimate = covariance.covariances()
        >>> LinearLandscape(estimate.positive()[0], estimate.Sigma)
    """

    def __init__(self, dim: int, draws: int = 1) -> None:
        self.dim, self.draws = as_int("dim", dim, at_least=1), as_int("draws", draws, at_least=1)
        check_dimension(self.dim)
        self.num_views = 0
        self._means, self._between = StreamingCovariance(self.dim), StreamingCovariance(self.dim)
        self._within = StreamingCovariance(self.dim) if self.draws > 1 else None
        self._fourth = 0.0

    def update(self, views: ArrayLike) -> None:
        """Add the views of a batch of images.

        Args:
            views (`Tensor` or array): Shape `(B, v, D)`, with the same v ≥ 2 in every call.

        Raises:
            TypeError: `views` is not an array of numbers.
            ValueError: The shape is wrong, v is below 2, or `views` contains NaN or infinity.
        """
        batch = check_views(views, self.draws)
        if batch.shape[2] != self.dim or self.num_views not in (0, batch.shape[1]):
            raise ValueError(
                f"views has shape {tuple(batch.shape)}: pass (B, {self.num_views or 'v'}, {self.dim}) as before"
            )
        self.num_views = batch.shape[1]
        means, between, within = contrasts(batch.detach().cpu().double(), self.draws)
        self._means.update(means)
        self._between.update(between.flatten(0, 1))
        if self._within is not None:
            self._within.update(within.flatten(0, 1))
        # The sum of ‖T_i‖² over images, T_i the mean outer product of an image's views about the mean so far.
        centred = batch.detach().cpu().double() - self._means.mean
        self._fourth += float((centred @ centred.mT).square().sum()) / self.num_views**2

    def covariances(self) -> ViewCovariances:
        """Return the estimate from all views seen.

        Raises:
            ValueError: There were fewer than 2 images.
            EqualViewsError: All views are equal.
        """
        count, total = self._means.count, self.num_views
        if count < 2:
            raise ValueError(f"images must be at least 2 for a covariance, got {count}")
        kinds = total // self.draws
        between, means = self._between.second_moment() / count, self._means.covariance()
        Sigma = means + between * (self.draws / total)
        if self._within is not None:
            Sigma += self._within.second_moment() / (count * total)
        if Sigma.trace() <= _CONSTANT * self._means.mean.square().sum():
            raise EqualViewsError(count, self.dim)
        B = means - between / (kinds * (kinds - 1))
        return ViewCovariances(count, total, self._intensity(Sigma, count), B, Sigma, self._means.mean)

    def _intensity(self, Sigma: Tensor, count: int) -> float:
        norm = float(Sigma.square().sum())
        noise = max(self._fourth / count - norm, 0.0) / count
        spread = norm - float(Sigma.trace()) ** 2 / self.dim
        return min(noise / spread, 1.0) if spread > 1e-12 * norm else 1.0


def view_covariances(batches: Iterable[ArrayLike], draws: int = 1) -> ViewCovariances:
    """Return B̂, Ĉ and Σ̂ of batches of views, in one pass with memory O(D²).

    Args:
        batches (iterable of `Tensor` or array): Batches of views `(B, v, D)`, see
            [`StreamingViewCovariance.update`].
        draws (`int`, defaults to 1): Number of draws of the recipe per image, see [`StreamingViewCovariance`].

    Raises:
        TypeError: A batch is not an array of numbers.
        ValueError: There is no batch, only one image or one view, images are constant or not finite, or D exceeds
            8,192.

    Example:
        >>> estimate = view_covariances(view_batches(images, views))
        >>> LinearLandscape(estimate.positive()[0], estimate.Sigma)
    """
    covariance = None
    for views in batches:
        if covariance is None:
            covariance = StreamingViewCovariance(check_views(views, draws).shape[2], draws)
        covariance.update(views)
    if covariance is None:
        raise ValueError("batches is empty: a covariance needs at least 2 images")
    return covariance.covariances()


@torch.no_grad()
def view_batches(
    images: ArrayLike | Iterable[ArrayLike],
    views: ViewMaker,
    *,
    draws: int = 1,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Iterator[Tensor]:
    """Yield batches `(B, draws · T, D)` of views of images, drawn `draws` times from a pipeline of T views.

    Args:
        images (`Tensor`, array or iterable): Images `(n, C, H, W)`, or batches of them.
        views (`Callable`): `views(images, seed)` returns T tensors `(B, C, h, w)`, as [`~hf_orthossl.data.Views`] does.
        draws (`int`, defaults to 1): Calls per batch, each with a different seed derived from `seed`.
        features (`Callable`, *optional*): Maps a view to features `(B, D)`; defaults to its pixels.
        seed (`int`, defaults to 0): The same seed gives the same views.
        batch_size (`int`, defaults to 256): Images per batch, if `images` is one array.

    Raises:
        TypeError: `images` is neither an array nor batches, or `views` is not callable.
        ValueError: Views differ in size although their pixels are compared.
    """
    if not callable(views):
        raise TypeError(f"views must be callable as views(images, seed), got {describe(views)}: pass Views(…)")
    for number, batch in enumerate(image_batches(images, batch_size)):
        made = []
        for draw in range(draws):
            hashed = np.random.SeedSequence((seed, number, draw)).generate_state(1, np.uint64)[0]
            made += [view.flatten(1) if features is None else features(view) for view in views(batch, int(hashed))]
        if len({view.shape for view in made}) > 1:
            sizes = sorted({view.shape[1] for view in made})
            raise ValueError(f"views differ in size ({sizes} pixels): compare them in an encoder's features")
        yield torch.stack([view.float().cpu() for view in made], 1)


def image_batches(images: ArrayLike | Iterable[ArrayLike], batch_size: int) -> Iterator[Tensor]:
    """Yield images in batches `(B, C, H, W)`.

    Args:
        images (`Tensor`, array or iterable): Images `(n, C, H, W)`, or batches of them.
        batch_size (`int`): Images per batch, if `images` is one array.

    Raises:
        TypeError: `images` is neither an array nor batches.
        ValueError: An array does not have four dimensions.
    """
    if isinstance(images, Tensor | np.ndarray):
        yield from as_tensor("images", images, 4, shape="(n, C, H, W)", finite=False).split(batch_size)
        return
    if not isinstance(images, Iterable) or isinstance(images, str | bytes | dict):
        raise TypeError(
            f"images must be a tensor or array (n, C, H, W), or batches of them, got {describe(images)}: decode files "
            "first, as ImageDataset does"
        )
    for batch in images:
        yield as_tensor("images", batch, 4, shape="batches (B, C, H, W)", finite=False)


def contrasts(views: Tensor, draws: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Split the views of each image into orthogonal parts: their mean, differences of kinds, differences of draws.

    Args:
        views (`Tensor`): Shape `(n, v, D)`, draw after draw, each with one view of every kind.
        draws (`int`, defaults to 1): R; `v = R·T` for T kinds.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: Means `(n, D)`; `(n, T − 1, D)` with squares that sum to Σ_t (m_t − m)², m_t
        the mean of kind t over draws; `(n, T(R − 1), D)` with squares that sum to Σ_t,r (x_tr − m_t)².
    """
    count, total, dim = views.shape
    kinds = total // draws
    grid = views.reshape(count, draws, kinds, dim)
    per_kind = grid.mean(1)
    between = torch.einsum("ct,ntd->ncd", _helmert(kinds).to(views), per_kind)
    within = torch.einsum("cr,nrtd->nctd", _helmert(draws).to(views), grid).flatten(1, 2)
    return per_kind.mean(1), between, within


def check_views(views: ArrayLike, draws: int) -> Tensor:
    """Return views `(B, v, D)` as a tensor.

    Raises:
        TypeError: `views` is not an array of numbers.
        ValueError: `views` has another shape, is empty, not finite, or has fewer than two views per draw.
    """
    batch = as_tensor("views", views, 3, shape="(B, v, D)", finite=False)
    if 0 in batch.shape:
        raise ValueError(f"views has shape {tuple(batch.shape)}: pass (B, v, D) with at least one image")
    if batch.shape[1] < 2 or batch.shape[1] % draws or batch.shape[1] // draws < 2:
        raise ValueError(
            f"views must contain at least 2 views of each image per draw, got {batch.shape[1]} in {draws} draws: one "
            "view does not show what augmentation changes"
        )
    if not torch.isfinite(batch).all():
        raise ValueError("views holds NaN or infinity: check the images, and the encoder's weights if there is one")
    return batch


def check_dimension(dim: int, channels: int = 3) -> None:
    """Check that a covariance of `dim` dimensions, of pixels with some channels, fits in memory.

    Raises:
        ValueError: `dim` is above 8,192.
    """
    if dim > MAX_DIM:
        raise ValueError(
            f"views have D = {dim:,} dimensions, but a covariance of D² numbers fits up to {MAX_DIM:,}: pass a "
            f"smaller image_size (up to {int((MAX_DIM / channels) ** 0.5)}), or an encoder with fewer features"
        )


def _helmert(size: int) -> Tensor:
    """Return orthonormal rows `(size − 1, size)` that sum to zero."""
    rows = torch.zeros(size - 1, size, dtype=torch.float64)
    for i in range(1, size):
        rows[i - 1, :i] = 1 / (i * (i + 1)) ** 0.5
        rows[i - 1, i] = -((i / (i + 1)) ** 0.5)
    return rows
