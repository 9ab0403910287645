"""Where the Trainer is in an optimizer step."""

from typing import TYPE_CHECKING

from transformers import TrainerCallback

from .elastic import steps_per_epoch

if TYPE_CHECKING:
    from .trainer import OrthoSSLTrainer


class StepCallback(TrainerCallback):
    """Tells the trainer's [`SSLStep`] where in an optimizer step it is."""

    def __init__(self, trainer: "OrthoSSLTrainer"):
        self.trainer = trainer
        self.steps_per_epoch = 1

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.steps_per_epoch = steps_per_epoch(train_dataloader, args) or state.max_steps

    def on_epoch_begin(self, args, state, control, **kwargs):
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.step.begin(state.global_step, state.max_steps, self.steps_per_epoch)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.step.before_optimizer(scaled=self.trainer.accelerator.scaler is not None)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self.trainer.interruption.agreed():
            # The trainer stops when that is done; an entry in the log would be one that a whole run does not have.
            control.should_save = True

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.step.end(skipped=self.trainer.accelerator.optimizer_step_was_skipped)
