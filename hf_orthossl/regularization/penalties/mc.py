"""MC, mutual coherence: the largest entry of `|G − I|`."""

import torch
from torch import Tensor

from ..matrices import compute_dtype, full_precision, gram_minus_identity, rows
from .base import Penalty, register_penalty


@register_penalty
class MC(Penalty):
    """Mutual coherence, `‖G − I‖_∞ = max_ij |G_ij − δ_ij|`: the largest entry, not the largest row sum.

    Bansal et al. derive it from the mutual coherence `max_{i≠j} |⟨w_i, w_j⟩| / (‖w_i‖‖w_j‖)`, which only the entry-wise
    maximum bounds, and use the plain subgradient instead of a smoothed norm. This class does the same: the gradient is
    that of one largest entry, and is nonzero only for the two columns whose product it is. If several entries are
    equally large, the gradient of any of them is a subgradient.

    Source: Bansal et al., NeurIPS 2018.
    """

    name = "mc"
    title = "mutual coherence, MC"
    default_gamma = 1e-4

    def value(self, W: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return the largest entry of `|G − I|` of each matrix."""
        X = rows(W)
        X = X.to(compute_dtype(W))
        with torch.no_grad(), full_precision(W):
            largest = gram_minus_identity(X.detach()).abs_().flatten(-2).argmax(-1)
            i, j = largest // X.shape[-2], largest % X.shape[-2]
        left, right = (X.take_along_dim(index[..., None, None], dim=-2).squeeze(-2) for index in (i, j))
        return ((left * right).sum(-1) - (i == j).to(X.dtype)).abs()
