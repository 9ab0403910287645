"""The base class of SSL methods, the hooks of a training step, and the registry."""

import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..distributed.collectives import rank, world_size
from ..distributed.gather import pooled_moments
from ..encoders import Encoder
from ..messages import suggest
from .hyperparameters import MethodConfig
from .losses import at_least_float32


@dataclass
class SSLOutput(ModelOutput):
    """The output of a forward pass of a method, or of an [`SSLModel`].

    Args:
        loss (`Tensor` of shape `()`): The loss to differentiate.
        parts (`dict[str, Tensor]`): Detached scalars to log, by name.
        representations (`list[Tensor]`): The encoder's outputs `(B, D)`, one per view that it saw, with their gradient.
        embeddings (`list[Tensor]`): The projector's outputs `(B, d)`, one per view, with their gradient; regularizers
            of the embedding act on them.
        predictions (`list[Tensor]`, *optional*): The predictor's outputs `(B, d)`, one per view, with their gradient;
            feature whitening acts on them.
    """

    # Fields of a `ModelOutput` need defaults; all but the last are always given.
    loss: Tensor = None  # type: ignore[assignment]
    parts: dict[str, Tensor] = None  # type: ignore[assignment]
    representations: list[Tensor] = None  # type: ignore[assignment]
    embeddings: list[Tensor] = None  # type: ignore[assignment]
    predictions: list[Tensor] | None = None


@dataclass(frozen=True)
class Progress:
    """The position of training, in optimizer steps; schedules are functions of it.

    Args:
        step (`int`, defaults to 0): Number of optimizer steps done.
        max_steps (`int`, defaults to 1): Number of optimizer steps in the whole run.
        steps_per_epoch (`int`, defaults to 1): Number of optimizer steps in one pass over the data.
        seed (`int`, defaults to 0): Seed of the run; with `step`, the source of the penalty's random vectors.
    """

    step: int = 0
    max_steps: int = 1
    steps_per_epoch: int = 1
    seed: int = 0

    @property
    def fraction(self) -> float:
        """Return the share of the run that is done, in [0, 1]."""
        return min(self.step / max(self.max_steps, 1), 1.0)

    @property
    def epoch(self) -> float:
        """Return the number of passes over the data done, with fraction."""
        return self.step / max(self.steps_per_epoch, 1)

    # `torch.compile` warns of what it cannot trace.
    @torch.compiler.disable
    def generator(self, device: torch.device | str) -> torch.Generator:
        """Return a random generator on `device` that depends on seed and step only."""
        # torch's CPU generator uses only the low 32 bits of a seed, so both numbers are hashed into them.
        hashed = np.random.SeedSequence((self.seed, self.step)).generate_state(1)[0]
        return torch.Generator(device).manual_seed(int(hashed))


@dataclass(frozen=True)
class TrainingRecipe:
    """A method's published training settings for CIFAR, the defaults of options that the user does not set.

    Args:
        optim (`str`): "lars", "sgd" or a name of `transformers.TrainingArguments.optim`.
        learning_rate (`float`): Learning rate for `lr_batch_size` images per step; scaled linearly to the actual batch.
        weight_decay (`float`): Weight decay.
        views (`str`): Name of the augmentation recipe.
        lr_batch_size (`int`, *optional*, defaults to 256): Batch size that the learning rate refers to; `None` leaves
            the rate unscaled.
        warmup_epochs (`float`, defaults to 0): Epochs of linear warm-up. Runs of fewer than ten times as many epochs
            warm up for a tenth of their steps.
        warmup_start_lr (`float`, defaults to 0): Learning rate at the first step of the warm-up.
    """

    optim: str
    learning_rate: float
    weight_decay: float
    views: str
    lr_batch_size: int | None = 256
    warmup_epochs: float = 0.0
    warmup_start_lr: float = 0.0


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class SSLMethod(nn.Module, Generic[ConfigT]):
    """A self-supervised method: heads on top of an encoder, a loss over views, and state that advances with the steps.

    A subclass gives the class of its hyper-parameters in brackets, sets the attributes below, builds its heads in
    `__init__`, and returns an [`SSLOutput`] from `forward(encoder, views)`. It updates target networks, queues and
    centres only in [`~SSLMethod.advance`], which runs once per optimizer step regardless of gradient accumulation, and
    not after a skipped step. A forward pass stores tensors for it with [`~SSLMethod.stage`].

    Args:
        encoder ([`Encoder`]): Maps `(B, C, H, W)` to `(B, encoder.num_features)`. Used to build the heads and not
            stored: the model owns the encoder and passes it to `forward`.
        config ([`MethodConfig`]): Hyper-parameters, an instance of `config_class`.

    Attributes:
        name (`str`): The name in `SSLConfig(method=name)`.
        title (`str`): The name as the authors write it; `name` by default.
        family (`str`): "contrastive", "distillation", "decorrelation", "clustering", "theory" or another word.
        source (`str`): The paper, such as "arXiv 2002.05709".
        heads (`str`): The heads in a few words, for tables.
        summary (`str`): When to choose the method, in one line.
        recipe ([`TrainingRecipe`]): Default optimizer, learning rate and views; SimCLR's by default.
        config_class (`type[MethodConfig]`): The class of `config`; by default the one in brackets.
        batch_coupled (`bool`, defaults to `True`): Whether an image's loss depends on the other images of its batch. If
            not, n accumulated batches of m images give the update of one batch of n·m, up to the statistics of batch
            norm.
        has_predictor (`bool`, defaults to `False`): Whether `forward` returns predictions.
        has_target (`bool`, defaults to `False`): Whether there is a target network.
        has_queue (`bool`, defaults to `False`): Whether there is a queue, of `config.queue_size` embeddings.
        views_needed (`int`, defaults to 2): Number of global views per image.
        needs_patches (`bool`, defaults to `False`): Whether the encoder must be a vision transformer whose patches can
            be left out, see [`Encoder.patches`].
        takes_local_views (`bool`, defaults to `False`): Whether further views, local crops, are used.

    Example:
        ```python
        from dataclasses import dataclass

        from hf_orthossl import SSLConfig, SSLMethod, register_method
        from hf_orthossl.methods import MethodConfig, hyper


        @dataclass
        class AlignmentConfig(MethodConfig):
            weight: float = hyper(1.0, "weight of the squared distance", above=0)


        @register_method
        class Alignment(SSLMethod[AlignmentConfig]):
            name = "alignment"

            def forward(self, encoder, views):
                first, second = encoder(views[0]), encoder(views[1])
                loss = self.config.weight * (first - second).square().sum(dim=1).mean()
                return self.output(loss, [first, second], [first, second])


        config = SSLConfig(method="alignment", method_config={"weight": 0.5})
        ```
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str] = "custom"
    source: ClassVar[str] = ""
    heads: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe("sgd", 0.06, 5e-4, views="cifar-simclr", lr_batch_size=128)
    config_class: ClassVar[type[MethodConfig]]
    batch_coupled: ClassVar[bool] = True
    has_predictor: ClassVar[bool] = False
    has_target: ClassVar[bool] = False
    has_queue: ClassVar[bool] = False
    views_needed: ClassVar[int] = 2
    needs_patches: ClassVar[bool] = False
    takes_local_views: ClassVar[bool] = False

    config: ConfigT

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "config_class" not in cls.__dict__:
            for base in cls.__dict__.get("__orig_bases__", ()):
                for argument in get_args(base) if inspect.isclass(get_origin(base)) else ():
                    if inspect.isclass(argument) and issubclass(argument, MethodConfig):
                        cls.config_class = argument

    def __init__(self, encoder: Encoder, config: ConfigT):
        super().__init__()
        self.config = config
        self.progress = Progress()
        self._images_seen, self._first_image = 0, 0
        if self.needs_patches:
            self._require_patches(encoder)
        self._staged: dict[str, list[Tensor]] = defaultdict(list)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of one batch; subclasses must define it.

        Args:
            encoder (`nn.Module`): Maps `(B, C, H, W)` to `(B, D)`.
            views (`list[Tensor]`): V tensors of shape `(B, C, H, W)`, normalized as the encoder expects.
        """
        raise TypeError(f"{type(self).__name__} does not define forward(encoder, views)")

    @staticmethod
    def output(
        loss: Tensor, representations: list[Tensor], embeddings: list[Tensor], predictions: list[Tensor] | None = None
    ) -> SSLOutput:
        """Return the output of `forward`, with the spread of the embedding among the logged parts.

        Args:
            loss (`Tensor` of shape `()`): The loss.
            representations (`list[Tensor]`): The online encoder's outputs `(B, D)`, one per view.
            embeddings (`list[Tensor]`): The projector's outputs `(B, d)`, one per view.
            predictions (`list[Tensor]`, *optional*): The predictor's outputs `(B, d)`, one per view.
        """
        parts = {"embedding_std": embedding_std(embeddings[0].detach())}
        return SSLOutput(loss, parts, representations, embeddings, predictions)

    def stage(self, name: str, value: Tensor) -> None:
        """Store a detached tensor, one per micro-batch, for the next [`~SSLMethod.advance`]."""
        if self.training:
            self._staged[name].append(value.detach())

    def begin_step(self, progress: Progress) -> None:
        """Record the position of training, before the first forward pass of an optimizer step."""
        self.progress = progress
        self._images_seen = 0

    def begin_batch(self, images: int) -> None:
        """Record the place in the optimizer step of a micro-batch of this many images, before its forward pass."""
        # Micro-batch j of process p holds batch j·P + p of the step.
        self._first_image = self._images_seen + rank() * images
        self._images_seen += world_size() * images

    # It depends on the number of the step, and would be compiled anew at each.
    @torch.compiler.disable
    def generators(self, images: int) -> list[np.random.Generator]:
        """Return a random generator for each image of the micro-batch.

        Each depends on the seed, the step and the place of the image in the step only, so that masks are the same
        however processes and micro-batches share the step out.

        Args:
            images (`int`): Number of images of the micro-batch.
        """
        key = np.random.SeedSequence((self.progress.seed, self.progress.step)).generate_state(2, np.uint64)
        first = self._first_image
        return [
            np.random.Generator(np.random.Philox(counter=[0, 0, 0, image], key=key))
            for image in range(first, first + images)
        ]

    def before_optimizer_step(self) -> None:
        """Change the final gradients of a step, for example to freeze a layer."""

    def end_step(self, encoder: nn.Module, skipped: bool = False) -> None:
        """Advance the method's state after an optimizer step, unless mixed precision skipped the step."""
        staged, self._staged = self._staged, defaultdict(list)
        if not skipped:
            self.advance(encoder, staged)

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update target networks, queues and centres after one optimizer step; by default there are none.

        Args:
            encoder (`nn.Module`): The online encoder.
            staged (`dict[str, list[Tensor]]`): The tensors stored by [`~SSLMethod.stage`], one per micro-batch.
        """

    def facts(self) -> dict[str, str]:
        """Return what a run records of this method beside its hyper-parameters, such as a teacher, by name.

        The values go into the record and the card of a run, and into the first lines of `orthossl pretrain`. A run is
        resumed only if they are the same.
        """
        return {}

    def check_folder(self, folder: Path) -> None:
        """Reject a folder that this method cannot be trained in.

        Args:
            folder (`Path`): The folder of the run.

        Raises:
            ValueError: The run would replace files that the method reads.
        """

    def check_batch(self, batch_size: int, views: int) -> None:
        """Reject a batch that this method cannot train on.

        Args:
            batch_size (`int`): Images per optimizer step over all processes and accumulation steps.
            views (`int`): Views per image.

        Raises:
            ValueError: If there are too few or too many views, or the queue's size is not a multiple of the batch.
        """
        if views < self.views_needed:
            raise ValueError(
                f"views has {views} per image, but {self.title} needs {self.views_needed}: "
                f"choose another recipe with --views, such as {self.recipe.views} (orthossl methods lists them)"
            )
        if views > self.views_needed and not self.takes_local_views:
            able = ", ".join(name for name, method in METHODS.items() if method.takes_local_views)
            raise ValueError(
                f"views has {views} per image, but {self.title} uses {self.views_needed}: choose another recipe "
                f"with --views, such as {self.recipe.views}, or a method that uses local crops ({able})"
            )
        queue_size = getattr(self.config, "queue_size", 0)
        if self.has_queue and queue_size % batch_size:
            raise ValueError(
                f"queue_size {queue_size} is not a multiple of the {batch_size} images of a step: pass "
                f"--method_config queue_size={max(queue_size // batch_size, 1) * batch_size}"
            )

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Reject sizes of views in which this method cannot mask patches; by default none.

        Args:
            sizes (`Sequence[int]`): Side of each view in pixels.

        Raises:
            ValueError: A view does not divide into patches, or the patches to mask are none or all.
        """

    def _require_patches(self, encoder: Encoder) -> None:
        """Raise `ValueError` unless the encoder is a vision transformer whose patches can be left out."""
        try:
            encoder.patches.grid(encoder.image_size)
        except ValueError as error:
            raise ValueError(f"method is {self.name}, which masks patches, and {error}") from None

    def extra_repr(self) -> str:
        """Return the hyper-parameters, for `print(method)`."""
        return ", ".join(f"{key}={value}" for key, value in self.config.to_dict().items())


METHODS: dict[str, type[SSLMethod[Any]]] = {}
# Losses of the linear theory, which have no heads and no published recipe for image encoders.
THEORY_LOSSES: dict[str, type[SSLMethod[Any]]] = {}

MethodT = TypeVar("MethodT", bound=type[SSLMethod[Any]])


def register_method(method: MethodT) -> MethodT:
    """Register a method class under its `name`, for `SSLConfig(method=name)`; usable as a decorator.

    The same class may be registered again, for example when a notebook cell is run twice. Losses of family "theory" are
    listed separately from the methods.

    Args:
        method (subclass of [`SSLMethod`]): The class, with a `name` and a class of hyper-parameters.

    Returns:
        The class.

    Raises:
        TypeError: If it is not a subclass of [`SSLMethod`].
        ValueError: If it has no name, the name of another method, or no class of hyper-parameters.
    """
    if not (inspect.isclass(method) and issubclass(method, SSLMethod)):
        raise TypeError(f"{method!r} cannot be registered as a method: derive a class from hf_orthossl.SSLMethod")
    label, own = f"method {method.__qualname__}", method.__dict__.get("name")
    if not isinstance(own, str) or not own:
        raise ValueError(f'{label} has no name: set one in the class, as in name = "{method.__name__.lower()}"')
    same = (METHODS | THEORY_LOSSES).get(own)
    if same is not None and (same.__module__, same.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(
            f"{label}: the name {own!r} is taken by {same.__module__}.{same.__qualname__}: choose another name"
        )
    config = getattr(method, "config_class", None)
    if not (inspect.isclass(config) and issubclass(config, MethodConfig)):
        raise ValueError(
            f"{label} has no class of hyper-parameters: write class {method.__name__}(SSLMethod[MyConfig]), where "
            "MyConfig is a dataclass derived from MethodConfig"
        )
    if "title" not in method.__dict__:
        method.title = own
    (THEORY_LOSSES if method.family == "theory" else METHODS)[own] = method
    return method


def get_method(name: str) -> type[SSLMethod[Any]]:
    """Return a method class by name.

    Raises:
        ValueError: If no method has this name; the message suggests the nearest one.
    """
    known = METHODS | THEORY_LOSSES
    if name not in known:
        raise ValueError(f"method {name!r} is unknown: {suggest(name, known)}")
    return known[name]


def build_method(name: str, encoder: Encoder, config: Mapping[str, Any] | None = None) -> SSLMethod[Any]:
    """Build a method by name on top of an encoder.

    Args:
        name (`str`): The name of the method.
        encoder ([`Encoder`]): The encoder.
        config (`dict[str, Any]`, *optional*): Hyper-parameters that differ from those of the recipe.

    Raises:
        ValueError: If the method or a hyper-parameter is unknown, or a value is invalid.
    """
    method = get_method(name)
    return method(encoder, method.config_class.from_dict(config))


@torch.no_grad()
def embedding_std(embedding: Tensor) -> Tensor:
    """Return the spread of L2-normalized embeddings: 1 for an isotropic cloud, 0 for a collapsed one.

    It is the standard deviation, over the batch of all processes, of each coordinate of z/‖z‖, averaged over
    coordinates and multiplied by √d.

    Source: SimSiam, Chen & He 2021, section 4.1, which plots it against 1/√d.

    Args:
        embedding (`Tensor` of shape `(B, d)`): Projector outputs of this process.
    """
    z = nn.functional.normalize(at_least_float32(embedding), dim=1)
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    _, variance, _ = pooled_moments(mean, variance, len(z))
    return variance.sqrt().mean() * z.shape[1] ** 0.5
