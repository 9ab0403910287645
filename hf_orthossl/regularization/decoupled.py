"""Step weights towards the zero of their penalty outside of the loss, as AdamW decouples weight decay.

A penalty with a `decoupled_step` says which step `X ← X − PX` it takes; here it reaches the weights: in place, matrix
after matrix, or several small ones of equal shape together, with the memory of one matrix and its Gram matrix.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.sharding import is_sharded
from .batching import Group, batches
from .matrices import compute_dtype, full_precision, gram, like, product_like, rows
from .penalties import PENALTIES, Penalty
from .selection import WeightMatrix
from .sharded import RowShard, is_row_sharded


def check_decoupled(penalty: Penalty, matrices: Sequence[WeightMatrix]) -> None:
    """Refuse what has no decoupled step: a penalty without one, and weights that cannot be written in place.

    Raises:
        ValueError: The message names the penalties that have one, or the weight.
    """
    if not penalty.has_decoupled_step():
        raise ValueError(without_step(penalty.name))
    for matrix in matrices:
        # What a parametrization or weight norm computes is not registered, and is computed anew at the next use.
        if matrix.module._parameters.get(matrix.attribute) is None:
            name = matrix.name.partition("[")[0]
            raise ValueError(
                f"{name} is computed from other parameters, so that a decoupled step cannot write it in place: pass "
                f'exclude="{name}" to the regularizer, or penalty_mode="loss"'
            )


def without_step(kind: str) -> str:
    """Return the error line for a penalty that has no decoupled step."""
    able = ", ".join(name for name, other in sorted(PENALTIES.items()) if other.has_decoupled_step())
    return (
        f"penalty_mode is decoupled, and the penalty {kind!r} has no decoupled step: choose from {able}, or pass "
        "penalty_mode loss"
    )


@torch.enable_grad()
def step_weights(
    penalty: Penalty, matrices: Sequence[WeightMatrix], weights: Mapping[int, Tensor], strength: float
) -> Iterator[Group]:
    """Step weights in place, and yield the penalties that they had before, one group after the other.

    Of a weight whose rows are sharded each process steps its own, and all processes of its mesh must take part.

    Args:
        penalty ([`Penalty`]): A penalty with a decoupled step.
        matrices (sequence of [`WeightMatrix`]): All selected matrices.
        weights (mapping of `int` to `torch.Tensor`): The parameters to step, by the index of their first matrix.
        strength (`float`): The strength λ of this step.
    """
    # How matrices are read is differentiable: the derivative of reading entries in another order writes them back.
    leaves = {i: weight.detach().requires_grad_() for i, weight in weights.items()}
    places = {i: list(range(i, i + matrices[i].count)) for i in weights}
    whole = {}
    for i, leaf in leaves.items():
        if is_sharded(leaf) and is_row_sharded(leaf):
            yield Group(places[i], _step_rows(penalty, RowShard(matrices[i], leaf), strength))
        else:
            whole[i] = leaf
    for indices, W in batches(matrices, whole, places):
        members = [leaves[i] for i in indices if not matrices[i].index]
        yield Group(indices, _step_whole(penalty, W, members, strength))


def exchange(weights: Mapping[int, Tensor], owners: Mapping[int, int]) -> None:
    """Replace each weight by that of its owner, the process that has stepped it; call it on all processes.

    What arrives is what the owner has, so that weights stay equal bit for bit, whatever computed them.

    Args:
        weights (mapping of `int` to `torch.Tensor`): The weights.
        owners (mapping of `int` to `int`): The rank of the owner, of the weights that every process has whole.
    """
    pending = []
    for i, owner in owners.items():
        weight = weights[i].detach()
        dense = weight.contiguous()
        work = dist.broadcast(dense, owner, async_op=True)
        assert work is not None
        pending.append((weight, dense, work))
    for weight, dense, work in pending:
        work.wait()
        if dense.data_ptr() != weight.data_ptr():
            weight.copy_(dense)


def _step_whole(penalty: Penalty, W: Tensor, weights: Sequence[Tensor], strength: float) -> Tensor:
    """Step the weights that matrices `W` were read from, and return the penalties that they had before."""
    X = rows(W.detach()).to(compute_dtype(W))
    with full_precision(W):
        values, P = penalty.decoupled_step(gram(X), strength)
        change = like(W, product_like(X, P, X))
    _subtract(weights, torch.autograd.grad(W, weights, change))
    return values


def _step_rows(penalty: Penalty, shard: RowShard, strength: float) -> Tensor:
    """Step this process's rows of the matrices of one parameter, and return the penalties that they had before."""
    parts = [block.rows.detach().to(shard.dtype) for block in shard.blocks]
    indices = [block.index for block in shard.blocks]
    with full_precision(shard.weight):
        G, whole = shard.grams(parts)
        values, P = penalty.decoupled_step(G, strength)
        if whole is None:
            changes = [R @ P[i] for i, R in zip(indices, parts, strict=True)]
        else:
            changes = [P[b.index, b.start : b.start + len(b.rows)] @ whole[b.index] for b in shard.blocks]
    outputs = [block.rows for block in shard.blocks]
    changes = [change.to(shard.local.dtype) for change in changes]
    _subtract([shard.local], torch.autograd.grad(outputs, shard.local, changes))
    return values


def _subtract(weights: Sequence[Tensor], changes: Sequence[Tensor]) -> None:
    """Subtract from each weight its change, in place."""
    for weight, change in zip(weights, changes, strict=True):
        weight.detach().sub_(change)
