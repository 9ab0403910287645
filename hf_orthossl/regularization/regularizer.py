"""`OrthogonalityRegularizer`: the penalty of all weight matrices of a module."""

import functools
import inspect
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.sharding import is_sharded
from ..messages import suggest
from .batching import Group, evaluate, random_vectors, shares, touch
from .decoupled import check_decoupled, exchange, step_weights
from .penalties import get_penalty
from .references import References
from .selection import LeftOut, WeightMatrix, is_standardized, left_out, select_matrices

_REDUCTIONS = ("sum", "mean")


class OrthogonalityRegularizer:
    """The orthogonality penalty of a module's weight matrices, to be added to any loss.

    It has no parameters and is not an `nn.Module`: weights are fetched from `module` at every call, so that the module
    may be moved, cast, sharded or loaded without rebuilding the regularizer. `copy.deepcopy` of an object that contains
    both yields a regularizer of the copied module.

    Args:
        module (`torch.nn.Module`): The module whose weights are regularized; in SSL only the encoder.
        kind (`str`, defaults to `"so"`): The name of a penalty: `orthossl methods` lists them, and [`register_penalty`]
            adds one of your own.
        include (`str` or list of `str`, *optional*): Shell patterns of parameter names to select, see
            [`select_matrices`].
        exclude (`str` or list of `str`, *optional*): Shell patterns of parameter names to exclude.
        reduction (`str`, defaults to `"sum"`): `"sum"` over the matrices, as in the paper, or `"mean"`.
        depthwise (`bool`, defaults to `False`): Regularize depthwise kernels too.
        split_fused (`bool`, defaults to `True`): Read fused attention layers as one matrix per projection.
        options: Options of the penalty, such as `iterations=4` for SRIP or `probes=32` for sketched SO.

    Attributes:
        matrices (`list[WeightMatrix]`): The regularized matrices, in the module's order.
        left_out (`list[LeftOut]`): The weights of two or more dimensions that are not regularized, with the reason.
        penalty ([`Penalty`]): The penalty of one matrix.
        references ([`~regularization.references.References`], *optional*): What a penalty such as "so_init" keeps of
            the weights, which are at their start when the regularizer is built. They are state: an [`SSLModel`] has
            them in its checkpoints; elsewhere, save `references.state_dict()` with the weights.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
        ValueError: `kind`, `reduction` or an option is unknown, a penalty is invalid (see [`Penalty.check`]), or
            [`select_matrices`] rejects the selection.

    Example:
        ```python
        penalty = OrthogonalityRegularizer(encoder, kind="so")
        loss = ssl_loss + 1e-6 * penalty()
        ```

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
        depthwise: bool = False,
        split_fused: bool = True,
        **options: Any,
    ):
        self.matrices: list[WeightMatrix] = select_matrices(module, include, exclude, depthwise, split_fused)
        self.left_out: list[LeftOut] = left_out(module, self.matrices)
        self.split_fused = split_fused
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction {reduction!r} is unknown: {suggest(reduction, _REDUCTIONS)}")
        self.kind = kind
        self.reduction = reduction
        check_options(kind, options)
        self.penalty = get_penalty(kind)(**options)
        self.penalty.check()
        self.references = References(self.penalty, self.matrices) if self.penalty.has_reference else None

    def __len__(self) -> int:
        return len(self.matrices)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kind={self.kind!r}, reduction={self.reduction!r}, matrices={len(self)})"

    @property
    def names(self) -> list[str]:
        """The names of the matrices, in the order of `matrices`."""
        return [matrix.name for matrix in self.matrices]

    def __call__(
        self,
        generator: torch.Generator | None = None,
        *,
        process: int = 0,
        processes: int = 1,
        trained_only: bool = False,
    ) -> Tensor:
        """Return the current penalty, or this process's share of it.

        If each process of a data-parallel group passes its rank and their number, it evaluates only some of the
        matrices and returns their penalty times `processes`: the mean of the values over processes is the penalty, and
        the mean of the gradients, which DDP and FSDP compute, is its gradient. Nothing is communicated.

        With sharded weights (`DTensor`, of FSDP2) each process returns the whole penalty and receives the gradient of
        its shard, whatever `processes` is. All processes must call it; they communicate in the forward pass only.
        Compute it after the layers, so that it is differentiated before them: FSDP passes a layer's gradients on only
        once.

        Args:
            generator (`torch.Generator`, *optional*): The source of random vectors; torch's own for the weights' device
                by default. All are drawn at once in the order of `matrices`, so that the value does not depend on which
                matrices are evaluated together, or by which process.
            process (`int`, defaults to 0): The rank of this process.
            processes (`int`, defaults to 1): The number of processes that share the matrices, ≥ 1.
            trained_only (`bool`, defaults to `False`): Leave out the matrices of frozen weights, which have no
                gradient; 0 if all are frozen.

        Returns:
            `torch.Tensor` of shape `()`: float32 (float64 for float64 weights), differentiable with respect to the
            weights.

        Raises:
            ValueError: `process` is not from 0 to `processes` − 1.
        """
        weights = self._weights()
        if trained_only:
            weights = {i: weight for i, weight in weights.items() if weight.requires_grad}
        own, others = self._shares(weights, process, processes)
        penalty = _total([(factor, group.values) for factor, group in self._evaluate(own, generator, processes)])
        if others:
            # Every process must have every weight in its graph.
            zeros = [getattr(self.matrices[i].module, "_is_fsdp_managed_module", False) for i in others]
            penalty = penalty + touch(list(others.values()), zeros)
        return penalty

    def add_gradients(
        self, weight: float = 1.0, generator: torch.Generator | None = None, *, process: int = 0, processes: int = 1
    ) -> Tensor:
        """Add `weight` times the penalty's gradient to the `.grad` of the weights, without a loss to differentiate.

        It is equivalent to `(weight * penalty()).backward()`, but processes one matrix, or one batch of small matrices,
        at a time, which uses less memory. Hooks of the weights are not called.

        Args:
            weight (`float`, defaults to 1.0): The factor of the gradient, such as γ.
            generator (`torch.Generator`, *optional*): See `__call__`.
            process (`int`, defaults to 0): See `__call__`; weights of other processes receive no gradient.
            processes (`int`, defaults to 1): See `__call__`.

        Returns:
            `torch.Tensor` of shape `()`: The value of `__call__`, detached.

        Raises:
            ValueError: `process` is not from 0 to `processes` − 1.
        """
        parts = []
        with torch.enable_grad():
            own, _ = self._shares(self._weights(), process, processes)
            for factor, group in self._evaluate(own, generator, processes):
                parts.append((factor, group.values.detach()))
                _add_gradient((weight * factor) * group.values.sum())
        return _total(parts)

    def step(self, strength: float, *, process: int = 0, processes: int = 1) -> Tensor:
        """Take a step towards the zero of the penalty, in place and outside of the loss; call it after the optimizer.

        For SO it is `W ← W − s·W(WᵀW − I)`, or `W − s·(WWᵀ − I)W`, on the smaller side: the decoupled penalty, as AdamW
        decouples weight decay. `s` is the strength, bounded for each matrix so that no singular value crosses 1
        ([`~regularization.penalties.so.SO.decoupled_step`] proves it), or for scaled SO so that no two change their
        order. It is per matrix, whatever `reduction` is. Frozen weights stay as they are. One matrix after the other,
        or several small ones together, is read and written, without a graph.

        If each process of a data-parallel group passes its rank and their number, it steps only some of the matrices,
        and receives the others from the processes that have stepped them, over the default process group: the weights
        are then equal on all processes, bit for bit. Of sharded weights (`DTensor`) each process steps its shard,
        whatever `processes` is; all processes must call it.

        Args:
            strength (`float`): The strength λ of this step, ≥ 0; with a learning rate that changes, its full value
                times the rate's share of its peak.
            process (`int`, defaults to 0): The rank of this process.
            processes (`int`, defaults to 1): The number of processes that share the matrices, ≥ 1.

        Returns:
            `torch.Tensor` of shape `()`: The penalty of the weights before the step, without those that are frozen; of
            this process's share as `__call__` returns it.

        Raises:
            ValueError: The penalty has no such step, a weight cannot be written in place, `strength` is negative or
                not finite, or `process` is not from 0 to `processes` − 1.

        Example:
            ```python
            optimizer.step()
            penalty.step(0.05 * scheduler.get_last_lr()[0] / peak)
            ```
        """
        check_decoupled(self.penalty, self.matrices)
        if not 0 <= strength < float("inf"):
            raise ValueError(f"strength is {strength}: it must be 0 or more, as in 0.05")
        weights = {i: weight for i, weight in self._weights().items() if weight.requires_grad}
        own, _ = self._shares(weights, process, processes)
        groups = step_weights(self.penalty, self.matrices, own, strength)
        penalty = _total([(factor, group.values) for factor, group in self._scaled(groups, own, processes)])
        if processes > 1:
            exchange(weights, self._owners(weights, processes))
        return penalty

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """Return the current penalty of each matrix, by name; the states of torch's generators do not change."""
        values: dict[int, float] = {}
        for group in self._groups(self._weights(), torch.Generator().manual_seed(0)):
            values |= zip(group.places, group.values.tolist(), strict=True)
        return {name: values[i] for i, name in enumerate(self.names)}

    def describe(self) -> str:
        """Return a table of the regularized matrices, and below it the weights that are left out.

        Of a matrix it shows name, shape `input × output`, kind of layer and current penalty; of a weight that is left
        out name, shape and reason.
        """
        values = self.values()
        table = [("name", "input × output", "group", self.kind)]
        table += [(m.name, f"{m.shape[0]} × {m.shape[1]}", m.group, f"{values[m.name]:.6g}") for m in self.matrices]
        total = sum(values.values()) / (1 if self.reduction == "sum" else len(self))
        size = sum(m.shape[0] * m.shape[1] for m in self.matrices)
        table.append((f"{self.reduction} of {len(self)} matrices", f"{size:,} weights", "", f"{total:.6g}"))
        name, shape, group, value = (max(map(len, column)) for column in zip(*table, strict=True))
        lines = [f"{a:<{name}}  {b:>{shape}}  {c:<{group}}  {d:>{value}}" for a, b, c, d in table]
        rule = "-" * len(lines[0])
        others = [f"{entry.name}  {'×'.join(map(str, entry.shape))}  {entry.reason}" for entry in self.left_out]
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *(["left out:", *others] if others else [])])

    @property
    def fused(self) -> str | None:
        """Return how fused attention layers are read: `"split"`, `"whole"`, or `None` without any."""
        if not any(matrix.group in ("qkv", "kv") for matrix in self.matrices):
            return None
        return "split" if self.split_fused else "whole"

    def summary(self) -> str:
        """Return in one line how many matrices are regularized, how fused layers are read, and what is left out."""
        text = f"{len(self)} matrices"
        if self.fused:
            text += f", fused layers read {'by their parts (q, k, v)' if self.fused == 'split' else 'whole'}"
        standardized = {matrix.module for matrix in self.matrices if is_standardized(matrix.module)}
        if standardized:
            text += f", of {len(standardized)} weight-standardized convolutions the parameter"
        kinds = Counter(entry.reason.partition(",")[0] for entry in self.left_out)
        counts = ", ".join(f"{count} × {reason}" for reason, count in kinds.most_common())
        return text + (f"; weights left out: {counts}" if counts else "")

    def _weights(self) -> dict[int, Tensor]:
        """Return parameters by the index of their first matrix, each fetched once, since a computed one may change."""
        return {i: matrix.parameter for i, matrix in enumerate(self.matrices) if not matrix.index}

    def _shares(
        self, weights: dict[int, Tensor], process: int, processes: int
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Return the weights that this process evaluates, and those that other processes evaluate."""
        if not 0 <= process < processes:
            raise ValueError(f"process is {process}: it must be from 0 to {processes - 1}, with processes={processes}")
        owners = self._owners(weights, processes)
        others = {i: weights[i] for i, owner in owners.items() if owner != process}
        return {i: weight for i, weight in weights.items() if i not in others}, others

    def _owners(self, weights: dict[int, Tensor], processes: int) -> dict[int, int]:
        """Return the process that evaluates each weight, of those that every process has whole."""
        whole = [i for i, weight in weights.items() if not is_sharded(weight)]
        costs = [self.penalty.cost(self.matrices[i].shape) * self.matrices[i].count for i in whole]
        split = shares(costs, processes)
        owners = {whole[k]: process for process, items in enumerate(split) for k in items}
        return {i: owners[i] for i in whole}

    def _evaluate(
        self, weights: dict[int, Tensor], generator: torch.Generator | None, processes: int
    ) -> Iterator[tuple[float, Group]]:
        """Yield groups of matrices with the factor of their penalties."""
        yield from self._scaled(self._groups(weights, generator), weights, processes)

    def _scaled(
        self, groups: Iterator[Group], weights: dict[int, Tensor], processes: int
    ) -> Iterator[tuple[float, Group]]:
        """Yield groups with the factor of their penalties."""
        scale = 1 if self.reduction == "sum" else 1 / len(self)
        for group in groups:
            yield scale * (1 if is_sharded(weights[group.places[0]]) else processes), group

    def _groups(self, weights: dict[int, Tensor], generator: torch.Generator | None) -> Iterator[Group]:
        vectors = random_vectors(self.penalty, self.matrices, generator)
        if self.references is not None and weights:
            # They follow the weights of a module that was moved, unless a model has moved both.
            self.references.to(next(iter(weights.values())).device)
        return evaluate(self.penalty, self.matrices, weights, vectors, self.references)


def check_options(kind: str, options: Iterable[str]) -> None:
    """Reject options that [`OrthogonalityRegularizer`] does not accept for a penalty.

    Args:
        kind (`str`): The name of a penalty.
        options (iterable of `str`): Names of options.

    Raises:
        ValueError: The penalty or an option is unknown.
    """
    known = get_penalty(kind).options()
    # The parameters after module and kind, except for the options of the penalty.
    known += [*inspect.signature(OrthogonalityRegularizer).parameters][2:-1]
    for name in options:
        if name not in known:
            raise ValueError(f"penalty {kind!r} has no option {name!r}: {suggest(name, known)}")


def _add_gradient(penalty: Tensor) -> None:
    """Add the gradient of a scalar penalty to the `.grad` of the parameters it depends on; its graph is freed."""
    if not penalty.requires_grad:
        return
    leaves = _leaves(penalty)
    # Not backward(), which under DDP would trigger hooks that expect a forward pass.
    for leaf, gradient in zip(leaves, torch.autograd.grad(penalty, leaves), strict=True):
        if leaf.grad is not None:
            leaf.grad.add_(gradient)
        else:
            # In the memory order of the parameter, as autograd stores it: optimizers are slower on other orders.
            same = gradient.stride() == leaf.stride()
            leaf.grad = gradient if same else torch.empty_like(leaf).copy_(gradient)


def _leaves(tensor: Tensor) -> list[Tensor]:
    """Return the parameters that a tensor was computed from, including those of parametrized weights."""
    leaves: list[Tensor] = []
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves


def _total(parts: list[tuple[float, Tensor]]) -> Tensor:
    """Return the sum of tensors' entries times their factors, in few kernels; 0 if this process has no tensors."""
    alike = defaultdict(list)
    for factor, values in parts:
        alike[factor].append(values.to(parts[0][1].device))
    sums = [factor * torch.cat(values).sum() for factor, values in alike.items()]
    return functools.reduce(operator.add, sums) if sums else torch.zeros(())
