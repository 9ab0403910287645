"""`OrthogonalityRegularizer`: the penalty of all weight matrices of a module."""

import difflib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from . import penalties, sharded
from .row_shard import RowShard, is_row_sharded
from .selection import is_sharded, select_matrices, whole_tensor
from .sharing import cost, shares, touch

KINDS = ("so", "srip", "dso", "mc")
_REDUCTIONS = ("sum", "mean")

# Parameters of equal matrix shape are copied together up to this many elements. On CPU that pays for tiny
# matrices alone (measured from 2^14 to 2^20); on an accelerator launches cost more than copies of small ones.
_TOGETHER = {"cpu": 1 << 14, "cuda": 1 << 22}


class OrthogonalityRegularizer:
    """The orthogonality penalty of a module's weight matrices, to be added to any loss.

    ```python
    penalty = OrthogonalityRegularizer(encoder, kind="so")
    loss = ssl_loss + 1e-6 * penalty()
    ```

    It holds no parameters and is no `nn.Module`: weights are fetched from `module` at every call, so moving, casting,
    sharding or loading the module needs no rebuilding; copying it together with the module (`copy.deepcopy` of an
    object that holds both) keeps them together.

    Args:
        module (`torch.nn.Module`): whose weights are regularized; in SSL the encoder alone.
        kind (`str`, *optional*, defaults to `"so"`): `"so"`, `"srip"`, `"dso"` or `"mc"`, see
            [`hf_orthossl.regularization.penalties`].
        include (`str` or list of `str`, *optional*): shell patterns of parameter names to take, see
            [`select_matrices`].
        exclude (`str` or list of `str`, *optional*): shell patterns of parameter names to leave out.
        reduction (`str`, *optional*, defaults to `"sum"`): `"sum"` over the matrices, as in the paper, or `"mean"`.
        iterations (`int`, *optional*, defaults to `2`): power iterations of SRIP, ≥ 1.
        persistent (`bool`, *optional*, defaults to `False`): SRIP goes on from the vector of the previous call instead
            of a random one, so that few iterations follow the largest eigenvalue closely as the weights change slowly.
            Every process must then compute all matrices.
        depthwise (`bool`, *optional*, defaults to `False`): regularize depthwise kernels too.
        split_fused (`bool`, *optional*, defaults to `True`): one matrix per projection of fused attention layers.

    Attributes:
        matrices (`list[WeightMatrix]`): what is regularized, in the module's order.

    Raises:
        ValueError: for an unknown `kind` or `reduction`, `iterations` < 1, or a selection [`select_matrices`] refuses.

    Source: He, Du, Ma, "Preventing Dimensional Collapse in Self-Supervised Learning via Orthogonality Regularization",
    NeurIPS 2024: `loss = loss_ssl + γ · Σ_W OR(W)`.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: str = "so",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        reduction: str = "sum",
        *,
        iterations: int = 2,
        persistent: bool = False,
        depthwise: bool = False,
        split_fused: bool = True,
    ):
        _check_choice("kind", kind, KINDS)
        _check_choice("reduction", reduction, _REDUCTIONS)
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.kind = kind
        self.reduction = reduction
        self.iterations = iterations
        self.persistent = persistent
        self.matrices = select_matrices(module, include, exclude, depthwise, split_fused)
        self._vectors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.matrices)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kind={self.kind!r}, reduction={self.reduction!r}, matrices={len(self)})"

    @property
    def names(self) -> list[str]:
        """Names of the matrices, in the order of [`matrices`]."""
        return [matrix.name for matrix in self.matrices]

    def __call__(self, generator: torch.Generator | None = None, *, process: int = 0, processes: int = 1) -> Tensor:
        """The penalty now, or this process's share of it.

        Where each process of a data-parallel group passes its rank and their number, it computes some of the matrices
        only and returns them times `processes`: the mean over processes of the values is the penalty, and that of the
        gradients, which DDP and FSDP take, its gradient. Nothing is communicated.

        Of sharded weights (`DTensor`, of FSDP2) each process returns the whole penalty and gets its entries of the
        whole gradient, whatever `processes` is. All must call; they communicate in the forward pass only. Compute it
        after the layers, so that it is differentiated before them: FSDP passes a layer's gradients on only once.

        Args:
            generator (`torch.Generator`, *optional*): source of SRIP's start vectors; torch's own for the weights'
                device when not given. All vectors are drawn at once in the order of `matrices`, so that the value
                does not depend on which matrices are evaluated together, or by which process.
            process (`int`, *optional*, defaults to `0`): this process's rank.
            processes (`int`, *optional*, defaults to `1`): how many share the matrices out, ≥ 1.

        Returns:
            scalar `torch.Tensor`, float32 (float64 for float64 weights), differentiable with respect to the weights.

        Raises:
            ValueError: if `process` is not one of `processes`, or vectors are `persistent` and the matrices shared out.
        """
        if not 0 <= process < processes:
            raise ValueError(f"process is {process}: it must be from 0 to {processes - 1}, with processes={processes}")
        if self.persistent and processes > 1:
            raise ValueError(
                f"persistent=True with processes={processes}: a process would keep the vectors of its own matrices "
                "only; pass processes=1, or persistent=False and more iterations"
            )
        starts = self._starts(generator) if self.kind == "srip" else None
        weights = self._weights()
        whole = [i for i, weight in weights.items() if not is_sharded(weight)]
        costs = [cost(self.kind, self.matrices[i].shape, self.matrices[i].count) for i in whole]
        mine = {whole[k] for k in shares(costs, processes)[process]}
        others = [i for i in whole if i not in mine]
        values, vectors = self._evaluate({i: w for i, w in weights.items() if i not in others}, starts)
        if self.persistent and vectors:
            self._vectors = {name: vectors[i] for i, name in enumerate(self.names)}
        own = {place for i in mine for place in self._places(i)}
        parts = [(processes, sorted(own)), (1, sorted(values.keys() - own))]
        penalty = sum(factor * _stack([values[i] for i in places]).sum() for factor, places in parts if places)
        if others:
            # Every process must have every weight in its graph.
            zeros = [getattr(self.matrices[i].module, "_is_fsdp_managed_module", False) for i in others]
            penalty = penalty + touch([weights[i] for i in others], zeros)
        return penalty if self.reduction == "sum" else penalty / len(self)

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """The penalty of each matrix now, by name; torch's generators and SRIP's vectors stay as they are."""
        starts = self._starts(torch.Generator().manual_seed(0)) if self.kind == "srip" else None
        values, _ = self._evaluate(self._weights(), starts)
        return dict(zip(self.names, _stack([values[i] for i in range(len(self))]).tolist(), strict=True))

    def describe(self) -> str:
        """A table of what is regularized: name, matrix shape `input × output`, group and penalty now."""
        values = self.values()
        rows = [("name", "input × output", "group", self.kind)]
        rows += [(m.name, f"{m.shape[0]} × {m.shape[1]}", m.group, f"{values[m.name]:.6g}") for m in self.matrices]
        total = sum(values.values()) / (1 if self.reduction == "sum" else len(self))
        size = sum(m.shape[0] * m.shape[1] for m in self.matrices)
        rows.append((f"{self.reduction} of {len(self)} matrices", f"{size:,} weights", "", f"{total:.6g}"))
        name, shape, group, value = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [f"{a:<{name}}  {b:>{shape}}  {c:<{group}}  {d:>{value}}" for a, b, c, d in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def state_dict(self) -> dict[str, Tensor]:
        """SRIP's vectors by matrix name; empty unless `persistent` and called before."""
        return {name: vector.clone() for name, vector in self._vectors.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the vectors of [`state_dict`].

        Raises:
            ValueError: if `state` is of another selection of matrices.
        """
        expected = {m.name: (min(m.shape),) for m in self.matrices}
        given = {name: tuple(vector.shape) for name, vector in state.items()}
        if state and given != expected:
            name = next(n for n in [*expected, *given] if expected.get(n) != given.get(n))
            raise ValueError(
                f"state is of other matrices: {name!r} needs a vector of shape {expected.get(name)}, "
                f"got {given.get(name)}"
            )
        self._vectors = dict(state)

    def _starts(self, generator: torch.Generator | None) -> list[Tensor]:
        if self._vectors:
            return [self._vectors[name] for name in self.names]
        device = self.matrices[0].parameter.device if generator is None else generator.device
        sizes = [min(matrix.shape) for matrix in self.matrices]
        return list(torch.randn(sum(sizes), generator=generator, device=device).split(sizes))

    def _weights(self) -> dict[int, Tensor]:
        """Parameters by the place in `matrices` of their first matrix, each fetched once: a computed one may change."""
        return {i: matrix.parameter for i, matrix in enumerate(self.matrices) if not matrix.index}

    def _places(self, i: int) -> range:
        """The places of all matrices of the parameter whose first one is at `i`."""
        return range(i, i + self.matrices[i].count)

    def _evaluate(
        self, weights: dict[int, Tensor], starts: list[Tensor] | None
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Penalties of the matrices of some parameters, and SRIP's last vectors, by place in `matrices`."""
        values: dict[int, Tensor] = {}
        vectors: dict[int, Tensor] = {}
        cut = [i for i, weight in weights.items() if is_sharded(weight) and is_row_sharded(weight)]
        shards = [RowShard(self.matrices[i], weights[i]) for i in cut]
        drawn = [torch.stack([starts[j] for j in self._places(i)]) for i in cut] if starts else None
        found = sharded.evaluate(self.kind, shards, drawn, self.iterations)
        for i, (batch, last) in zip(cut, found, strict=True):
            values |= zip(self._places(i), batch.unbind(), strict=True)
            vectors |= zip(self._places(i), last.unbind(), strict=True) if starts else {}
        for indices, W in self._batches({i: weight for i, weight in weights.items() if i not in cut}):
            if starts:
                start = torch.stack([starts[i].to(W.device) for i in indices])
                batch, last = penalties.power_iteration(W, start, self.iterations)
                vectors |= zip(indices, last.unbind(), strict=True)
            else:
                batch = getattr(penalties, self.kind)(W)
            values |= zip(indices, batch.unbind(), strict=True)
        return values, vectors

    def _batches(self, weights: dict[int, Tensor]) -> Iterator[tuple[list[int], Tensor]]:
        """Places in `matrices` with those matrices, of shape `(len(places), input, output)`."""
        waiting: dict[tuple, tuple[list[int], list[Tensor]]] = {}
        for position, weight in weights.items():
            matrix = self.matrices[position]
            stack = matrix.layout(whole_tensor(weight), matrix.count)
            indices = list(self._places(position))
            limit = _TOGETHER.get(stack.device.type, _TOGETHER["cuda"])
            if 2 * stack.numel() > limit:  # no room for a second one
                yield indices, stack
                continue
            key = (stack.shape[1:], stack.dtype, stack.device)
            batch, stacks = waiting.setdefault(key, ([], []))
            if len(batch) * stack[0].numel() + stack.numel() > limit:
                yield batch, torch.cat(stacks)
                batch, stacks = waiting[key] = ([], [])
            batch += indices
            stacks.append(stack)
        for batch, stacks in waiting.values():
            yield batch, torch.cat(stacks)


def _stack(scalars: list[Tensor]) -> Tensor:
    device = scalars[0].device
    return torch.stack([scalar.to(device) for scalar in scalars])


def _check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value).lower(), choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{argument}={value!r} is unknown; {hint}choose from {', '.join(choices)}")
