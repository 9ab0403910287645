"""The `transformers.Trainer` front."""

import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .callbacks import HistoryCallback, LossBar
from .checkpoints import remove_old_checkpoints, staged
from .elastic import chosen_checkpoint, load_shape, planned_steps, resumed, save_shape, seed_if_processes_changed
from .engines import check_engine, make_ready
from .inputs import as_image_dataset, build_step, prepared_dataloader
from .interruption import Interrupted, Interruption
from .optimizers import build_optimizer
from .probe_callbacks import build_probes
from .publishing import EncoderPush
from .publishing_trainer import PublishingTrainer
from .spectra_callback import SpectraCallback
from .step_callback import StepCallback

# Tells this front's checkpoints from the loop's.
STATE = "trainer_state.json"


class OrthoSSLTrainer(PublishingTrainer):
    """Pretrains an [`SSLModel`] on unlabelled images with the Trainer's engine.

    Views are made on the training device; target networks, queues and the orthogonality penalty move once per
    optimizer step. Checkpoints are written aside and renamed. Loss parts are logged by name: `ssl`, `orthogonality`
    (with γ applied) and `embedding_std`. SIGTERM and Ctrl-C end training after the step in progress, with a checkpoint
    to `resume` from and a `SystemExit`.

    With `push_to_hub=True` the encoder folder, loadable without this package, is what goes to `hub_model_id`: at every
    save unless `hub_strategy` is "end", at the end, and at [`push_to_hub`]. Checkpoints and arguments never do.

    Args:
        model ([`SSLModel`]): What to train.
        args ([`OrthoSSLTrainingArguments`], *optional*): What is `None` in it follows the method's recipe.
        train_dataset: A data set name or folder, a Hugging Face data set, an `ImageSource` or an `ImageDataset`.
        kwargs: Passed to `transformers.Trainer`.
    """

    def __init__(
        self,
        model: SSLModel,
        args: OrthoSSLTrainingArguments | None = None,
        train_dataset=None,
        **kwargs,
    ):
        if kwargs.get("eval_dataset") is not None:
            raise ValueError("eval_dataset is not used, as there is nothing to evaluate without labels: leave it out")
        args = resumed(args or OrthoSSLTrainingArguments(), STATE).with_recipe(model.method.recipe)
        # The Trainer's own sum of losses, of which it makes a summary, must not be spoiled by a step that was skipped.
        args.logging_nan_inf_filter = args.on_nonfinite == "skip"
        dataset = None if train_dataset is None else as_image_dataset(train_dataset, model, args)
        super().__init__(model=model, args=args, train_dataset=dataset, **kwargs)
        make_ready(model, self.accelerator, args)
        self._staging: Path | None = None
        self._loader: DataLoader | None = None
        self._resuming: Path | None = None
        self.interruption = Interruption()
        self._push = EncoderPush(model, dataset, args, front="Trainer") if args.push_to_hub else None
        self.step = build_step(model, dataset, args)
        self.add_callback(StepCallback(self))
        self.add_callback(HistoryCallback())
        if not any(isinstance(callback, SpectraCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(SpectraCallback(args.spectra_steps, threshold=args.spectra_threshold))
        for probe in build_probes(model, dataset, args) if dataset is not None else ():
            self.add_callback(probe)
        if self.pop_callback(ProgressCallback):
            self.add_callback(LossBar())

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, **kwargs):
        checkpoint = chosen_checkpoint(self.args, resume_from_checkpoint, STATE)
        if checkpoint:
            check_engine(checkpoint, self.accelerator)
            done = json.loads((checkpoint / STATE).read_text())["global_step"]
            if planned_steps(self.get_train_dataloader(), self.args, done) == done:
                # The Trainer would take one step more.
                self._load_from_checkpoint(str(checkpoint))
                self.state.global_step = done
                self._push_last(done)
                return TrainOutput(done, 0.0, {})
        self._resuming = checkpoint
        with self.interruption:
            try:
                output = super().train(resume_from_checkpoint=checkpoint and str(checkpoint), **kwargs)
            except Interrupted:
                # Trackers write what they hold.
                self.callback_handler.on_train_end(self.args, self.state, self.control)
                self._finish_current_push()
                raise
        self.step.guard.report(output.global_step)
        self._push_last(output.global_step)
        return output

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None:
            raise ValueError("train_dataset is None: pass a data set to OrthoSSLTrainer")
        self._loader = prepared_dataloader(self.train_dataset, self.args, self.accelerator)
        # Once: a loader asked for later begins at the beginning, and what the step has collected since stays.
        checkpoint, self._resuming = self._resuming, None
        if checkpoint:
            load_shape(checkpoint, self.args, self.step, self._loader)
        return self._loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimizer(model or self.model, self.args)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None) -> Tensor:
        return self.step.loss(
            model,
            inputs,
            last=self.accelerator.sync_gradients,
            accumulation=self.current_gradient_accumulation_steps,
        )

    def floating_point_ops(self, inputs) -> int:
        """0: the Trainer's estimate counts text tokens."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            # Ours counts the steps of an entry from the last one on, also where a run was resumed in between.
            logs = {k: v for k, v in logs.items() if k != "loss" and math.isfinite(v)}
            logs = self.step.drain() | logs
        super().log(logs, start_time)

    def _get_output_dir(self, trial) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        run_folder = Path(self._get_output_dir(trial))
        with staged(run_folder, self.state.global_step, write=self.args.should_save) as self._staging:
            try:
                super()._save_checkpoint(model, trial)
                checkpoint = self._staging / f"checkpoint-{self.state.global_step}"
                save_shape(checkpoint, self.args, self.step, self._loader, self.state.global_step)
            finally:
                self._staging = None
        checkpoint = run_folder / checkpoint.name
        if self.args.should_save:
            remove_old_checkpoints(run_folder, self.args.save_total_limit, checkpoint)
        if self.interruption.agreed():
            self.interruption.stop(self.state.global_step, checkpoint)
        if self._push:
            if self.is_world_process_zero():
                self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self._push.at_save(self.state.global_step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or not seed_if_processes_changed(Path(checkpoint), self.args):
            super()._load_rng_state(checkpoint)
