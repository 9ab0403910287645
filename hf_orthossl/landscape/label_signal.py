"""Measure whether a collapse affects the labels: the share of label signal in collapsed directions."""

from dataclasses import dataclass

from torch import Tensor

from ..arguments import ArrayLike, as_int, as_tensor

# Losing less signal than the first share hardly affects a probe; losing more than the second must affect it.
_BENIGN, _HARMFUL = 0.05, 0.25


@dataclass(frozen=True)
class LabelSignal:
    """The distribution of the label signal over canonical directions.

    Attributes:
        per_direction (`Tensor`): The share in [0, 1] of each direction's variance that lies between classes, shape
            `(rank,)`.
        lost (`float`): The share of their sum that lies in collapsed directions, in [0, 1].
        kind (`str`): `"none"` (nothing collapses), `"benign"` (lost ≤ 0.05), `"partly harmful"` or `"harmful"`
            (lost > 0.25).
        verdict (`str`): The same as a sentence.
    """

    per_direction: Tensor
    lost: float
    kind: str
    verdict: str


def label_signal(
    filters: ArrayLike,
    class_means: ArrayLike,
    shares: ArrayLike,
    alive: ArrayLike,
    *,
    images: int | None = None,
) -> LabelSignal:
    """Return the share of between-class variance in collapsed directions; near 0 the collapse is benign.

    Args:
        filters (`Tensor` or array): Shape `(rank, D)`, as in `LinearLandscape.filters`.
        class_means (`Tensor` or array): Mean view of each class, shape `(classes, D)`, at least two classes.
        shares (`Tensor` or array): Share of each class, shape `(classes,)`; scaled to a sum of 1.
        alive (`Tensor` or array): Mask of the surviving directions, shape `(rank,)`, as in `Minimum.alive`.
        images (`int`, *optional*): The number of images from which the means were computed, more than the number of
            classes. Means of few images differ by chance: the amount that an analysis of variance expects is subtracted
            from each direction.

    Returns:
        [`LabelSignal`]: Signal per direction, the share that is lost, and a verdict.

    Raises:
        TypeError: An argument is not an array of numbers.
        ValueError: Shapes do not match, `shares` are not shares, or the means do not differ.

    Example:
        >>> landscape = LinearLandscape(B, Sigma)
        >>> alive = landscape.minimum("spectral", alpha=1.5).alive
        >>> label_signal(landscape.filters, class_means, shares, alive).verdict
        'The 2 collapsed of 5 directions carry 1.3% of the label signal: the collapse is benign.'
    """
    rows = as_tensor("filters", filters, 2, shape="(rank, D)")
    mask = as_alive(alive, rows)
    weights, offsets = class_offsets(shares, class_means, rows)
    signal = (weights[:, None] * (offsets @ rows.T) ** 2).sum(0).clamp(max=1)
    if images is not None:
        images = as_int("images", images)
        if images <= len(weights):
            raise ValueError(f"images must be more than the {len(weights)} classes, got {images}")
        chance = (len(weights) - 1) / (images - len(weights)) * (1 - signal)
        signal = (signal - chance).clamp_min(0)
    if not bool(signal.any()):
        raise ValueError("class_means do not differ in any direction in which views vary: there is no label signal")
    lost = float(signal[~mask].sum() / signal.sum())
    dead = int((~mask).sum())
    if not dead:
        return LabelSignal(signal, 0.0, "none", "Nothing collapses, so no label signal is lost.")
    amount = f"The {dead} collapsed of {len(signal)} directions carry {100 * lost:.1f}% of the label signal"
    if lost <= _BENIGN:
        return LabelSignal(signal, lost, "benign", f"{amount}: the collapse is benign.")
    if lost <= _HARMFUL:
        return LabelSignal(signal, lost, "partly harmful", f"{amount}: a probe will miss some of it.")
    return LabelSignal(signal, lost, "harmful", f"{amount}: the augmentation changes what the labels depend on.")


def class_offsets(shares: ArrayLike, class_means: ArrayLike, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return shares that sum to 1, shape `(classes,)`, and class means minus their average, shape `(classes, D)`.

    Raises:
        TypeError: An argument is not an array of numbers.
        ValueError: Shapes do not match, there are fewer than two classes, or `shares` are not shares.
    """
    weights = as_tensor("shares", shares, 1, shape="(classes,)")
    means = as_tensor("class_means", class_means, 2, shape="(classes, D)").to(filters)
    if len(means) < 2 or means.shape[1] != filters.shape[1]:
        raise ValueError(
            f"class_means has shape {tuple(means.shape)}: pass (classes, {filters.shape[1]}), at least two classes"
        )
    if weights.shape != means.shape[:1]:
        raise ValueError(f"shares has shape {tuple(weights.shape)}: pass ({len(means)},), one for each class")
    weights = weights.to(means)
    if not bool((weights >= 0).all() and weights.sum() > 0):
        raise ValueError("shares must be at least 0, with a positive sum")
    weights = weights / weights.sum()
    return weights, means - weights @ means


def as_alive(alive: ArrayLike, filters: Tensor) -> Tensor:
    """Return the mask of surviving directions, shape `(rank,)`, on the filters' device.

    Raises:
        TypeError: `alive` is not an array.
        ValueError: `alive` does not have one entry for each direction.
    """
    mask = as_tensor("alive", alive)
    if mask.shape != filters.shape[:1]:
        raise ValueError(f"alive has shape {tuple(mask.shape)}: pass ({len(filters)},), one for each direction")
    return mask.bool().to(filters.device)
