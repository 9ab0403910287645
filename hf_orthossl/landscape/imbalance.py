"""Predict which classes keep a direction under class imbalance, compared with supervised learning."""

from dataclasses import dataclass

from torch import Tensor

from ..arguments import ArrayLike, as_int, as_tensor
from .label_signal import as_alive, class_offsets


@dataclass(frozen=True)
class ClassDirections:
    """The direction that separates each class from the rest, and whether it survives.

    Attributes:
        shares (`Tensor`): Share p of each class, shape `(classes,)`, with a sum of 1.
        correlations (`Tensor`): Canonical correlation along the filter that best separates each class from the rest,
            shape `(classes,)`, in [0, 1]. If B is the variance between classes, this is k = b/(b + c), with b the
            variance between classes along the filter and c that of the noise: it saturates at 1, so that a rare class
            keeps its direction while p·‖μ_c − μ‖² is far above the noise.
        supervised (`Tensor`): Variance of the least-squares fit of each class indicator, shape `(classes,)`: the
            signal of the class under supervision. It scales with the share p. 0 if the class does not differ from the
            rest.
        captured (`Tensor`): Share in [0, 1] of the filter's variance in surviving directions, shape `(classes,)`.
        survives (`Tensor`): Mask of the classes that keep their direction: at least half of it is captured.
    """

    shares: Tensor
    correlations: Tensor
    supervised: Tensor
    captured: Tensor
    survives: Tensor


def class_directions(
    filters: ArrayLike,
    correlations: ArrayLike,
    class_means: ArrayLike,
    shares: ArrayLike,
    alive: ArrayLike,
    *,
    images: int | None = None,
) -> ClassDirections:
    """Return which classes keep a direction of the representation.

    The filter that separates class c from the rest by least squares is Σ⁻¹(μ_c − μ). Canonical directions are
    uncorrelated, so that its output splits into them by the squares of (μ_c − μ) in canonical coordinates.

    Args:
        filters (`Tensor` or array): Shape `(rank, D)`, as in `LinearLandscape.filters`.
        correlations (`Tensor` or array): Canonical correlations, shape `(rank,)`.
        class_means (`Tensor` or array): Mean view μ_c of each class, shape `(classes, D)`, at least two classes.
        shares (`Tensor` or array): Share p of each class, shape `(classes,)`; scaled to a sum of 1.
        alive (`Tensor` or array): Mask of the surviving directions, shape `(rank,)`, as in `Minimum.alive`.
        images (`int`, *optional*): The number of images from which the means were computed. Means of few images differ
            by chance: the expected amount is subtracted from each direction.

    Returns:
        [`ClassDirections`]: One entry for each class.

    Raises:
        TypeError: An argument is not an array of numbers.
        ValueError: Shapes do not match, or `shares` are not shares.

    Source:
        Ziyin et al. (ICLR 2023), on the robustness of self-supervised learning to class imbalance.

    Example:
        A class of 0.5 % of the images, 30 standard deviations of the noise away from the other:

        >>> landscape = LinearLandscape([[4.4775, 0.0], [0.0, 0.0]], [[5.4775, 0.0], [0.0, 1.0]])  # p(1 − p)·30²
        >>> alive = landscape.minimum("spectral").alive
        >>> landscape.class_directions([[0.0, 0.0], [30.0, 0.0]], [0.995, 0.005], alive).correlations
        tensor([0.8174, 0.8174], dtype=torch.float64)
    """
    rows = as_tensor("filters", filters, 2, shape="(rank, D)")
    k = as_tensor("correlations", correlations, 1, shape="(rank,)").to(rows)
    if len(k) != len(rows):
        raise ValueError(f"correlations has shape {tuple(k.shape)}: pass ({len(rows)},), one for each direction")
    mask = as_alive(alive, rows)
    weights, offsets = class_offsets(shares, class_means, rows)
    # Class offsets in canonical coordinates, in which Σ is I and B is diag(k).
    squares = (offsets @ rows.T).square()
    if images is not None:
        counts = (weights * as_int("images", images, at_least=1)).clamp_min(1)
        between = (weights[:, None] * squares).sum(0).clamp(max=1)
        squares = (squares - (1 / counts - 1 / images).clamp_min(0)[:, None] * (1 - between)).clamp_min(0)
    lengths = squares.sum(1)
    totals = lengths.clamp_min(1e-300)
    captured = squares[:, mask].sum(1) / totals
    return ClassDirections(
        shares=weights,
        correlations=(squares * k).sum(1) / totals,
        supervised=weights**2 * lengths,
        captured=captured,
        survives=captured >= 0.5,
    )
