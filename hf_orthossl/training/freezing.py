"""Freeze parts of the encoder, for a whole run or for its first epochs, in both the Trainer and the loop."""

from dataclasses import dataclass
from typing import Self

from ..encoders.depth import named_parameters
from ..methods import Progress
from ..modeling import SSLModel, frozen_norms
from .arguments import OrthoSSLTrainingArguments
from .data import TrainingData


@dataclass(frozen=True)
class Freezing:
    """Name what is frozen during a run, and until when.

    What is frozen at a step follows from the step alone, so that a resumed run goes on exactly.

    Args:
        names (`frozenset[str]`): Parameters of the encoder's backbone.
        epochs (`float`): Epochs in which they are frozen; 0 for the whole run.
    """

    names: frozenset[str]
    epochs: float

    @classmethod
    def of(cls, model: SSLModel, args: OrthoSSLTrainingArguments) -> Self | None:
        """Return what the arguments freeze, `None` for nothing.

        Raises:
            ValueError: A pattern of `freeze` names nothing.
        """
        if not args.freeze and not args.freeze_epochs:
            return None
        # Whole modules, if the encoder is not one of this package.
        names = named_parameters(model.encoder, args.freeze or ["*"])
        return cls(names, args.freeze_epochs or 0.0)

    def begin_run(self, model: SSLModel) -> None:
        """Freeze what stays frozen, before the engine wraps the model; DDP must see everything that will be trained."""
        model.set_frozen(() if self.epochs else self.names)

    def begin_step(self, model: SSLModel, progress: Progress) -> None:
        """Freeze what is frozen at a step, or train it from this step on."""
        now = self.names if not self.epochs or progress.epoch < self.epochs else frozenset()
        if now != model.frozen:
            model.set_frozen(now)

    def describe(self, model: SSLModel) -> str:
        """Return what is frozen and what that means, in words."""
        backbone = model.encoder.backbone
        every = sum(1 for _ in backbone.parameters())
        text = f"{len(self.names)} of {every} parameters of the encoder"
        text += f" for {self.epochs:g} epochs" if self.epochs else ""
        if norms := len(frozen_norms(backbone, self.names)):
            text += f", {norms} batch norms by their running statistics"
        if model.regularizer is not None:
            held = [matrix.path.removeprefix("backbone.") in self.names for matrix in model.regularizer.matrices]
            text += f", no penalty on {sum(held)} of {len(held)} matrices"
        return text


def check_freezing(model: SSLModel, data: TrainingData) -> None:
    """Refuse to freeze what cannot be, or what leaves nothing of the encoder to train.

    Raises:
        ValueError: A pattern names nothing, everything stays frozen, given weights are constrained too, or a stream
            has no epochs to count.
    """
    args, freezing = data.args, Freezing.of(model, data.args)
    if freezing is None:
        return
    if model.constraint is not None and model.config.pretrained is not None and args.freeze and not freezing.epochs:
        raise ValueError(
            f"freeze is {' '.join(args.freeze)}, but constrain is {model.config.constrain}, which has moved all "
            "matrices of the given weights: leave out one of them"
        )
    if not freezing.epochs:
        if len(freezing.names) == sum(1 for _ in model.encoder.backbone.parameters()):
            raise ValueError(
                f"freeze is {' '.join(args.freeze or [])}, which leaves no parameter of the encoder to train: name "
                "fewer, or pass --freeze_epochs to train them later"
            )
        return
    if data.steps_per_epoch is None:
        raise ValueError(f"freeze_epochs is {freezing.epochs:g}, but a stream has no epochs: leave it out")
    epochs = data.planned_steps() / data.steps_per_epoch
    if freezing.epochs >= epochs:
        raise ValueError(
            f"freeze_epochs is {freezing.epochs:g}, and the run ends after {epochs:.3g} epochs, before anything is "
            "trained that it freezes: lower it, or train for longer"
        )
