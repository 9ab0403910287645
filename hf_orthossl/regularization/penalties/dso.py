"""DSO, double soft orthogonality: SO of both sides of a matrix."""

from collections.abc import Sequence

from torch import Tensor

from ..sharded import RowShard, ShardedValue
from .base import register_penalty
from .so import SO


@register_penalty
class DSO(SO):
    """Double soft orthogonality, `‖WᵀW − I‖_F² + ‖WWᵀ − I‖_F²`, which is at least `|input − output|`.

    It is computed as `2·SO(W) + |input − output|`. Proof: `‖AAᵀ − I_n‖_F² = tr(AAᵀAAᵀ) − 2·tr(AAᵀ) + n`, and both
    traces are the same for `A = W` and `A = Wᵀ` (a trace is cyclic), so the two terms differ only by `input − output`,
    and the larger side has the larger term. The gradient is therefore exactly twice that of SO.

    Source: Bansal et al., NeurIPS 2018.
    """

    name = "dso"
    title = "double soft orthogonality, DSO"
    default_gamma = 1e-6

    def value(self, W: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return `2·SO(W) + |input − output|` of each matrix."""
        return 2 * super().value(W) + abs(W.shape[-2] - W.shape[-1])

    def sharded(self, shards: Sequence[RowShard], vectors: Sequence[Tensor] | None = None) -> list[ShardedValue]:
        """Return twice SO's values, plus the constant, and twice its gradients."""
        return [
            ShardedValue(2 * values + abs(shard.rows - shard.columns), [2 * gradient for gradient in gradients])
            for shard, (values, gradients) in zip(shards, super().sharded(shards), strict=True)
        ]
