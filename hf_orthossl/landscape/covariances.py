"""Covariances of augmented views, split without bias into what augmentation leaves and what it moves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..spectra.covariance import MAX_DIM, StreamingCovariance

# Variance, relative to the squared mean, that float32 rounding alone makes.
_CONSTANT = 1e-12


@dataclass
class ViewCovariances:
    """
    Σ = B + C, estimated without bias from views of images.

    Attributes:
        B (`Tensor`): `(D, D)`, covariance of two views of one image: what survives augmentation. Being unbiased, the
            estimate has negative eigenvalues where the truth is near zero; [`~ViewCovariances.positive`] cuts them.
        Sigma (`Tensor`): `(D, D)`, covariance of views.
        mean (`Tensor`): `(D,)`, mean of views.
        num_images (`int`): n.
        num_views (`int`): v, views per image.
        shrinkage (`float`): Ledoit–Wolf intensity in [0, 1], by which [`~ViewCovariances.shrunk`] shrinks.
    """

    num_images: int
    num_views: int
    shrinkage: float
    B: Tensor = field(repr=False)
    Sigma: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)

    @property
    def C(self) -> Tensor:
        """`(D, D)`, covariance of views within an image: what augmentation moves."""
        return self.Sigma - self.B

    def positive(self) -> tuple[Tensor, float]:
        """
        B without its negative part: the nearest positive semi-definite matrix in Frobenius norm.

        Returns:
            `(D, D)` and the share Σ|negative eigenvalues| / Σ|eigenvalues| that was cut, in [0, 1].
        """
        values, vectors = torch.linalg.eigh(self.B)
        total = values.abs().sum()
        cut = float(-values.clamp(max=0).sum() / total) if total > 0 else 0.0
        return (vectors * values.clamp(min=0)) @ vectors.T, cut

    def shrunk(self) -> "ViewCovariances":
        """
        B and Σ shrunk towards multiples of the identity that keep their traces; for n not far above D.

        Σ becomes (1 − s)Σ + s·tr(Σ)/D·I with s the `shrinkage`, and B likewise with its own trace, so that Σ = B + C
        still holds. Directions of little variance move towards the mean k. Source: Ledoit & Wolf (Journal of
        Multivariate Analysis 2004), section 3, with images for observations.
        """

        def shrink(matrix: Tensor) -> Tensor:
            identity = torch.eye(len(matrix), dtype=matrix.dtype)
            return (1 - self.shrinkage) * matrix + self.shrinkage * matrix.trace() / len(matrix) * identity

        return ViewCovariances(
            self.num_images, self.num_views, self.shrinkage, shrink(self.B), shrink(self.Sigma), self.mean
        )


def contrasts(views: Tensor, draws: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """
    Views of each image in orthogonal parts: their mean, how kinds of view differ, how draws of one kind differ.

    Args:
        views (`Tensor`): `(n, v, D)`, draw after draw, each with one view of every kind.
        draws (`int`, *optional*, defaults to 1): R; `v = R·T` for T kinds.

    Returns:
        means `(n, D)`; `(n, T − 1, D)` with squares that sum to Σ_t (m_t − m)², m_t the mean of kind t over draws;
        `(n, T(R − 1), D)` with squares that sum to Σ_t,r (x_tr − m_t)².
    """
    count, total, dim = views.shape
    kinds = total // draws
    grid = views.reshape(count, draws, kinds, dim)
    per_kind = grid.mean(1)
    between = torch.einsum("ct,ntd->ncd", _helmert(kinds).to(views), per_kind)
    within = torch.einsum("cr,nrtd->nctd", _helmert(draws).to(views), grid).flatten(1, 2)
    return per_kind.mean(1), between, within


class StreamingViewCovariance:
    """
    B and Σ of a stream of views: memory O(D²) whatever the number of images, float64.

    With m the mean of an image's v views, Cov(m) has the expectation B + C/v. So B̂ = Ŝ_m − Ĉ/v and Σ̂ = B̂ + Ĉ, where
    Ŝ_m is divided by n − 1 and the within-image Ĉ by v − 1: both unbiased for any n ≥ 2, v ≥ 2.

    Where a recipe makes views of several kinds, a training pair holds two different ones. Then B̂ = Ŝ_m − Ĉ_kinds/T,
    with Ĉ_kinds the covariance of the T kinds' means within an image, which averages over such pairs alone.

    Args:
        dim (`int`): D.
        draws (`int`, *optional*, defaults to 1): How often the recipe was drawn for each image. Views come draw after
            draw; at 1 all views of an image are of different kinds, or all of one (which needs no other formula).

    Example:

    ```python
    >>> covariance = StreamingViewCovariance(3072)
    >>> for views in batches:  # (B, v, 3072)
    ...     covariance.update(views)
    >>> estimate = covariance.covariances()
    >>> LinearLandscape(estimate.positive()[0], estimate.Sigma)
    ```
    """

    def __init__(self, dim: int, draws: int = 1):
        check_dimension(dim)
        self.dim, self.draws, self.num_views = dim, draws, 0
        self._means, self._between = StreamingCovariance(dim), StreamingCovariance(dim)
        self._within = StreamingCovariance(dim) if draws > 1 else None
        self._fourth = 0.0

    def update(self, views: Tensor) -> None:
        """
        Take in the views of a batch of images.

        Args:
            views (`Tensor`): `(B, v, D)`, the same v ≥ 2 every time.

        Raises:
            ValueError: another shape, fewer than 2 views, or NaN or infinity.
        """
        check_views(views, self.draws)
        if views.shape[2] != self.dim or self.num_views not in (0, views.shape[1]):
            raise ValueError(f"views must be (B, {self.num_views or 'v'}, {self.dim}), got {tuple(views.shape)}")
        self.num_views = views.shape[1]
        means, between, within = contrasts(views.detach().cpu().double(), self.draws)
        self._means.update(means)
        self._between.update(between.flatten(0, 1))
        if self._within is not None:
            self._within.update(within.flatten(0, 1))
        # The sum of ‖T_i‖² over images, T_i the mean outer product of an image's views about the mean so far.
        centred = views.detach().cpu().double() - self._means.mean
        self._fourth += float((centred @ centred.mT).square().sum()) / self.num_views**2

    def covariances(self) -> ViewCovariances:
        """
        The estimate from all views seen.

        Raises:
            ValueError: fewer than 2 images, or all views are equal.
        """
        count, total = self._means.count, self.num_views
        if count < 2:
            raise ValueError(f"a covariance of images needs at least 2 of them, got {count}")
        kinds = total // self.draws
        between, means = self._between.second_moment() / count, self._means.covariance()
        Sigma = means + between * (self.draws / total)
        if self._within is not None:
            Sigma += self._within.second_moment() / (count * total)
        if Sigma.trace() <= _CONSTANT * self._means.mean.square().sum():
            raise ValueError("all views are equal: the images are constant, or the recipe erases them")
        B = means - between / (kinds * (kinds - 1))
        return ViewCovariances(count, total, self._intensity(Sigma, count), B, Sigma, self._means.mean)

    def _intensity(self, Sigma: Tensor, count: int) -> float:
        norm = float(Sigma.square().sum())
        noise = max(self._fourth / count - norm, 0.0) / count
        spread = norm - float(Sigma.trace()) ** 2 / self.dim
        return min(noise / spread, 1.0) if spread > 1e-12 * norm else 1.0


def view_covariances(batches: Iterable[Tensor], draws: int = 1) -> ViewCovariances:
    """
    B̂, Ĉ and Σ̂ of batches of views `(B, v, D)`, one pass, memory O(D²).

    Args:
        batches (iterable of `Tensor`): As [`StreamingViewCovariance.update`] takes them.
        draws (`int`, *optional*, defaults to 1): As of [`StreamingViewCovariance`].

    Raises:
        ValueError: no batch, one image, one view, constant images, NaN, or D above 8,192.
    """
    covariance = None
    for views in batches:
        if covariance is None:
            check_views(views, draws)
            covariance = StreamingViewCovariance(views.shape[2], draws)
        covariance.update(views)
    if covariance is None:
        raise ValueError("batches is empty: a covariance of images needs at least 2 of them")
    return covariance.covariances()


def check_views(views: Tensor, draws: int) -> None:
    """Raises `ValueError` unless views are `(B, v, D)`, finite, and of two kinds at least."""
    if views.ndim != 3 or 0 in views.shape:
        raise ValueError(f"views must be (B, v, D) and not empty, got the shape {tuple(views.shape)}")
    if views.shape[1] < 2 or views.shape[1] % draws or views.shape[1] // draws < 2:
        raise ValueError(
            f"an image has {views.shape[1]} views in {draws} draws: what augmentation moves shows in 2 views or more"
        )
    if not torch.isfinite(views).all():
        raise ValueError("the views hold NaN or infinity: check the images, and the encoder's weights if there is one")


def check_dimension(dim: int) -> None:
    """Raises `ValueError` for views of more dimensions than a covariance can be formed of."""
    if dim > MAX_DIM:
        raise ValueError(
            f"views have D = {dim:,} dimensions and a covariance takes D² numbers: at most {MAX_DIM:,} fit; pass a "
            f"smaller image_size (up to {int((MAX_DIM / 3) ** 0.5)}), or an encoder whose features are fewer"
        )


def _helmert(size: int) -> Tensor:
    """Orthonormal rows `(size − 1, size)` that sum to zero."""
    rows = torch.zeros(size - 1, size, dtype=torch.float64)
    for i in range(1, size):
        rows[i - 1, :i] = 1 / (i * (i + 1)) ** 0.5
        rows[i - 1, i] = -((i / (i + 1)) ** 0.5)
    return rows


# Makes the views of a batch of images, `(images, seed) -> [(B, 3, H, W), …]`.
ViewMaker = Callable[[Tensor, int], Sequence[Tensor]]


@torch.no_grad()
def view_batches(
    images: Tensor | Iterable[Tensor],
    views: ViewMaker,
    *,
    draws: int = 1,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Iterator[Tensor]:
    """
    Batches `(B, draws · T, D)` of views of images, drawn `draws` times from a pipeline of T views.

    Args:
        images (`Tensor` or iterable of `Tensor`): `(n, 3, H, W)`, or batches of it.
        views (`Callable`): `views(images, seed)` returns T tensors `(B, 3, h, w)`, as
            [`~hf_orthossl.data.Views`] does.
        draws (`int`, *optional*, defaults to 1): Calls per batch, with seeds of their own that follow from `seed`.
        features (`Callable`, *optional*): Maps a view to features `(B, D)`; defaults to its pixels.
        seed (`int`, *optional*, defaults to 0): The same seed gives the same views.
        batch_size (`int`, *optional*, defaults to 256): Images per batch, where `images` is one tensor.

    Raises:
        ValueError: views differ in size where pixels are compared.
    """
    if isinstance(images, Tensor):
        images = images.split(batch_size)
    for number, batch in enumerate(images):
        made = []
        for draw in range(draws):
            hashed = np.random.SeedSequence((seed, number, draw)).generate_state(1, np.uint64)[0]
            made += [view.flatten(1) if features is None else features(view) for view in views(batch, int(hashed))]
        if len({view.shape for view in made}) > 1:
            sizes = sorted({view.shape[1] for view in made})
            raise ValueError(f"views differ in size ({sizes} pixels): compare them in an encoder's features")
        yield torch.stack([view.float().cpu() for view in made], 1)
