"""Keep weight matrices orthonormal: after each step of the optimizer they become the nearest orthonormal ones.

The constraint is a retraction: `W` becomes the orthonormal factor `U` of its polar decomposition `W = U·H`, on the
smaller side. It removes what a step has in the directions that leave the set of orthonormal matrices, so that to first
order the weights follow the Riemannian gradient of the loss (Absil, Mahony, Sepulchre, "Optimization Algorithms on
Matrix Manifolds", 2008, §4.1.1, the polar retraction). Weights stay plain parameters.

`torch.nn.utils.parametrizations.orthogonal` computes the weights from other parameters at every forward pass instead.
Its maps are too slow for the matrices of real networks: on one busy core, the backward pass of its Householder product
took 1.4 s for a kernel of 1,152 × 128 and 23 s for one of 2,304 × 256, that of its matrix exponential 18 s for 1,536 ×
384 and that of Cayley's map 0.6 s, since these work on square matrices of the larger side. The retraction takes mostly
one Gram matrix and one product with it, once per step.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..distributed.sharding import full_tensor, is_sharded, shard_like
from .batching import shares
from .decoupled import exchange
from .matrices import compute_dtype, frobenius_norm, full_precision, gram_minus_identity, like, rows
from .selection import WeightMatrix, output_views, select_matrices


class OrthogonalConstraint:
    """The weight matrices of a module, which are replaced by the nearest orthonormal ones.

    It selects the matrices that penalties regularize, and reads each projection of a fused attention layer by itself.
    Like [`OrthogonalityRegularizer`], it fetches the weights at every call, and a deep copy of an object that contains
    module and constraint constrains the copied module.

    Args:
        module (`torch.nn.Module`): The module whose weights are constrained.

    Attributes:
        matrices (`list[WeightMatrix]`): The constrained matrices.
        moved (`float`, *optional*): How far [`begin`] has moved the weights, see there.

    Raises:
        ValueError: A weight is computed from other parameters, or the module has none.
    """

    def __init__(self, module: nn.Module):
        self.matrices: list[WeightMatrix] = select_matrices(module)
        self.moved: float | None = None
        for matrix in self.matrices:
            # What a parametrization or weight norm computes is computed anew at the next use.
            if matrix.module._parameters.get(matrix.attribute) is None:
                raise ValueError(
                    f"{matrix.name.partition('[')[0]} is computed from other parameters, so that it cannot be kept "
                    "orthonormal in place: leave out constrain, or pass a penalty, as in regularizer so"
                )

    def __len__(self) -> int:
        return len(self.matrices)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(matrices={len(self)})"

    @torch.no_grad()
    def begin(self) -> None:
        """Replace all weights, frozen ones too, and set `moved`: the norm of the change over that of the weights."""
        weights = [matrix.parameter for matrix in self.matrices if not matrix.index]
        before = [full_tensor(weight).detach().clone() for weight in weights]
        for matrix, weight in self._weights(trained_only=False).values():
            _replace(matrix, weight)
        changes = [(full_tensor(weight) - old).norm().double() for weight, old in zip(weights, before, strict=True)]
        norms = [old.norm().double() for old in before]
        total = math.hypot(*map(float, norms))
        self.moved = math.hypot(*map(float, changes)) / total if total else math.inf

    @torch.no_grad()
    def apply(self, *, process: int = 0, processes: int = 1) -> None:
        """Replace the weights that are trained by the nearest orthonormal ones; call it after the optimizer.

        If each process of a data-parallel group passes its rank and their number, it computes only some of the
        matrices, and receives the others: the weights are then equal on all processes, bit for bit. Of sharded weights
        each process gathers one after the other and keeps its rows, whatever `processes` is; all must call it.

        Args:
            process (`int`, defaults to 0): The rank of this process.
            processes (`int`, defaults to 1): The number of processes that share the matrices, ≥ 1.

        Raises:
            FloatingPointError: A weight is not finite.
        """
        weights = self._weights(trained_only=True)
        whole = [i for i, (_, weight) in weights.items() if not is_sharded(weight)]
        split = shares([weights[i][0].count * _cost(weights[i][0]) for i in whole], processes)
        owners = {whole[k]: owner for owner, items in enumerate(split) for k in items}
        for i, (matrix, weight) in weights.items():
            if owners.get(i, process) == process:
                _replace(matrix, weight)
        if processes > 1:
            exchange({i: weight for i, (_, weight) in weights.items()}, {i: owners[i] for i in whole})

    def describe(self) -> str:
        """Return in one line what is constrained."""
        text = f"{len(self)} matrices are orthonormal on their smaller side, from the start and after every step"
        if any(matrix.group in ("qkv", "kv") for matrix in self.matrices):
            text += ", fused layers by their parts (q, k, v)"
        return text

    def _weights(self, *, trained_only: bool) -> dict[int, tuple[WeightMatrix, Tensor]]:
        """Return each parameter with the first of its matrices, by the index of that."""
        return {
            i: (matrix, matrix.parameter)
            for i, matrix in enumerate(self.matrices)
            if not matrix.index and (matrix.parameter.requires_grad or not trained_only)
        }


def nearest_orthonormal(W: Tensor) -> Tensor:
    """Return the nearest matrices with orthonormal columns, or rows where there are fewer of these.

    Near the result, as after a step, `X ← (I − ½E + ⅜E²)X` with `E = XXᵀ − I`, the first terms of `(I + E)^(−1/2)X`,
    which cubes the deviation E: one product with it mostly suffices. Elsewhere, `UVᵀ` of the singular value
    decomposition, which is orthonormal for any matrix, zero included.

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): The matrices.

    Raises:
        FloatingPointError: An entry is not finite.

    Source: Higham, "Functions of Matrices", 2008, §8.1: the polar factor as `X(XᵀX)^(−1/2)`, and why it is the nearest.
    """
    X = rows(W).to(compute_dtype(W))
    # A deviation below this is cubed to rounding.
    near = torch.finfo(X.dtype).eps ** (1 / 3)
    with full_precision(W), _full_float32(W.device):
        E = gram_minus_identity(X)
        deviation = float(frobenius_norm(E).max())
        if not deviation < 0.5:
            if not math.isfinite(deviation) and not torch.isfinite(X).all():
                raise FloatingPointError(
                    "a weight is not finite after the optimizer's step: lower --learning_rate, or train in full "
                    "precision; checkpoints saved so far are intact and --resume continues from the newest"
                )
            U, _, V = torch.linalg.svd(X, full_matrices=False)
            return like(W, U @ V)
        while deviation > near:
            X = X + (0.375 * (E @ E) - 0.5 * E) @ X
            E = gram_minus_identity(X)
            deviation = float(frobenius_norm(E).max())
        return like(W, X + (0.375 * (E @ E) - 0.5 * E) @ X)


def _replace(matrix: WeightMatrix, weight: Tensor) -> None:
    """Replace the matrices of one parameter."""
    whole = full_tensor(weight.detach())
    nearest = nearest_orthonormal(matrix.layout(whole, matrix.count))
    for view, W in zip(output_views(matrix.layout, whole, matrix.count), nearest, strict=True):
        view.copy_(W.mT.reshape(view.shape))
    if is_sharded(weight):
        weight.copy_(shard_like(whole, weight))


def _cost(matrix: WeightMatrix) -> int:
    """Return what a matrix costs, in multiplications with its Gram matrix."""
    return min(matrix.shape) * matrix.shape[0] * matrix.shape[1]


@contextlib.contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Multiply in whole float32 on a GPU: TF32 would leave singular values that differ from 1 by 1e-3."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
