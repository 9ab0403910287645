"""Whether a collapse spares the labels: the share of label signal in the directions that die."""

from dataclasses import dataclass

import torch

# Below the first share of lost signal a probe hardly notices; above the second it must.
_BENIGN, _HARMFUL = 0.05, 0.25


@dataclass(frozen=True)
class LabelSignal:
    """
    Where the labels show in the canonical directions.

    Attributes:
        per_direction (`torch.Tensor`):
            Shape `(rank,)`: the share in [0, 1] of each direction's variance that lies between classes.
        lost (`float`): The share of their sum that is in dead directions, in [0, 1].
        kind (`str`): `"none"` (nothing dies), `"benign"` (lost ≤ 0.05), `"partly harmful"`, `"harmful"` (lost > 0.25).
        verdict (`str`): The same in one sentence.
    """

    per_direction: torch.Tensor
    lost: float
    kind: str
    verdict: str


def label_signal(
    filters: torch.Tensor,
    class_means: torch.Tensor,
    shares: torch.Tensor,
    alive: torch.Tensor,
    *,
    images: int | None = None,
) -> LabelSignal:
    """
    The share of between-class variance in dead directions: near 0 the collapse drops what labels do not need.

    Args:
        filters (`torch.Tensor`): Shape `(rank, D)`, as [`LinearLandscape.filters`].
        class_means (`torch.Tensor`): Mean view of each class, shape `(classes, D)`, at least two classes.
        shares (`torch.Tensor`): Share of each class, shape `(classes,)`; scaled to a sum of 1.
        alive (`torch.Tensor`): Mask of shape `(rank,)`.
        images (`int`, *optional*):
            How many images the means are from, more than there are classes. Means of few images differ by chance: what
            an analysis of variance expects of it is taken off each direction.

    Returns:
        `LabelSignal`: signal per direction, the share that is lost, a verdict.

    Raises:
        `ValueError`: for shapes that do not fit, shares that are no shares, or means that do not differ.
    """
    if alive.shape != filters.shape[:1]:
        raise ValueError(f"alive has shape {tuple(alive.shape)}: pass ({len(filters)},), one for each direction")
    shares, offsets = class_offsets(shares, class_means.to(filters))
    if offsets.shape[1] != filters.shape[1]:
        raise ValueError(f"class_means has shape {tuple(class_means.shape)}: pass (classes, {filters.shape[1]})")
    signal = (shares[:, None] * (offsets @ filters.T) ** 2).sum(0).clamp(max=1)
    if images is not None:
        if images <= len(shares):
            raise ValueError(f"images = {images} must be more than the {len(shares)} classes")
        chance = (len(shares) - 1) / (images - len(shares)) * (1 - signal)
        signal = (signal - chance).clamp_min(0)
    if not bool(signal.any()):
        raise ValueError("class_means do not differ in any direction in which views vary: there is no label signal")
    lost = float(signal[~alive.to(signal.device)].sum() / signal.sum())
    dead = int((~alive).sum())
    if not dead:
        return LabelSignal(signal, 0.0, "none", "Nothing collapses, so no label signal is lost.")
    what = f"The {dead} dead of {len(signal)} directions carry {100 * lost:.1f}% of the label signal"
    if lost <= _BENIGN:
        return LabelSignal(signal, lost, "benign", f"{what}: the collapse is benign.")
    if lost <= _HARMFUL:
        return LabelSignal(signal, lost, "partly harmful", f"{what}: a probe will miss some of it.")
    return LabelSignal(signal, lost, "harmful", f"{what}: the augmentation varies what the labels depend on.")


def class_offsets(shares: torch.Tensor, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares that sum to 1, shape `(classes,)`, and the means about their average, shape `(classes, D)`."""
    if means.ndim != 2 or len(means) < 2 or shares.shape != means.shape[:1]:
        raise ValueError(
            f"shares has shape {tuple(shares.shape)} and means {tuple(means.shape)}: pass (classes,) and (classes, D), "
            "at least two classes"
        )
    shares = shares.to(means)
    if not bool(shares.isfinite().all() and (shares >= 0).all() and shares.sum() > 0):
        raise ValueError("shares must be at least 0, with a positive sum")
    shares = shares / shares.sum()
    return shares, means - shares @ means
