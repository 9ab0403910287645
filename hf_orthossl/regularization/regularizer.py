"""`OrthogonalityRegularizer`: the penalty of all weight matrices of a module."""

import difflib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..distributed.sharding import is_sharded
from .description import description
from .evaluation import Group, evaluate, random_vectors
from .gradients import add_gradient
from .selection import select_matrices
from .sharing import cost, shares, touch

KINDS = ("so", "sketched_so", "srip", "dso", "mc")
_REDUCTIONS = ("sum", "mean")


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
        kind (`str`, *optional*, defaults to `"so"`): `"so"`, `"sketched_so"`, `"srip"`, `"dso"` or `"mc"`, see
            the functions of these names.
        include (`str` or list of `str`, *optional*): shell patterns of parameter names to take, see
            [`select_matrices`].
        exclude (`str` or list of `str`, *optional*): shell patterns of parameter names to leave out.
        reduction (`str`, *optional*, defaults to `"sum"`): `"sum"` over the matrices, as in the paper, or `"mean"`.
        iterations (`int`, *optional*, defaults to `2`): power iterations of SRIP, ≥ 1.
        persistent (`bool`, *optional*, defaults to `False`): SRIP goes on from the vector of the previous call instead
            of a random one, so that few iterations follow the largest eigenvalue closely as the weights change slowly.
            Every process must then compute all matrices.
        probes (`int`, *optional*, defaults to `16`): random vectors of sketched SO, ≥ 1.
        depthwise (`bool`, *optional*, defaults to `False`): regularize depthwise kernels too.
        split_fused (`bool`, *optional*, defaults to `True`): one matrix per projection of fused attention layers.

    Attributes:
        matrices (`list[WeightMatrix]`): what is regularized, in the module's order.

    Raises:
        ValueError: for an unknown `kind` or `reduction`, `iterations` or `probes` < 1, or a selection
            [`select_matrices`] refuses.

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
        probes: int = 16,
        depthwise: bool = False,
        split_fused: bool = True,
    ):
        _check_choice("kind", kind, KINDS)
        _check_choice("reduction", reduction, _REDUCTIONS)
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        self.kind = kind
        self.reduction = reduction
        self.iterations = iterations
        self.persistent = persistent
        self.probes = probes
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
            generator (`torch.Generator`, *optional*): source of the random vectors of SRIP and sketched SO; torch's own
                for the weights' device when not given. All are drawn at once in the order of `matrices`, so that the
                value does not depend on which matrices are evaluated together, or by which process.
            process (`int`, *optional*, defaults to `0`): this process's rank.
            processes (`int`, *optional*, defaults to `1`): how many share the matrices out, ≥ 1.

        Returns:
            scalar `torch.Tensor`, float32 (float64 for float64 weights), differentiable with respect to the weights.

        Raises:
            ValueError: if `process` is not one of `processes`, or vectors are `persistent` and the matrices shared out.
        """
        weights = self._weights()
        mine, others = self._shares(weights, process, processes)
        penalty = _total([(factor, group.values) for factor, group in self._evaluate(mine, generator, processes)])
        if others:
            # Every process must have every weight in its graph.
            zeros = [getattr(self.matrices[i].module, "_is_fsdp_managed_module", False) for i in others]
            penalty = penalty + touch(list(others.values()), zeros)
        return penalty

    def add_gradients(
        self, weight: float = 1.0, generator: torch.Generator | None = None, *, process: int = 0, processes: int = 1
    ) -> Tensor:
        """Adds `weight` times the penalty's gradient to the weights' `.grad`, without a loss to differentiate.

        As `(weight * penalty()).backward()` does, but one matrix, or batch of tiny ones, after the other: what is kept
        for the gradient is of one at a time, so that less memory is needed. No hooks of the weights are called.

        Args:
            weight (`float`, *optional*, defaults to `1.0`): factor of the gradient, such as γ.
            generator, process, processes: as of a call; weights that are another process's get no gradient.

        Returns:
            scalar `torch.Tensor`, what a call returns, detached.

        Raises:
            ValueError: as a call.
        """
        parts = []
        with torch.enable_grad():
            mine, _ = self._shares(self._weights(), process, processes)
            for factor, group in self._evaluate(mine, generator, processes):
                parts.append((factor, group.values.detach()))
                add_gradient((weight * factor) * group.values.sum())
        return _total(parts)

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """The penalty of each matrix now, by name; torch's generators and SRIP's vectors stay as they are."""
        values = {}
        for group in self._groups(self._weights(), torch.Generator().manual_seed(0)):
            values |= zip(group.places, group.values.tolist(), strict=True)
        return {name: values[i] for i, name in enumerate(self.names)}

    def describe(self) -> str:
        """A table of what is regularized: name, matrix shape `input × output`, group and penalty now."""
        return description(self.matrices, self.values(), self.kind, self.reduction)

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

    def _weights(self) -> dict[int, Tensor]:
        """Parameters by the place in `matrices` of their first matrix, each fetched once: a computed one may change."""
        return {i: matrix.parameter for i, matrix in enumerate(self.matrices) if not matrix.index}

    def _shares(
        self, weights: dict[int, Tensor], process: int, processes: int
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """The weights that this process evaluates, and those that others do."""
        if not 0 <= process < processes:
            raise ValueError(f"process is {process}: it must be from 0 to {processes - 1}, with processes={processes}")
        if self.persistent and processes > 1:
            raise ValueError(
                f"persistent=True with processes={processes}: a process would keep the vectors of its own matrices "
                "only; pass processes=1, or persistent=False and more iterations"
            )
        whole = [i for i, weight in weights.items() if not is_sharded(weight)]
        costs = [cost(self.kind, self.matrices[i].shape, self.matrices[i].count) for i in whole]
        own = {whole[k] for k in shares(costs, processes)[process]}
        others = {i: weights[i] for i in whole if i not in own}
        return {i: weight for i, weight in weights.items() if i not in others}, others

    def _evaluate(
        self, weights: dict[int, Tensor], generator: torch.Generator | None, processes: int
    ) -> Iterator[tuple[float, Group]]:
        """Groups of matrices with the factor of their penalties; SRIP's vectors are kept if they are to be."""
        scale = 1 if self.reduction == "sum" else 1 / len(self)
        vectors = {}
        for group in self._groups(weights, generator):
            yield scale * (1 if is_sharded(weights[group.places[0]]) else processes), group
            if group.vectors is not None:
                vectors |= zip([self.names[i] for i in group.places], group.vectors.detach().unbind(), strict=True)
        if self.persistent:
            self._vectors = {name: vectors[name] for name in self.names if name in vectors}

    def _groups(self, weights: dict[int, Tensor], generator: torch.Generator | None) -> Iterator[Group]:
        if self._vectors:
            random = [self._vectors[name][None] for name in self.names]
        else:
            random = random_vectors(self.kind, self.matrices, self.probes, generator)
        return evaluate(self.kind, self.matrices, weights, random, self.iterations)


def _total(parts: list[tuple[float, Tensor]]) -> Tensor:
    """The sum of tensors' entries times their factors, in few kernels; 0 of none, where others have all matrices."""
    alike = defaultdict(list)
    for factor, values in parts:
        alike[factor].append(values.to(parts[0][1].device))
    return sum(factor * torch.cat(values).sum() for factor, values in alike.items()) if parts else torch.zeros(())


def _check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value).lower(), choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{argument}={value!r} is unknown; {hint}choose from {', '.join(choices)}")
