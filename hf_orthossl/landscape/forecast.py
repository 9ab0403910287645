"""Forecast from images and augmentations which directions a linear encoder keeps."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace

import torch
from torch import Tensor

from .correlations import CanonicalCorrelations, canonical_correlations
from .covariances import ViewMaker, view_batches, view_covariances
from .forecast_report import Direction, Forecast, LeftOut
from .landscape import LinearLandscape
from .minimum import Minimum
from .objective import Objective

# Principal directions of views in which k is estimated, and images per direction that make it worth while.
MAX_DIM = 256
_IMAGES_PER_DIRECTION = 5
# Variance, as a share of the largest, that float32 pixels resolve.
_RESOLVED = 1e-8
# InfoNCE has no minimum along a direction that augmentation does not touch at all.
_HIGHEST = 1 - 1e-6
_OVERSAMPLED, _ITERATIONS = 32, 6
_SHOWN = 8
_EXAMPLES = 3

Progress = Callable[[Iterable[Tensor], str], Iterable[Tensor]]


def forecast(
    images: Tensor | Iterable[Tensor],
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
    labels: Tensor | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    max_dim: int = MAX_DIM,
    seed: int = 0,
    progress: Progress | None = None,
) -> Forecast:
    """
    Predict what a linear encoder keeps of these images under these augmentations, before training it.

    Estimates B and Σ of the views, reduces them to the leading principal directions (at most a fifth as many as there
    are images), corrects the canonical correlations for the number of images, and reads the landscape of the chosen
    loss. Features are taken as centred, as a bias or batch normalization makes them.

    Args:
        images (`Tensor` or iterable of `Tensor`): `(n, 3, H, W)`, n ≥ 4, or batches of it that can be gone through
            several times.
        views (`Callable`): `views(images, seed)` returns T tensors `(B, 3, h, w)`, as [`~hf_orthossl.data.Views`] does.
        loss, alpha, temperature, weight_decay, gamma (*optional*): As of [`Objective`].
        dim (`int`, *optional*): Outputs of the encoder, at most D; defaults to as many as there are directions.
        views_per_image (`int`, *optional*, defaults to 4): v, a multiple of T, at least 2.
        same_kind (`bool`, *optional*, defaults to `False`): All views of a call are made alike, so that any two make a
            pair. Otherwise pairs hold two different ones, which is right for both but wastes some.
        variants (mapping of `str` to `Callable`, *optional*): Further pipelines of T views, by what they leave out.
        labels (`Tensor`, *optional*): `(n,)`, class indices, −1 where unknown.
        features (`Callable`, *optional*): Maps a view to features `(B, D)`; defaults to its pixels.
        max_dim (`int`, *optional*, defaults to 256): The most directions to reduce to.
        seed (`int`, *optional*, defaults to 0): Determines views, folds and bootstrap.
        progress (`Callable`, *optional*): `progress(batches, title)` gives the batches and shows how far it is.

    Returns:
        [`Forecast`].

    Raises:
        ValueError: a setting out of range, too few views or images, views that do not vary, NaN, or D too large.
    """
    objective = Objective(loss, alpha=alpha, temperature=temperature, weight_decay=weight_decay, gamma=gamma)
    if max_dim < 1:
        raise ValueError(f"max_dim is {max_dim}: at least 1 direction is needed")
    if dim is not None and dim < 1:
        raise ValueError(f"dim is {dim}: an encoder has at least 1 output")
    batches = list(images.split(256)) if isinstance(images, Tensor) else images
    calls = _calls(batches, views, views_per_image)
    draws = 1 if same_kind or calls == views_per_image else calls

    def made(maker: ViewMaker, title: str) -> Iterable[Tensor]:
        shown = batches if progress is None else progress(batches, title)
        return view_batches(shown, maker, draws=calls, features=features, seed=seed)

    covariances = view_covariances(made(views, "covariances"), draws)
    dimension, count = len(covariances.mean), covariances.num_images
    if dim is not None and dim > dimension:
        raise ValueError(f"dim is {dim} and views have D = {dimension} dimensions: pass a dim of at most {dimension}")
    variances, axes = _leading(covariances.Sigma, max(1, min(max_dim, dimension, count // _IMAGES_PER_DIRECTION)))
    basis, mean, total = axes.float(), covariances.mean.float(), float(covariances.Sigma.trace())
    del covariances, axes

    def estimate(maker: ViewMaker, title: str) -> tuple[CanonicalCorrelations, Tensor]:
        reduced = torch.cat([(batch - mean) @ basis for batch in made(maker, title)])
        return canonical_correlations(reduced, draws, seed=seed), reduced.mean(1)

    found, points = estimate(views, "canonical correlations")
    landscape = _landscape(found, found.values)
    minimum = _minimum(landscape, objective, dim)
    unlimited = minimum if dim is None or dim >= landscape.rank else _minimum(landscape, objective, None)
    ends = [_landscape(found, k) for k in (found.low, found.high)]
    bounds = [None if gamma else _minimum(end, objective, dim).surviving for end in ends]
    # Numerical minima take a minute each: what augmentations do is compared without the penalty.
    plain = replace(objective, gamma=0.0)

    def left_out(name: str, estimated: CanonicalCorrelations) -> LeftOut:
        surviving = _minimum(_landscape(estimated, estimated.values), plain, dim).surviving
        return LeftOut(name, surviving, float(estimated.values.sum()))

    base = left_out("", found)
    others = [left_out(name, estimate(maker, f"without {name}")[0]) for name, maker in (variants or {}).items()]
    shares = found.patterns.square().sum(1) / total
    directions = _directions(found, shares, unlimited, points)
    endangered, safest = _endangered(directions), directions[:_SHOWN]
    shown = [direction.index for direction in (*endangered, *safest)]
    return Forecast(
        settings={key: asdict(objective)[key] for key in ("loss", "alpha", "temperature", "weight_decay", "gamma")}
        | {"dim": dim},
        num_images=count,
        views_per_image=views_per_image,
        dimension=dimension,
        directions=landscape.rank,
        variance_share=float(variances.sum()) / total,
        correlations=found.values.tolist(),
        low=found.low.tolist(),
        high=found.high.tolist(),
        negative=int((found.sample < 0).sum()),
        eigenvalues=minimum.eigenvalues.tolist(),
        surviving=minimum.surviving,
        surviving_low=bounds[0],
        surviving_high=bounds[1],
        cut_by_dim=max(unlimited.surviving - minimum.surviving, 0),
        threshold=unlimited.critical_correlation,
        dead_variance=float(shares[~unlimited.alive].sum()),
        gamma_to_revive=gamma_to_revive(landscape, plain, unlimited),
        temperature_to_revive=temperature_to_revive(landscape, plain),
        alpha_to_collapse=alpha_to_collapse(landscape, plain),
        endangered=endangered,
        safest=safest,
        left_out=others,
        left_out_base=base,
        label_signal=_label_signal(landscape, points, labels, minimum),
        patterns=found.patterns[shown].float() @ basis.T,
    )


def _calls(batches: Iterable[Tensor], views: ViewMaker, views_per_image: int) -> int:
    """How often the pipeline is drawn for each image."""
    if views_per_image < 2:
        raise ValueError(f"views_per_image is {views_per_image}: what augmentation moves shows in 2 views or more")
    first = next(iter(batches), None)
    if first is None or len(first) == 0:
        raise ValueError("images is empty: a forecast needs at least 4 of them")
    kinds = len(views(first[:1], 0))
    if views_per_image % kinds:
        raise ValueError(f"views_per_image is {views_per_image} and the views come {kinds} at a time: pass a multiple")
    return views_per_image // kinds


def _leading(covariance: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """
    The largest `size` eigenvalues, as far as they are resolved, and their eigenvectors in columns.

    By subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011, algorithm 4.4), in a fraction of the time of a
    full decomposition. The last directions are mixed with those that follow, which is as good a basis.
    """
    if 4 * size > len(covariance):
        values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance))
    else:
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(len(covariance), size + _OVERSAMPLED, generator=generator, dtype=covariance.dtype)
        for _ in range(_ITERATIONS):
            block = torch.linalg.qr(covariance @ block).Q
        values, turns = (part.flip(-1) for part in torch.linalg.eigh(block.T @ covariance @ block))
        vectors = block @ turns
    size = min(size, int((values > _RESOLVED * values[0]).sum()))
    return values[:size], vectors[:, :size]


def _landscape(found: CanonicalCorrelations, values: Tensor) -> LinearLandscape:
    return LinearLandscape(found.B(values.clamp(max=_HIGHEST)), found.Sigma)


def _minimum(landscape: LinearLandscape, objective: Objective, dim: int | None) -> Minimum:
    # No more directions were estimated than the landscape has.
    return landscape.minimum(**asdict(objective), dim=None if dim is None else min(dim, landscape.dimension))


def _directions(found: CanonicalCorrelations, shares: Tensor, minimum: Minimum, points: Tensor) -> list[Direction]:
    """All directions in order of k; `points` `(n, p)` are the images' mean views."""
    order = (points.double() @ found.filters.T).argsort(dim=0)
    ends = torch.cat([order[:_EXAMPLES], order[-_EXAMPLES:]]).T.tolist()
    columns = (found.values, found.low, found.high, shares, minimum.alive)
    rows = zip(*(column.tolist() for column in columns), ends, strict=True)
    return [Direction(index, *row) for index, row in enumerate(rows)]


def _endangered(directions: list[Direction]) -> list[Direction]:
    dead = sorted((d for d in directions if not d.alive), key=lambda d: -d.variance)
    living = sorted((d for d in directions if d.alive), key=lambda d: d.k)
    return (dead + living)[:_SHOWN]


def _label_signal(
    landscape: LinearLandscape, points: Tensor, labels: Tensor | None, minimum: Minimum
) -> dict[str, float | str] | None:
    """Of the images that have a label, if they are of two classes at least."""
    if labels is None:
        return None
    if len(labels) != len(points):
        raise ValueError(f"labels are {len(labels)} and images {len(points)}: pass one label per image")
    known = labels >= 0
    points, labels = points[known].double(), labels[known]
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2 or len(labels) <= 2 * len(classes):
        return None
    means = torch.zeros(len(classes), points.shape[1], dtype=torch.float64).index_add_(0, index, points)
    means = means / counts[:, None]
    signal = landscape.label_signal(means, counts / len(labels), minimum.alive, images=len(labels))
    return {"lost": signal.lost, "kind": signal.kind, "verdict": signal.verdict}


def gamma_to_revive(landscape: LinearLandscape, objective: Objective, minimum: Minimum) -> float | None:
    """γ above which all live; of InfoNCE by its quartic part, as its own is a search of minutes; `None` without one."""
    if objective.loss == "normalized":
        return None
    if minimum.surviving == landscape.rank:
        return 0.0
    T = objective.temperature
    if objective.loss == "infonce":
        objective = Objective(alpha=objective.alpha, weight_decay=objective.weight_decay * T, kappa=0.75 / T)
        return landscape.gamma_to_revive(**asdict(objective)) / T
    return landscape.gamma_to_revive(**asdict(objective))


def temperature_to_revive(landscape: LinearLandscape, objective: Objective) -> float | None:
    """Temperature below which normalized features keep all directions; `None` for other losses."""
    if objective.loss != "normalized":
        return None
    value = float(landscape.collapse_threshold("temperature", **asdict(objective)).values.min())
    return value if math.isfinite(value) else None


def alpha_to_collapse(landscape: LinearLandscape, objective: Objective) -> float | None:
    """Weight of the alignment from which nothing lives; `None` where there is none, or no formula for it."""
    if objective.loss == "normalized" or objective.weight_decay:
        return None
    value = landscape.collapse_threshold("alpha", **asdict(objective)).complete
    return value if math.isfinite(value) else None
