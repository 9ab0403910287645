"""The base class of embedding regularizers, and their registry."""

import inspect
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ...distributed.gather import all_gather
from ...messages import suggest
from ..hyperparameters import Hyperparameters
from ..losses import full_precision

EMBEDDING_REGULARIZERS: dict[str, type["EmbeddingRegularizer"]] = {}
"""The registered embedding regularizers by name."""

RegularizerClass = TypeVar("RegularizerClass", bound="type[EmbeddingRegularizer]")


@dataclass
class EmbeddingRegularizer(Hyperparameters):
    """A loss on the embeddings of a batch that keeps them spread out, to be added to the loss of any method.

    A subclass is a dataclass whose fields, declared with `hyper`, are its options. It sets the attributes below and
    defines [`value`], which is given the embeddings of all processes. As it couples the images of a batch, accumulating
    small batches changes it, whatever the method.

    Attributes:
        name (`str`): The name in configurations and on the command line.
        title (`str`): The name in cards and help texts.
        summary (`str`): What it does, in a few words.
        default_weight (`float`): The default weight w of the term that is added to the loss, > 0.
        source (`str`): The paper, such as "arXiv 2511.08544".
        views_needed (`int`, defaults to 1): Number of views per image that it compares; 1 for a term of each view.

    Example:
        ```python
        from dataclasses import dataclass

        from hf_orthossl import EmbeddingRegularizer, register_embedding_regularizer
        from hf_orthossl.methods import hyper


        @register_embedding_regularizer
        @dataclass
        class LogDeterminant(EmbeddingRegularizer):
            name = "logdet"
            title = "log-determinant of the covariance"
            summary = "gives all directions volume"
            default_weight = 1e-3

            epsilon: float = hyper(1e-3, "added to the variances", above=0)

            def value(self, views, generator):
                return -sum(torch.logdet(z.T.cov() + self.epsilon * torch.eye(z.shape[1]).to(z)) for z in views)
        ```
    """

    option = "embedding_config"

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    default_weight: ClassVar[float] = 0.0
    source: ClassVar[str] = ""
    views_needed: ClassVar[int] = 1

    def value(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the term of a batch, without its weight; subclasses must define it.

        Args:
            views (`list[Tensor]`): The embeddings `(B, d)` of each view, of all processes, in float32 or better and
                with autocast off; row i of all of them belongs to image i.
            generator (`torch.Generator`): Source of random numbers, equal on all processes and new at each step.

        Returns:
            `Tensor` of shape `()`: The term.
        """
        raise TypeError(f"{type(self).__name__} is abstract: define value(views, generator), which returns a scalar")

    def least_images(self, width: int) -> int:
        """Return the smallest number of images for which the term of embeddings of this width is defined."""
        return 2

    @full_precision
    def __call__(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the term of the batch of all processes, without its weight.

        Args:
            views (`list[Tensor]`): The embeddings `(B, d)` of each view, of this process.
            generator (`torch.Generator`): Source of random numbers, equal on all processes.

        Raises:
            ValueError: There are too few images or views.
        """
        widths = [z.shape[1] for z in views]
        gathered = all_gather(torch.cat(views, dim=1)).split(widths, dim=1)
        self.check_batch(len(gathered[0]), max(widths), len(views))
        return self.value(list(gathered), generator)

    def check_batch(self, images: int, width: int, views: int) -> None:
        """Reject a batch for which the term is not defined.

        Args:
            images (`int`): Images of a batch, over all processes.
            width (`int`): Width d of the embeddings.
            views (`int`): Views per image that have embeddings.

        Raises:
            ValueError: There are too few images or views; the message says how many are needed.
        """
        if views < self.views_needed:
            raise ValueError(
                f"embedding_regularizer is {self.name}, which compares {self.views_needed} views of an image, and the "
                f"method embeds {views}: choose another regularizer or method"
            )
        least = self.least_images(width)
        if images < least:
            raise ValueError(
                f"embedding_regularizer is {self.name}, and a batch of all processes has {images} embeddings of width "
                f"{width}: it needs {least} or more, pass a larger --per_device_train_batch_size"
                + self.remedy_for_small_batches()
            )

    def remedy_for_small_batches(self) -> str:
        """Return what else helps if a batch is too small, to end an error line; nothing by default."""
        return ""

    def check(self) -> None:
        """Evaluate small embeddings, to reject an invalid regularizer before training starts.

        Raises:
            ValueError: [`value`] does not return a scalar, or has no gradient.
        """
        kind = type(self).__name__
        # `from_pretrained` builds models on the meta device, where nothing can be evaluated.
        with torch.enable_grad(), torch.device("cpu"):
            generator = torch.Generator().manual_seed(0)
            size = (max(self.least_images(3), 4), 3)
            views = [torch.randn(size, generator=generator).requires_grad_() for _ in range(max(self.views_needed, 2))]
            term = self(views, generator)
        if not isinstance(term, Tensor) or term.shape != ():
            returned = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(f"embedding regularizer {kind}: value returned {returned}: return a scalar tensor")
        if not term.requires_grad:
            raise ValueError(
                f"embedding regularizer {kind}: value has no gradient with respect to the embeddings: compute it with "
                "differentiable torch operations, without detach(), item() or numpy"
            )


def unit_directions(width: int, count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return directions `(width, count)` drawn uniformly from the unit sphere, as columns.

    Args:
        width (`int`): Dimension of the space.
        count (`int`): Number of directions.
        generator (`torch.Generator`): The source of random numbers.
        like (`Tensor`): A tensor with the dtype and the device to use.
    """
    directions = torch.randn(width, count, generator=generator, device=generator.device).to(like)
    return directions / torch.linalg.vector_norm(directions, dim=0)


def register_embedding_regularizer(cls: RegularizerClass) -> RegularizerClass:
    """Register an embedding regularizer under its `name`; usable as a decorator, above `@dataclass`.

    Raises:
        TypeError: The class is not a subclass of [`EmbeddingRegularizer`].
        ValueError: It has no name, title, value or default weight, or its name is taken.
    """
    if not (inspect.isclass(cls) and issubclass(cls, EmbeddingRegularizer)):
        raise TypeError(
            f"{cls!r} cannot be registered as an embedding regularizer: derive a class from "
            "hf_orthossl.EmbeddingRegularizer"
        )
    label = f"embedding regularizer {cls.__name__}"
    if not cls.name or cls.name == "none" or not isinstance(cls.name, str):
        raise ValueError(f'{label} has no name: set name = "…" in the class, other than "none"')
    if not cls.title:
        raise ValueError(f'{label} has no title: set title = "…", the name to show in cards')
    if not cls.default_weight > 0:
        raise ValueError(f"{label} has no default weight: set default_weight to a number above 0, such as 0.1")
    if cls.value is EmbeddingRegularizer.value:
        raise ValueError(f"{label} has no value: define value(self, views, generator), which returns a scalar")
    taken = EMBEDDING_REGULARIZERS.get(cls.name)
    # Running a notebook cell again redefines the same class.
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"{label}: the name {cls.name!r} is taken by {taken.__module__}.{taken.__qualname__}: choose another name"
        )
    EMBEDDING_REGULARIZERS[cls.name] = cls
    return cls


def get_embedding_regularizer(name: str) -> type[EmbeddingRegularizer]:
    """Return the class of an embedding regularizer by name.

    Raises:
        ValueError: None has this name; the message suggests the nearest one.
    """
    if name not in EMBEDDING_REGULARIZERS:
        raise ValueError(
            f"embedding_regularizer {name!r} is unknown: {suggest(name, ['none', *EMBEDDING_REGULARIZERS])}"
        )
    return EMBEDDING_REGULARIZERS[name]
