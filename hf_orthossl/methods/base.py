"""What every SSL method is: its configuration, its life within a training step, and the registry."""

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..distributed.gather import pooled_moments
from .hyperparameters import MethodConfig, nearest
from .precision import at_least_float32


@dataclass
class SSLOutput(ModelOutput):
    """What a forward pass of a method, or of an [`SSLModel`], returns.

    Args:
        loss (`Tensor` of shape `()`): What is differentiated.
        parts (`dict[str, Tensor]`): Detached scalars to log by name.
        representation (`Tensor` of shape `(B, D)`): The encoder's output for the first view, detached.
        embedding (`Tensor` of shape `(B, d)`): The projector's output for the first view, detached.
        predictions (`list[Tensor]`, *optional*): The predictor's outputs `(B, d)`, one per view, with their gradient;
            feature whitening acts on them.
    """

    loss: Tensor | None = None
    parts: dict[str, Tensor] | None = None
    representation: Tensor | None = None
    embedding: Tensor | None = None
    predictions: list[Tensor] | None = None


@dataclass(frozen=True)
class Progress:
    """Where training stands, in optimizer steps; schedules are functions of it.

    Args:
        step (`int`, defaults to 0): Optimizer steps done.
        max_steps (`int`, defaults to 1): Optimizer steps of the whole run.
        steps_per_epoch (`int`, defaults to 1): Optimizer steps in one pass over the data.
        seed (`int`, defaults to 0): Seed of the run; with `step`, the source of the penalty's random vectors.
    """

    step: int = 0
    max_steps: int = 1
    steps_per_epoch: int = 1
    seed: int = 0

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return min(self.step / max(self.max_steps, 1), 1.0)

    @property
    def epoch(self) -> float:
        """Passes over the data done, fractional."""
        return self.step / max(self.steps_per_epoch, 1)

    def generator(self, device: torch.device | str) -> torch.Generator:
        """A random generator that is the same for the same seed and step, and its own for any other."""
        # torch's CPU generator looks at the low 32 bits of a seed only: both numbers are hashed into them.
        hashed = np.random.SeedSequence((self.seed, self.step)).generate_state(1)[0]
        return torch.Generator(device).manual_seed(int(hashed))


@dataclass(frozen=True)
class TrainingRecipe:
    """The settings a method was published with for CIFAR; used wherever the user says nothing.

    Args:
        optim (`str`): "lars", "sgd" or a name of `transformers.TrainingArguments.optim`.
        learning_rate (`float`): For `lr_batch_size` images a step; scaled linearly to the batch in use.
        weight_decay (`float`): Its weight decay.
        views (`str`): Name of the augmentation recipe.
        lr_batch_size (`int`, *optional*): Batch the learning rate refers to; `None` leaves it unscaled.
        warmup (`float`, defaults to 0): Linear warm-up, as a share of the run.
    """

    optim: str
    learning_rate: float
    weight_decay: float
    views: str
    lr_batch_size: int | None = 256
    warmup: float = 0.0


class SSLMethod(nn.Module):
    """A self-supervised method: heads on top of an encoder, a loss over views, and state that advances.

    Subclasses set the class attributes, build their heads in `__init__`, return an [`SSLOutput`] from
    `forward(encoder, views)`, and move target networks, queues and centres in [`~SSLMethod.advance`] only:
    it runs once per optimizer step whatever the gradient accumulation, and not when the step was skipped.
    What a forward pass leaves for it goes through [`~SSLMethod.stage`].

    Args:
        encoder (`nn.Module`): Maps `(B, 3, H, W)` to `(B, encoder.num_features)`. Read here, not kept: the model
            owns it and hands it to `forward`.
        config (`MethodConfig`): Hyper-parameters, an instance of `config_class`.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # as its authors write it
    family: ClassVar[str]  # contrastive, distillation, decorrelation, clustering, or theory
    source: ClassVar[str]
    heads: ClassVar[str]
    recipe: ClassVar[TrainingRecipe]
    config_class: ClassVar[type[MethodConfig]]
    has_predictor: ClassVar[bool] = False
    has_target: ClassVar[bool] = False
    has_queue: ClassVar[bool] = False
    views_needed: ClassVar[int] = 2
    takes_local_views: ClassVar[bool] = False  # views after the second are local crops
    # Whether an image's loss depends on the other images of its batch. Where it does not, n accumulated batches of m
    # images give the update of one batch of n·m, up to the statistics of batch norm.
    batch_coupled: ClassVar[bool]

    def __init__(self, encoder: nn.Module, config: MethodConfig):
        super().__init__()
        self.config = config
        self.progress = Progress()
        self._staged: dict[str, list[Tensor]] = defaultdict(list)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        raise TypeError(f"{type(self).__name__} does not define forward(encoder, views)")

    @staticmethod
    def output(
        loss: Tensor, representation: Tensor, embedding: Tensor, predictions: list[Tensor] | None = None
    ) -> SSLOutput:
        """What `forward` returns, with the spread of the embedding among the logged parts."""
        parts = {"embedding_std": embedding_std(embedding)}
        return SSLOutput(loss, parts, representation.detach(), embedding.detach(), predictions)

    def stage(self, name: str, value: Tensor) -> None:
        """Keeps a detached tensor, one per micro-batch, for the next [`~SSLMethod.advance`]."""
        if self.training:
            self._staged[name].append(value.detach())

    def begin_step(self, progress: Progress) -> None:
        """Called before the first forward pass of an optimizer step."""
        self.progress = progress

    def before_optimizer_step(self) -> None:
        """Called when the gradients of a step are final; frozen layers drop theirs here."""

    def end_step(self, encoder: nn.Module, skipped: bool = False) -> None:
        """Called after the optimizer; advances the method's state unless the step was `skipped`."""
        staged, self._staged = self._staged, defaultdict(list)
        if not skipped:
            self.advance(encoder, staged)

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Moves target networks, queues and centres by one optimizer step; nothing by default."""

    def check_batch(self, batch_size: int, views: int) -> None:
        """Refuses a batch this method cannot train on.

        Args:
            batch_size (`int`): Images per optimizer step over all processes and accumulation steps.
            views (`int`): Views per image.

        Raises:
            ValueError: too few views, or a batch that the method's queue is not a multiple of.
        """
        if views < self.views_needed:
            raise ValueError(
                f"views gives {views} per image and {self.title} needs {self.views_needed}: "
                "choose another recipe with --views (orthossl methods lists them)"
            )
        if views > self.views_needed and not self.takes_local_views:
            able = ", ".join(name for name, method in METHODS.items() if method.takes_local_views)
            raise ValueError(
                f"views gives {views} per image and {self.title} compares {self.views_needed}: choose another recipe "
                f"with --views, or a method that takes local crops ({able})"
            )
        queue_size = getattr(self.config, "queue_size", 0)
        if self.has_queue and queue_size % batch_size:
            raise ValueError(
                f"queue_size {queue_size} is not a multiple of the {batch_size} images of a step: pass "
                f"--method_config queue_size={max(queue_size // batch_size, 1) * batch_size}"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.config.to_dict().items())


METHODS: dict[str, type[SSLMethod]] = {}
# Losses of the linear theory: without heads, and without a published recipe to train image encoders by.
THEORY_LOSSES: dict[str, type[SSLMethod]] = {}


def register_method(method: type[SSLMethod]) -> type[SSLMethod]:
    """Class decorator: makes a method known under its `name`, those of family "theory" in a list of their own."""
    (THEORY_LOSSES if method.family == "theory" else METHODS)[method.name] = method
    return method


def get_method(name: str) -> type[SSLMethod]:
    """The method class of that name.

    Raises:
        ValueError: no such method; the nearest name is in the message.
    """
    known = METHODS | THEORY_LOSSES
    if name not in known:
        raise ValueError(f"method {name!r} is unknown: {nearest(name, list(known))}")
    return known[name]


def build_method(name: str, encoder: nn.Module, config: dict | None = None) -> SSLMethod:
    """Builds a method by name on top of an encoder; `config` maps hyper-parameters to values."""
    method = get_method(name)
    return method(encoder, method.config_class.from_dict(config))


@torch.no_grad()
def embedding_std(embedding: Tensor) -> Tensor:
    """Spread of L2-normalized embeddings, 1 for an isotropic cloud and 0 for a collapsed one.

    The standard deviation over the batch of all processes of each coordinate of z/‖z‖, averaged and multiplied by √d
    (SimSiam, Chen & He 2021, section 4.1, which plots it against 1/√d).

    Args:
        embedding (`Tensor` of shape `(B, d)`): Projector outputs of this process.
    """
    z = nn.functional.normalize(at_least_float32(embedding), dim=1)
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    _, variance, _ = pooled_moments(mean, variance, len(z))
    return variance.sqrt().mean() * z.shape[1] ** 0.5
