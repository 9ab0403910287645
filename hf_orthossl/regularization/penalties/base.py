"""The base class of penalties, and their registry."""

import inspect
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ...messages import suggest
from ..matrices import check_matrices, compute_dtype
from ..sharded import RowShard, ShardedValue

PENALTIES: dict[str, type["Penalty"]] = {}
"""The registered penalties by name."""

MAX_STRENGTH = 0.5
"""The largest strength λ of a decoupled step: at 1/2 it is a step of Newton and Schulz towards the polar factor."""

PenaltyClass = TypeVar("PenaltyClass", bound="type[Penalty]")


class Penalty:
    """A measure of the distance of weight matrices from orthonormality, to be minimized.

    A subclass sets `name`, `title` and `default_gamma`, and defines [`value`]. Everything else has a default that works
    for any penalty, on one process and on many, with whole weights and with sharded ones. Options of a penalty, such as
    `iterations`, are the arguments of its `__init__`; each needs a default.

    Example:
        ```python
        from hf_orthossl import OrthogonalityRegularizer, Penalty, register_penalty


        @register_penalty
        class LogDeterminant(Penalty):
            name = "logdet"
            title = "log-determinant divergence"
            default_gamma = 1e-4

            def value(self, W, vectors=None):
                X = W if W.shape[-2] <= W.shape[-1] else W.mT
                G = X @ X.mT
                return G.diagonal(dim1=-2, dim2=-1).sum(-1) - torch.logdet(G) - G.shape[-1]


        penalty = OrthogonalityRegularizer(encoder, kind="logdet")
        ```

    Attributes:
        name (`str`): The name in configurations and on the command line.
        title (`str`): The name in cards, on the leaderboard and in help texts.
        default_gamma (`float`): The default weight γ, > 0.
        default_strength (`float`, defaults to 0): The default strength λ of [`decoupled_step`], from 0 to 1/2; 0 for a
            penalty that does not define one.
        num_vectors (`int`): The number k of random vectors that [`value`] needs for each matrix; 0 for none.
        has_reference (`bool`, defaults to `False`): Whether the penalty compares the weights with those of the start:
            it then defines [`reference`], and `value(W, vectors=None, reference=None)`.
        is_noisy (`bool`, defaults to `False`): Whether the gradient for one draw of random vectors is far from its
            mean over draws, so that its norm says little.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    default_gamma: ClassVar[float] = 0.0
    default_strength: ClassVar[float] = 0.0
    num_vectors: int = 0
    has_reference: ClassVar[bool] = False
    is_noisy: ClassVar[bool] = False

    def value(self, W: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return the penalty of each matrix, differentiable with respect to `W`.

        A penalty with a closed-form gradient returns the value of a `torch.autograd.Function`.

        Args:
            W (`torch.Tensor` of shape `(..., input, output)`): The matrices, in the dtype of the weights.
            vectors (`torch.Tensor` of shape `(..., num_vectors, min(input, output))`, *optional*): Random vectors,
                treated as constants by the gradient; `None` for a penalty without random vectors.

        Returns:
            `torch.Tensor` of shape `(...)`: One number for each matrix, in float32, or float64 for float64 weights.
        """
        raise TypeError(
            f"{type(self).__name__} is abstract: define value(W, vectors=None), which returns one number per matrix"
        )

    def reference(self, W: Tensor) -> Tensor:
        """Return what the penalty keeps of each matrix at the start, only if `has_reference` is set.

        It becomes part of checkpoints, see [`~regularization.references.References`].

        Args:
            W (`torch.Tensor` of shape `(..., input, output)`): The matrices at the start.

        Returns:
            `torch.Tensor` of shape `(..., any, any)`: One tensor for each matrix.
        """
        raise TypeError(f"{type(self).__name__} sets has_reference: define reference(W), one tensor per matrix")

    def decoupled_step(self, G: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the penalties, and the factors `P` of one step `X ← X − PX` towards their zero, outside of the loss.

        Only for a penalty whose gradient is `PX` with a `P` that follows from the Gram matrix alone, for `X`, the
        smaller side as rows. A step must not diverge, whatever the singular values: the strength is bounded for each
        matrix, see [`~regularization.penalties.so.SO.decoupled_step`]. Autograd and autocast are off.

        Args:
            G (`torch.Tensor` of shape `(..., n, n)`): The Gram matrices `XXᵀ`, in float32 or float64, which may be
                overwritten.
            strength (`float`): The strength λ of this step, ≥ 0.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: What [`value`] returns, of shape `(...)`, and `P` of shape
            `(..., n, n)`.
        """
        raise TypeError(f"{type(self).__name__} has no decoupled step: define decoupled_step(G, strength)")

    def draw(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Return `count` entries of random vectors, of shape `(count,)` and dtype float32; normal by default."""
        return torch.randn(count, generator=generator, device=device)

    def cost(self, shape: tuple[int, int]) -> int:
        """Return the cost of one matrix with its gradient, in multiply-adds up to a factor, to balance processes.

        Args:
            shape (`tuple[int, int]`): `(input, output)`. The default is the cost of a Gram matrix.
        """
        small, large = sorted(shape)
        return large * small**2

    def sharded(self, shards: Sequence[RowShard], vectors: Sequence[Tensor] | None = None) -> list[ShardedValue]:
        """Return values and gradients of parameters whose rows are sharded over processes.

        All processes must call it with the same parameters. It may communicate; autograd and autocast are off. By
        default, one parameter at a time is gathered.

        Args:
            shards (sequence of [`RowShard`]): The parameters, of one dtype and device mesh.
            vectors (sequence of `torch.Tensor` of shape `(count, num_vectors, min(input, output))`, *optional*): Random
                vectors of the matrices of each parameter, equal on all processes.

        Returns:
            `list[ShardedValue]`: For each parameter the values of its matrices and the gradients of this process's
            rows.
        """
        results = []
        for i, shard in enumerate(shards):
            whole = shard.weight.full_tensor().detach().requires_grad_()
            with torch.enable_grad():
                W = shard.matrix.layout(whole, shard.matrix.count)
                values = self._value(W, None if vectors is None else vectors[i], shard.reference)
                (gradient,) = torch.autograd.grad(values.sum(), whole)
            own = gradient[shard.start : shard.start + len(shard.weight.to_local())]
            results.append(ShardedValue(values.detach(), [block.rows.to(shard.dtype) for block in shard.cut(own)]))
        return results

    def __call__(
        self,
        W: Tensor,
        vectors: Tensor | None = None,
        generator: torch.Generator | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Return the penalty of each matrix; random vectors are drawn if none are given.

        Args:
            W (`torch.Tensor` of shape `(..., input, output)`): The matrices.
            vectors (`torch.Tensor` of shape `(..., num_vectors, min(input, output))`, *optional*): Random vectors.
            generator (`torch.Generator`, *optional*): The source of random vectors; torch's own by default.
            reference (`torch.Tensor` of shape `(..., any, any)`, *optional*): What [`reference`] returned at the start;
                without it, the start is now.

        Returns:
            `torch.Tensor` of shape `(...)`.

        Raises:
            ValueError: `W` has fewer than two dimensions, or `vectors` has the wrong shape.
        """
        check_matrices(W)
        shape = (*W.shape[:-2], self.num_vectors, min(W.shape[-2:]))
        if self.num_vectors and vectors is None:
            device = W.device if generator is None else generator.device
            vectors = self.draw(torch.Size(shape).numel(), device, generator).view(shape)
        if vectors is not None:
            if tuple(vectors.shape) != shape:
                raise ValueError(f"vectors has shape {tuple(vectors.shape)}: matrices {tuple(W.shape)} need {shape}")
            vectors = vectors.to(W.device, compute_dtype(W))
        return self._value(W, vectors, reference)

    def _value(self, W: Tensor, vectors: Tensor | None, reference: Tensor | None) -> Tensor:
        if not self.has_reference:
            return self.value(W, vectors)
        reference = self.reference(W.detach()) if reference is None else reference.to(W.device, compute_dtype(W))
        return self.value(W, vectors, reference)  # type: ignore[call-arg]  # such a penalty takes it

    def check(self) -> None:
        """Evaluate two small matrices, to reject an invalid penalty before training starts.

        Raises:
            ValueError: [`value`] does not return one number for each matrix, or has no gradient.
        """
        kind = type(self).__name__
        # `from_pretrained` builds models on the meta device, where nothing can be evaluated.
        with torch.enable_grad(), torch.device("cpu"):
            W = torch.eye(3, 2).repeat(2, 1, 1).add(0.25).requires_grad_()
            values = self(W, generator=torch.Generator().manual_seed(0))
        if not isinstance(values, Tensor) or values.shape != (2,):
            returned = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"penalty {kind}: value returned {returned} for W of shape (2, 3, 2): return one number for each "
                "matrix, of shape (2,)"
            )
        if not values.requires_grad:
            raise ValueError(
                f"penalty {kind}: value has no gradient with respect to W: compute it with differentiable torch "
                "operations, without detach(), item() or numpy"
            )

    @classmethod
    def has_decoupled_step(cls) -> bool:
        """Return whether the penalty defines [`decoupled_step`], itself or beside a [`value`] that it inherits."""
        # DSO has SO's methods, and another value.
        owner = next(kind for kind in cls.__mro__ if {"value", "decoupled_step"} & vars(kind).keys())
        return owner is not Penalty and "decoupled_step" in vars(owner)

    @classmethod
    def options(cls) -> list[str]:
        """Return the names of the penalty's options, the arguments of its `__init__`."""
        return [*inspect.signature(cls).parameters]


def register_penalty(cls: PenaltyClass) -> PenaltyClass:
    """Register a penalty class under its `name`; usable as a decorator.

    Raises:
        TypeError: The class is not a subclass of [`Penalty`].
        ValueError: It has no name, title, value or default γ, its name is taken, an option has no default, or it has a
            decoupled step without a default strength.
    """
    if not (isinstance(cls, type) and issubclass(cls, Penalty)):
        raise TypeError(f"{cls!r} cannot be registered as a penalty: derive a class from hf_orthossl.Penalty")
    if not cls.name or cls.name == "none" or not isinstance(cls.name, str):
        raise ValueError(f'penalty {cls.__name__} has no name: set name = "…" in the class, other than "none"')
    if not cls.title:
        raise ValueError(f'penalty {cls.__name__} has no title: set title = "…", the name to show in cards')
    if not cls.default_gamma > 0:
        raise ValueError(
            f"penalty {cls.__name__} has no default γ: set default_gamma to a number above 0, such as 1e-6"
        )
    if cls.value is Penalty.value:
        raise ValueError(
            f"penalty {cls.__name__} has no value: define value(self, W, vectors=None), which returns one number for "
            "each matrix"
        )
    if cls.has_decoupled_step() and not 0 < cls.default_strength <= MAX_STRENGTH:
        raise ValueError(
            f"penalty {cls.__name__} has a decoupled_step and default_strength is {cls.default_strength}: set it to a "
            f"number above 0 and up to {MAX_STRENGTH}, such as 0.05"
        )
    taken = PENALTIES.get(cls.name)
    # Running a notebook cell again redefines the same class.
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"penalty {cls.__name__}: the name {cls.name!r} is taken by {taken.__module__}.{taken.__qualname__}: "
            "choose another name"
        )
    for option in inspect.signature(cls).parameters.values():
        if option.default is option.empty:
            raise ValueError(f"penalty {cls.__name__}: its option {option.name!r} has no default: give it one")
    PENALTIES[cls.name] = cls
    return cls


def get_penalty(name: str) -> type[Penalty]:
    """Return a penalty class by name.

    Raises:
        ValueError: No penalty has this name.
    """
    if name not in PENALTIES:
        raise ValueError(f"penalty {name!r} is unknown: {suggest(name, sorted(PENALTIES))}")
    return PENALTIES[name]
