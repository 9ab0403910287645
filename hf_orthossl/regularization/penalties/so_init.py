"""SO towards the start: `‖G − G₀‖_F²`, with the Gram matrix `G₀` that the weights had at the start."""

from typing import ClassVar

from torch import Tensor

from ..matrices import compute_dtype, full_precision, gram_minus_identity, rows
from .base import Penalty, register_penalty
from .so import SoftOrthogonality


@register_penalty
class SOInit(Penalty):
    """Keep the Gram matrix of the start, `‖G − G₀‖_F²`, with `G` that of the smaller side.

    SO draws every matrix towards an orthonormal one, and with it pretrained weights away from what they have learned.
    This penalty leaves them where they are: value and gradient are 0 at the start, and wherever the weights are turned
    by an orthogonal matrix. With orthonormal weights at the start it is SO. The gradient is the closed form
    `4·W(WᵀW − G₀)` or `4·(WWᵀ − G₀)W`; a second derivative raises `RuntimeError`. The reference, stored as `G₀ − I`,
    has as many numbers as the square of the smaller side.

    Near the start it is `‖W₀ᵀΔ + ΔᵀW₀‖_F² ≤ 4σ²·‖Δ‖_F²`, with σ the largest singular value of `W₀` and Δ the change:
    γ = 1e-3 at σ = 1 pulls no harder than L2-SP with α/2 = 4e-3, in the middle of the range that its authors searched.
    SO's own 1e-6 would be lost beside weight decay here, because the value is not that of a distance to I, which is
    thousands, but of a drift.

    Source: the penalty towards the start of Li, Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning
    with Convolutional Networks" (L2-SP), ICML 2018, on Gram matrices of weights. DINOv3 (arXiv 2508.10104) anchors Gram
    matrices of features in the same spirit.
    """

    name = "so_init"
    title = "soft orthogonality towards the start, SO-init"
    default_gamma = 1e-3
    has_reference: ClassVar[bool] = True

    def reference(self, W: Tensor) -> Tensor:
        """Return `G₀ − I` of each matrix."""
        with full_precision(W):
            return gram_minus_identity(rows(W).to(compute_dtype(W)))

    def value(self, W: Tensor, vectors: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
        """Return `‖G − G₀‖_F²` of each matrix."""
        return SoftOrthogonality.apply(W, reference)
