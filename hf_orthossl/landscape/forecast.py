"""Forecast, before training, which directions a linear encoder keeps for given images and augmentations."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from ..arguments import ArrayLike, as_int, as_tensor
from ..messages import describe
from .correlations import CanonicalCorrelations, canonical_correlations
from .covariances import EqualViewsError, ViewMaker, image_batches, view_batches, view_covariances
from .forecast_report import ClassFate, Direction, Forecast, LeftOut
from .label_signal import LabelSignal
from .landscape import LinearLandscape
from .minimum import Minimum
from .objective import Objective

# Maximum number of principal directions of views in which k is estimated, and the images needed for each of them.
MAX_DIM = 256
_IMAGES_PER_DIRECTION = 5
_BATCH = 256
# Variance, as a share of the largest, that float32 pixels resolve.
_RESOLVED = 1e-8
# InfoNCE has no minimum along a direction that augmentation does not change at all.
_HIGHEST = 1 - 1e-6
_OVERSAMPLED, _ITERATIONS = 32, 6
_SHOWN = 8
_EQUAL_IMAGES = (
    "all images are equal, so that two views of one image have no more in common than views of two: k is 0 in every "
    "direction, and whatever a representation keeps, it cannot tell images apart"
)
_EQUAL_VIEWS = (
    "all views of all images are equal: the images are constant and equal, the recipe erases them, or the encoder "
    "gives them the same features; a representation of them has no variance, whatever the loss"
)
_EXAMPLES = 3
_SETTINGS = ("loss", "alpha", "temperature", "weight_decay", "gamma")

# Wraps batches in a progress bar, like `tqdm`: `(batches, title) -> batches`.
Progress = Callable[[Iterable[ArrayLike], str], Iterable[ArrayLike]]


def forecast(
    images: ArrayLike | Iterable[ArrayLike],
    views: ViewMaker,
    *,
    loss: str = "quartic",
    alpha: float = 1.0,
    temperature: float = 1.0,
    weight_decay: float = 0.0,
    gamma: float = 0.0,
    dim: int | None = None,
    views_per_image: int = 4,
    same_kind: bool = False,
    variants: Mapping[str, ViewMaker] | None = None,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    max_dim: int = MAX_DIM,
    seed: int = 0,
    progress: Progress | None = None,
) -> Forecast:
    """Predict which directions a linear encoder keeps of images under augmentations, before training.

    Estimates B and Σ of the views, reduces them to the leading principal directions (at most a fifth as many as there
    are images), corrects the canonical correlations for the number of images, and finds the minimum of the chosen loss.
    Features are assumed to be centred, for example by a bias or batch norm. Images that are all equal, and views that
    are, have a forecast too: complete collapse, which its notes explain.

    Args:
        images (`Tensor`, array or iterable): Images `(n, C, H, W)`, n ≥ 4, or batches of them that can be read several
            times, such as a list.
        views (`Callable`): `views(images, seed)` returns T tensors `(B, C, h, w)`, as [`~hf_orthossl.data.Views`] does.
        loss (`str`, defaults to `"quartic"`): A loss of [`Objective`].
        alpha (`float`, defaults to 1.0): The weight of the alignment, see [`Objective`].
        temperature (`float`, defaults to 1.0): The temperature, see [`Objective`].
        weight_decay (`float`, defaults to 0.0): The weight decay, see [`Objective`].
        gamma (`float`, defaults to 0.0): The weight of the orthogonality penalty, see [`Objective`].
        dim (`int`, *optional*): The number of outputs of the encoder, at most D; defaults to the number of directions.
        views_per_image (`int`, defaults to 4): v, a multiple of T, at least 2.
        same_kind (`bool`, defaults to `False`): Whether all views of a call are of the same kind, so that any two
            form a pair. Otherwise pairs consist of two different kinds, which is correct in both cases but uses fewer
            pairs.
        variants (mapping of `str` to `Callable`, *optional*): Further pipelines of T views, by the augmentation that
            they leave out.
        labels (`Tensor` or array, *optional*): Class numbers from 0, −1 if unknown, shape `(n,)`. With them the
            forecast states which classes keep a direction.
        class_names (sequence of `str`, *optional*): The names of the classes, defaults to their numbers.
        features (`Callable`, *optional*): Maps a view to features `(B, D)`; defaults to its pixels.
        max_dim (`int`, defaults to 256): Maximum number of directions to reduce to.
        seed (`int`, defaults to 0): The seed of views, folds and bootstrap.
        progress (`Callable`, *optional*): `progress(batches, title)` returns the batches and shows how many were read.

    Returns:
        [`Forecast`]: The numbers, with `summary()`, `plot(path)` and `save(path)`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A setting is out of range, there are too few views or images, views are not finite, or D is too
            large.

    Example:
        >>> views = Views(get_recipe("digits"), 8)
        >>> result = forecast(images, views, loss="normalized", temperature=0.5, same_kind=True, labels=labels)
        >>> print(result.summary())
    """
    objective = Objective(loss, alpha=alpha, temperature=temperature, weight_decay=weight_decay, gamma=gamma)
    max_dim = as_int("max_dim", max_dim, at_least=1)
    dim = None if dim is None else as_int("dim", dim, at_least=1)
    batches = _repeatable(images)
    calls = _calls(batches, views, views_per_image)
    draws = 1 if same_kind or calls == views_per_image else calls

    def make(maker: ViewMaker, title: str) -> Iterable[Tensor]:
        shown = batches if progress is None else progress(batches, title)
        return view_batches(shown, maker, draws=calls, features=features, seed=seed)

    equal = _are_equal(batches)
    try:
        covariances = view_covariances(make(views, "covariances"), draws)
    except EqualViewsError as error:
        return _nothing(error, objective, dim, views_per_image)
    dimension, count = len(covariances.mean), covariances.num_images
    if dim is not None and dim > dimension:
        raise ValueError(f"dim must be at most D = {dimension}, the number of dimensions of the views, got {dim}")
    classes = None if labels is None or equal else _Classes.of(labels, count, class_names)
    variances, axes = _leading(covariances.Sigma, max(1, min(max_dim, dimension, count // _IMAGES_PER_DIRECTION)))
    basis, mean, total = axes.float(), covariances.mean.float(), float(covariances.Sigma.trace())
    del covariances, axes

    def estimate(maker: ViewMaker, title: str) -> tuple[CanonicalCorrelations, Tensor]:
        reduced = torch.cat([(batch - mean) @ basis for batch in make(maker, title)])
        estimated = canonical_correlations(reduced, draws, seed=seed)
        return estimated.of_equal_images() if equal else estimated, reduced.mean(1)

    correlations, points = estimate(views, "canonical correlations")
    landscape = _landscape(correlations, correlations.values)
    minimum = _minimum(landscape, objective, dim)
    unlimited = minimum if dim is None or dim >= landscape.rank else _minimum(landscape, objective, None)
    ends = [_landscape(correlations, k) for k in (correlations.low, correlations.high)]
    bounds = [None if gamma else _minimum(end, objective, dim).surviving for end in ends]
    # Numerical minima take a minute each, so compare augmentations without the penalty.
    plain = replace(objective, gamma=0.0)

    def left_out(name: str, estimated: CanonicalCorrelations) -> LeftOut:
        surviving = _minimum(_landscape(estimated, estimated.values), plain, dim).surviving
        return LeftOut(name, surviving, float(estimated.values.sum()))

    base = left_out("", correlations)
    others = [left_out(name, estimate(maker, f"without {name}")[0]) for name, maker in (variants or {}).items()]
    shares = correlations.patterns.square().sum(1) / total
    directions = _directions(correlations, shares, unlimited, points)
    endangered, safest = _endangered(directions), directions[:_SHOWN]
    shown = [direction.index for direction in (*endangered, *safest)]
    signal = None if classes is None else classes.signal(landscape, points, minimum)
    return Forecast(
        settings={key: asdict(objective)[key] for key in _SETTINGS} | {"dim": dim},
        num_images=count,
        views_per_image=views_per_image,
        dimension=dimension,
        directions=landscape.rank,
        variance_share=float(variances.sum()) / total,
        correlations=correlations.values.tolist(),
        low=correlations.low.tolist(),
        high=correlations.high.tolist(),
        negative=int((correlations.sample < 0).sum()),
        eigenvalues=minimum.eigenvalues.tolist(),
        surviving=minimum.surviving,
        surviving_low=bounds[0],
        surviving_high=bounds[1],
        cut_by_dim=max(unlimited.surviving - minimum.surviving, 0),
        threshold=unlimited.critical_correlation,
        dead_variance=float(shares[~unlimited.alive].sum()),
        gamma_to_revive=_gamma_to_revive(landscape, plain, unlimited),
        temperature_to_revive=_temperature_to_revive(landscape, plain),
        alpha_to_collapse=_alpha_to_collapse(landscape, plain),
        endangered=endangered,
        safest=safest,
        left_out=others,
        left_out_base=base,
        label_signal=None if signal is None else {key: getattr(signal, key) for key in ("lost", "kind", "verdict")},
        classes=None if classes is None else classes.fates(landscape, points, minimum),
        notes=[_EQUAL_IMAGES] if equal else [],
        patterns=correlations.patterns[shown].float() @ basis.T,
    )


def _are_equal(batches: Iterable[ArrayLike]) -> bool:
    """Return whether all images are equal."""
    first = None
    for batch in image_batches(batches, _BATCH):
        first = batch[:1] if first is None else first
        if batch.shape[1:] != first.shape[1:] or not bool((batch == first).all()):
            return False
    return True


def _nothing(error: EqualViewsError, objective: Objective, dim: int | None, views_per_image: int) -> Forecast:
    """Return the forecast of views that do not vary: complete collapse."""
    return Forecast(
        settings={key: asdict(objective)[key] for key in _SETTINGS} | {"dim": dim},
        num_images=error.images,
        views_per_image=views_per_image,
        dimension=error.dim,
        directions=0,
        variance_share=0.0,
        correlations=[],
        low=[],
        high=[],
        negative=0,
        eigenvalues=[],
        surviving=0,
        surviving_low=0,
        surviving_high=0,
        cut_by_dim=0,
        threshold=None,
        dead_variance=0.0,
        gamma_to_revive=None,
        temperature_to_revive=None,
        alpha_to_collapse=None,
        endangered=[],
        safest=[],
        left_out=[],
        left_out_base=LeftOut("", 0, 0.0),
        label_signal=None,
        classes=None,
        notes=[_EQUAL_VIEWS],
    )


class _Classes:
    """Labelled images and their classes: at least two, with more than two images each on average."""

    def __init__(self, known: Tensor, index: Tensor, counts: Tensor, names: list[str]) -> None:
        self.known, self.index, self.counts, self.names = known, index, counts, names

    @classmethod
    def of(cls, labels: ArrayLike, count: int, class_names: Sequence[str] | None) -> "_Classes | None":
        numbers = as_tensor("labels", labels, 1, shape="(n,)").cpu()
        if len(numbers) != count:
            raise ValueError(f"labels has shape ({len(numbers)},) for {count} images: pass one label per image")
        if not bool((numbers == numbers.long()).all()):
            raise ValueError("labels must be whole class numbers from 0, or -1 if unknown")
        known = numbers.long() >= 0
        classes, index, counts = numbers.long()[known].unique(return_inverse=True, return_counts=True)
        if class_names is not None and len(classes) and int(classes[-1]) >= len(class_names):
            raise ValueError(f"class_names must have a name for label {int(classes[-1])}, got {len(class_names)} names")
        if len(classes) < 2 or len(index) <= 2 * len(classes):
            return None
        names = [str(label) if class_names is None else str(class_names[label]) for label in classes.tolist()]
        return cls(known, index, counts, names)

    def signal(self, landscape: LinearLandscape, points: Tensor, minimum: Minimum) -> LabelSignal:
        """Return the label signal in collapsed directions; `points` `(n, p)` are the images' mean views."""
        means = self._means(points)
        return landscape.label_signal(means, self._shares, minimum.alive, images=len(self.index))

    def fates(self, landscape: LinearLandscape, points: Tensor, minimum: Minimum) -> list[ClassFate]:
        """Return whether each class keeps its direction; `points` `(n, p)` are the images' mean views."""
        means = self._means(points)
        directions = landscape.class_directions(means, self._shares, minimum.alive, images=len(self.index))
        rows = zip(
            self.names,
            directions.shares.tolist(),
            directions.correlations.tolist(),
            directions.captured.tolist(),
            directions.survives.tolist(),
            directions.supervised.tolist(),
            strict=True,
        )
        return [
            ClassFate(name, share, k, captured, survives if supervised > 0 else None)
            for name, share, k, captured, survives, supervised in rows
        ]

    @property
    def _shares(self) -> Tensor:
        return self.counts / len(self.index)

    def _means(self, points: Tensor) -> Tensor:
        labelled = points[self.known].double()
        sums = torch.zeros(len(self.names), points.shape[1], dtype=torch.float64).index_add_(0, self.index, labelled)
        return sums / self.counts[:, None]


def _repeatable(images: ArrayLike | Iterable[ArrayLike]) -> Iterable[ArrayLike]:
    """Return batches of images that can be read several times."""
    if isinstance(images, Tensor | np.ndarray):
        return list(image_batches(images, _BATCH))
    if isinstance(images, str | bytes | dict) or not isinstance(images, Iterable):
        raise TypeError(
            f"images must be a tensor or array (n, C, H, W), or batches of them, got {describe(images)}: decode files "
            "first, as ImageDataset does"
        )
    if iter(images) is images:
        raise TypeError(
            f"images must be read several times, got {describe(images)}: pass an array or a list of batches"
        )
    return images


def _calls(batches: Iterable[ArrayLike], views: ViewMaker, views_per_image: int) -> int:
    """Return the number of draws of the pipeline per image."""
    if not callable(views):
        raise TypeError(f"views must be callable as views(images, seed), got {describe(views)}: pass Views(…)")
    views_per_image = as_int("views_per_image", views_per_image, at_least=2)
    first = next(image_batches(batches, _BATCH), None)
    if first is None or len(first) == 0:
        raise ValueError("images is empty: a forecast needs at least 4 images")
    kinds = len(views(first[:1], 0))
    if views_per_image % kinds:
        raise ValueError(
            f"views_per_image must be a multiple of {kinds}, the number of views per call, got {views_per_image}"
        )
    return views_per_image // kinds


def _leading(covariance: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the `size` largest eigenvalues, as far as they are resolved, and their eigenvectors as columns.

    Subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011, algorithm 4.4) takes a fraction of the time of a
    full decomposition. The last directions are mixed with the following ones, which is an equally good basis.
    """
    if 4 * size > len(covariance):
        values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance))
    else:
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(len(covariance), size + _OVERSAMPLED, generator=generator, dtype=covariance.dtype)
        for _ in range(_ITERATIONS):
            block = torch.linalg.qr(covariance @ block).Q
        values, rotation = (part.flip(-1) for part in torch.linalg.eigh(block.T @ covariance @ block))
        vectors = block @ rotation
    size = min(size, int((values > _RESOLVED * values[0]).sum()))
    return values[:size], vectors[:, :size]


def _landscape(correlations: CanonicalCorrelations, values: Tensor) -> LinearLandscape:
    return LinearLandscape(correlations.B(values.clamp(max=_HIGHEST)), correlations.Sigma)


def _minimum(landscape: LinearLandscape, objective: Objective, dim: int | None) -> Minimum:
    # The landscape has one dimension per estimated direction, which may be fewer than the outputs.
    return landscape.minimum(**asdict(objective), dim=None if dim is None else min(dim, landscape.dimension))


def _directions(
    correlations: CanonicalCorrelations, shares: Tensor, minimum: Minimum, points: Tensor
) -> list[Direction]:
    """Return all directions in order of k; `points` `(n, p)` are the images' mean views."""
    order = (points.double() @ correlations.filters.T).argsort(dim=0)
    ends = torch.cat([order[:_EXAMPLES], order[-_EXAMPLES:]]).T.tolist()
    columns = (correlations.values, correlations.low, correlations.high, shares, minimum.alive)
    rows = zip(*(column.tolist() for column in columns), ends, strict=True)
    return [Direction(index, *row) for index, row in enumerate(rows)]


def _endangered(directions: list[Direction]) -> list[Direction]:
    dead = sorted((d for d in directions if not d.alive), key=lambda d: -d.variance)
    living = sorted((d for d in directions if d.alive), key=lambda d: d.k)
    return (dead + living)[:_SHOWN]


def _gamma_to_revive(landscape: LinearLandscape, objective: Objective, minimum: Minimum) -> float | None:
    """Return γ above which all directions survive; `None` if there is none.

    For InfoNCE it is computed for the loss's quartic part, since the exact one needs a search of minutes.
    """
    if objective.loss == "normalized":
        return None
    if minimum.surviving == landscape.rank:
        return 0.0
    T = objective.temperature
    if objective.loss == "infonce":
        objective = Objective(alpha=objective.alpha, weight_decay=objective.weight_decay * T, kappa=0.75 / T)
        return landscape.gamma_to_revive(**asdict(objective)) / T
    return landscape.gamma_to_revive(**asdict(objective))


def _temperature_to_revive(landscape: LinearLandscape, objective: Objective) -> float | None:
    """Return the temperature below which normalized features keep all directions; `None` for other losses."""
    if objective.loss != "normalized":
        return None
    value = float(landscape.collapse_threshold("temperature", **asdict(objective)).values.min())
    return value if math.isfinite(value) else None


def _alpha_to_collapse(landscape: LinearLandscape, objective: Objective) -> float | None:
    """Return the weight of the alignment from which no direction survives; `None` if there is none, or no formula."""
    if objective.loss == "normalized" or objective.weight_decay:
        return None
    value = landscape.collapse_threshold("alpha", **asdict(objective)).complete
    return value if math.isfinite(value) else None
