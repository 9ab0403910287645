"""Pretraining with `transformers.Trainer`."""

import contextlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from ..distributed.collectives import wait_for_all
from ..hub.publish import Publication
from ..locks import locked
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .callbacks import SpectraCallback
from .callbacks.probes import build_probes
from .callbacks.reporting import HistoryCallback, ReportingCallback
from .callbacks.watching import build_spectra, check_own_spectra
from .checkpoints import remove_old_checkpoints, staged
from .display import DisplayCallback
from .engines import check_engine, prepare_model
from .interruption import Interrupted, Interruption
from .optimizers import GivenSettings, build_optimizer, build_schedule, schedule_factor
from .publishing import EncoderOutput
from .rehearsal import rehearse
from .resume import (
    begin_run,
    begin_steps,
    check_start,
    chosen_checkpoint,
    load_position,
    load_random_states,
    save_position,
)
from .run_folder import overwriting
from .step import build_step

# File that distinguishes the checkpoints of the Trainer from the loop's.
STATE = "trainer_state.json"
# Arguments of `transformers.Trainer` that this one does not read, and why.
WITHOUT_EFFECT = {
    "compute_loss_func": "the method is the loss",
    "compute_metrics": "pretraining has no labels to evaluate with",
    "data_collator": "batches are made of images, as in the accelerate loop",
    "eval_dataset": "pretraining has no labels to evaluate with",
    "model_init": "the model is given",
    "optimizer_cls_and_kwargs": "args.optim chooses the optimizer, and optimizers=(…) replaces it",
    "preprocess_logits_for_metrics": "pretraining has no labels to evaluate with",
}


class OrthoSSLTrainer(Trainer):
    """Pretrain an [`SSLModel`] on unlabelled images with the engine of `transformers.Trainer`.

    Views are made on the training device; target networks, queues and the orthogonality penalty advance once per
    optimizer step. The parts of the loss are logged by name: `ssl`, `orthogonality` (with γ applied) and
    `embedding_std`. SIGTERM and Ctrl-C end training after the current step, with a checkpoint to `resume` from and a
    `SystemExit`.

    A run writes `history.jsonl`, checkpoints and, unless `save_strategy` is "no", the folder `encoder` with weights,
    spectra and card, loadable without this package. With `push_to_hub=True` that folder is pushed to `hub_model_id`: at
    every save unless `hub_strategy` is "end", at the end, and at [`~OrthoSSLTrainer.push_to_hub`]. Checkpoints and
    arguments are never published.

    Args:
        model ([`SSLModel`]): The model to train.
        args ([`OrthoSSLTrainingArguments`], *optional*): Settings of the run, not changed; options that are `None`
            follow the recipe of the method.
        train_dataset: Name or folder of a data set, Hugging Face data set, `ImageSource`, `ImageDataset`, or a
            [`TrainingData`], whose `args` then replace `args`.
        write_encoder (`bool`, defaults to `True`): Whether [`~OrthoSSLTrainer.train`] writes `output_dir/encoder` at
            the end, and publishes it.
        kwargs: Further arguments of `transformers.Trainer`.

    Raises:
        ValueError: `train_dataset` is missing, an argument has no effect here, or one cannot be used.
        OSError: The encoder cannot be published, or there is no checkpoint to resume from.

    Example:
        ```python
        model = SSLModel(SSLConfig(backbone="resnet18", image_size=32, method="byol", regularizer="so"))
        args = OrthoSSLTrainingArguments("runs/a", max_steps=1000)
        OrthoSSLTrainer(model, args, train_dataset="path/to/images").train()
        ```
    """

    def __init__(
        self,
        model: SSLModel,
        args: OrthoSSLTrainingArguments | None = None,
        train_dataset: Any = None,
        *,
        write_encoder: bool = True,
        **kwargs: Any,
    ):
        for name, why in WITHOUT_EFFECT.items():
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not used, because {why}: omit it")
        self.data = begin_run(model, train_dataset, args, STATE)
        args = self.data.args
        # The Trainer's sum of losses, which it uses for the summary, must not include a skipped step.
        args.logging_nan_inf_filter = args.on_nonfinite == "skip"
        super().__init__(model=model, args=args, train_dataset=self.data.dataset, **kwargs)
        prepare_model(model, self.accelerator, args)
        self._staging: Path | None = None
        self._resuming: Path | None = None
        self._write_encoder = write_encoder
        self.interruption = Interruption(args.output_dir)
        self.output = EncoderOutput(model, self.data, front="Trainer")
        self.step = build_step(model, self.data)
        self.add_callback(HistoryCallback(self.data.record))
        self.add_callback(StepCallback(self))
        callbacks = self.callback_handler.callbacks
        for callback in [callback for callback in callbacks if isinstance(callback, ReportingCallback)]:
            callback.attach(self)
        if any(isinstance(callback, SpectraCallback) for callback in callbacks):
            check_own_spectra(self.data)
        else:
            self.add_callback(build_spectra(model, self.data))
        for probe in build_probes(model, self.data):
            self.add_callback(probe)
        if self.pop_callback(ProgressCallback) or self.pop_callback(PrinterCallback):
            self.add_callback(DisplayCallback(args.images_per_step))

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback; one that adds to log entries goes before the integrations that report them."""
        callback = callback() if isinstance(callback, type) else callback
        if isinstance(callback, ReportingCallback):
            callback.attach(self)
        else:
            super().add_callback(callback)

    def train(  # type: ignore[override]  # a path too, and the rest handed on
        self, resume_from_checkpoint: str | os.PathLike | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train the model, and write checkpoints and the folder `encoder`.

        Args:
            resume_from_checkpoint (`str`, `PathLike` or `bool`, *optional*): A checkpoint to resume from, or `True` for
                the newest valid one; by default as set by `args.resume`.
            kwargs: Further arguments of `Trainer.train`.

        Returns:
            `TrainOutput`: Steps, mean loss and metrics. A run that has already ended takes no further step.

        Raises:
            FloatingPointError: The loss is not finite, see `on_nonfinite`.
            ValueError: The checkpoint is damaged, or does not fit the arguments; or another run uses `output_dir`, or
                has used it and `overwrite_output` is not set.
            Interrupted: A signal ended the run; a `SystemExit`.
        """
        with locked(self.data.args.output_dir) as outermost:
            checkpoint = chosen_checkpoint(self.data, self.step.model, resume_from_checkpoint, STATE)
            if checkpoint:
                check_engine(checkpoint, self.accelerator)
                done = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]
                if self.data.planned_steps(done) == done:
                    # The Trainer would otherwise take one more step.
                    self._load_from_checkpoint(str(checkpoint))
                    self.state.global_step = done
                    self._finish(done)
                    return TrainOutput(done, 0.0, {})
            if outermost:
                check_start(self.data, checkpoint)
            if self._write_encoder:
                rehearse(self.step.model, self.data, front=self.output.front, encoder=self.output.is_wanted)
            with overwriting(self.data.args) if outermost else contextlib.nullcontext():
                return self._train(checkpoint, **kwargs)

    def _train(self, checkpoint: Path | None, **kwargs: Any) -> TrainOutput:
        self._resuming = checkpoint
        with self.interruption:
            try:
                output = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
            except Interrupted:
                # Let the integrations write what they have collected.
                self.callback_handler.on_train_end(self.args, self.state, self.control)
                self.output.wait()
                raise
        self.step.guard.report(output.global_step)
        self._finish(output.global_step)
        return output

    def push_to_hub(  # type: ignore[override]  # an encoder has no CommitInfo of a whole Trainer folder
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        license: str | None = None,
    ) -> Publication | None:
        """Publish the current encoder to `hub_model_id`, with card and spectra, in one commit.

        Call it on all processes; the main one publishes.

        Args:
            commit_message (`str`, *optional*, defaults to "End of training"): Message of the commit.
            blocking (`bool`, defaults to `True`): Has no effect: the call returns once the commit is made.
            token (`str`, *optional*): Replaces `hub_token`.
            revision (`str`, *optional*): Replaces `hub_revision`.
            private (`bool`, *optional*): Replaces `hub_private_repo`.
            license (`str`, *optional*): Licence for the card, such as "apache-2.0".

        Returns:
            [`~hub.Publication`]: What was published; `None` on all processes but the main one.

        Raises:
            ValueError: See [`~hub.publish_encoder`].
            OSError: See [`~hub.publish_encoder`].
        """
        if self.is_world_process_zero():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
        step = self.state.global_step or None
        changes = {"token": token, "revision": revision, "private": private, "license": license}
        with locked(self.data.args.output_dir):
            return self.output.publish(commit_message, step=step, **changes)

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of this process, from the position of the checkpoint when `train` resumes a run."""
        loader = self.data.loader(self.accelerator)
        # Only once: a loader requested later starts at the beginning and does not reset the averages of the step.
        checkpoint, self._resuming = self._resuming, None
        if checkpoint:
            load_position(checkpoint, self.data, self.step)
        return loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer that the arguments name."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(model or self.step.model, self.data.args)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Return the learning rate schedule that the arguments name."""
        if self.lr_scheduler is None:
            optimizer = cast(torch.optim.Optimizer, optimizer or self.optimizer)
            warmup = self.data.warmup_steps(num_training_steps)
            self.lr_scheduler = build_schedule(optimizer, self.data.args, warmup, num_training_steps)
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None) -> Tensor:
        """Return the loss of one micro-batch."""
        return self.step.loss(
            model,
            inputs,
            last=self.accelerator.sync_gradients,
            accumulation=self.current_gradient_accumulation_steps,
        )

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Compute loss and gradients of one micro-batch, and look at the gradients once the last one's are there."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            self.step.after_backward(scaler.get_scale() if scaler is not None else 1.0)
        return loss

    def floating_point_ops(self, inputs) -> int:
        """Return 0, because the Trainer's estimate counts text tokens."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an entry, with the averages of the loss and its parts."""
        if "loss" in logs:
            # These averages cover all steps since the last entry, even if the run was resumed in between.
            logs = {k: v for k, v in logs.items() if k != "loss" and math.isfinite(v)}
            logs = self.step.drain() | logs
        super().log(logs, start_time)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Record `hub_model_id`; [`begin_run`] has checked it, and the first commit creates the repository."""
        self.hub_model_id = self.args.hub_model_id  # type: ignore[assignment]  # annotated as None where it starts

    def _finish(self, step: int) -> None:
        if self._write_encoder:
            self.output.at_end(step)
        self.output.wait()

    def _get_output_dir(self, trial) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        step, run_folder = self.state.global_step, Path(self._get_output_dir(trial))
        with staged(run_folder, step, write=self.args.should_save) as self._staging:
            try:
                super()._save_checkpoint(model, trial)
                save_position(self._staging / f"checkpoint-{step}", self.data, self.step, step)
            finally:
                self._staging = None
        checkpoint = run_folder / f"checkpoint-{step}"
        if self.args.should_save:
            remove_old_checkpoints(run_folder, self.args.save_total_limit, checkpoint)
        if self.interruption.agreed():
            self.interruption.stop(step, checkpoint)
        if self.args.push_to_hub:
            if self.is_world_process_zero():
                self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self.output.at_save(step)

    def _init_training_state(self, *args, **kwargs):
        # It warns of intervals that differ from the checkpoint's, as if they were not applied: `StepCallback` does so.
        quiet = logging.getLogger("transformers.trainer_utils")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            return super()._init_training_state(*args, **kwargs)
        finally:
            quiet.setLevel(level)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None
            assert self.lr_scheduler is not None
            given = GivenSettings(self.optimizer, self.lr_scheduler)
            super()._load_optimizer_and_scheduler(checkpoint)
            given.restore(self.data.record.changes)

    def _save_rng_state(self, output_dir: str) -> None:
        """Do nothing: random states are part of what [`save_position`] writes."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_states(Path(checkpoint), self.data.args)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: checkpoints are not published; the encoder is, once the checkpoint has its final name."""

    def _finish_current_push(self) -> None:
        self.output.wait()


class StepCallback(TrainerCallback):
    """Call the trainer's [`SSLStep`] at the events of an optimizer step."""

    def __init__(self, trainer: OrthoSSLTrainer):
        self.trainer = trainer
        # Whether the main process measured or published after the last step, while the others had nothing to do.
        self._main_was_alone = False

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        """Record what the steps use."""
        # A resumed trainer has read the intervals of the run so far.
        state.compute_steps(args, state.max_steps)
        begin_steps(self.trainer.data, optimizer, lr_scheduler, state.global_step)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Set the epoch, which determines the order of the images."""
        self.trainer.data.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args, state, control, **kwargs):
        """Begin the step."""
        if self._main_was_alone:
            # Not in a collective of GPUs, whose limits are torch's.
            wait_for_all()
        steps_per_epoch = self.trainer.data.steps_per_epoch or state.max_steps
        self.trainer.step.begin(state.global_step, state.max_steps, steps_per_epoch)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Check loss and gradients."""
        self.trainer.step.before_optimizer(scaled=self.trainer.accelerator.scaler is not None)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Advance a decoupled penalty, target networks, queues and centres."""
        skipped = self.trainer.accelerator.optimizer_step_was_skipped
        self.trainer.step.end(skipped, schedule_factor(optimizer))

    def on_step_end(self, args, state, control, **kwargs):
        """Log the last step, and save a checkpoint after a signal."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        self._main_was_alone = control.should_log or control.should_save
        if self.trainer.interruption.agreed():
            # The run stops once the checkpoint is saved. No log entry: an uninterrupted run would not have it.
            control.should_save = True
