"""The `transformers.Trainer` front."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput, has_length, rotate_checkpoints

from ..hub.publish import Publication
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .callbacks import HistoryCallback, LossBar
from .checkpoints import newest_checkpoint, staged
from .inputs import as_image_dataset, build_dataloader, build_views, unreadable_log
from .optimizers import build_optimizer
from .probe_callbacks import build_probes
from .publishing import EncoderPush, check_push
from .spectra_callback import SpectraCallback
from .step import SSLStep


class OrthoSSLTrainer(Trainer):
    """Pretrains an [`SSLModel`] on unlabelled images with the Trainer's engine.

    Views are made on the training device; target networks, queues and the orthogonality penalty move once per
    optimizer step. Checkpoints are written aside and renamed. Loss parts are logged by name: `ssl`, `orthogonality`
    (with γ applied) and `embedding_std`.

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
        args = (args or OrthoSSLTrainingArguments()).with_recipe(model.method.recipe)
        dataset = None if train_dataset is None else as_image_dataset(train_dataset, model, args)
        super().__init__(model=model, args=args, train_dataset=dataset, **kwargs)
        self._staging: Path | None = None
        self._push = EncoderPush(model, dataset, args, front="Trainer") if args.push_to_hub else None
        views = build_views(model, args)
        self.step = SSLStep(model, views, args.seed, args.process_index, unreadable_log(dataset, args))
        self.add_callback(_StepCallback(self))
        self.add_callback(HistoryCallback())
        if not any(isinstance(callback, SpectraCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(SpectraCallback(args.spectra_steps, threshold=args.spectra_threshold))
        for probe in build_probes(model, dataset, args) if dataset is not None else ():
            self.add_callback(probe)
        if self.pop_callback(ProgressCallback):
            self.add_callback(LossBar())

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is None and self.args.resume:
            resume_from_checkpoint = True
        if resume_from_checkpoint is True:
            checkpoint = newest_checkpoint(Path(self.args.output_dir), "trainer_state.json")
            done = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
            if 0 < self.args.max_steps <= done:
                # The Trainer would take one step more.
                self._load_from_checkpoint(str(checkpoint))
                self._push_last(done)
                return TrainOutput(done, 0.0, {})
            resume_from_checkpoint = str(checkpoint)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self._push_last(output.global_step)
        return output

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None:
            raise ValueError("train_dataset is None: pass a data set to OrthoSSLTrainer")
        return self.accelerator.prepare(build_dataloader(self.train_dataset, self.args))

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
        super().log({**logs, **self.step.drain()}, start_time)

    def _get_output_dir(self, trial) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        run_folder = Path(self._get_output_dir(trial))
        with staged(run_folder, self.state.global_step, write=self.args.should_save) as self._staging:
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
        if self.args.should_save:
            rotate_checkpoints(str(run_folder), self.args.save_total_limit)
        if self._push and self.is_world_process_zero():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self._push.at_save(self.state.global_step)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Finds out whether the encoder can be published; the repository is made with its first commit."""
        if self.is_world_process_zero():
            check_push(self.args)
        self.hub_model_id = self.args.hub_model_id

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        license: str | None = None,
    ) -> Publication | None:
        """Publishes the encoder to `hub_model_id` as it is now, with card and spectra, in one commit.

        Args:
            commit_message (`str`, *optional*, defaults to "End of training"): Message of the commit.
            blocking (`bool`, defaults to `True`): Has no effect: the call returns when the commit is made.
            token, revision, private (*optional*): In place of `hub_token`, `hub_revision` and `hub_private_repo`.
            license (`str`, *optional*): Licence for the card, such as "apache-2.0".

        Returns:
            [`~hub.Publication`]: What was published; `None` on other processes than the main one.

        Raises:
            ValueError, OSError: what [`~hub.publish_encoder`] raises.
        """
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        push = self._push or EncoderPush(self.model, self.train_dataset, self.args, front="Trainer")
        step = self.state.global_step or None
        changed = {"token": token, "revision": revision, "private": private, "license": license}
        return push.publish(commit_message, step=step, **changed)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: checkpoints stay here, and the encoder goes out once the checkpoint has its final name."""

    def _push_last(self, step: int) -> None:
        if self._push and self.is_world_process_zero():
            self._push.at_end(step)

    def _finish_current_push(self) -> None:
        if self._push:
            self._push.wait()


class _StepCallback(TrainerCallback):
    """Tells the trainer's [`SSLStep`] where in an optimizer step it is."""

    def __init__(self, trainer: OrthoSSLTrainer):
        self.trainer = trainer
        self.steps_per_epoch = 1

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # The last step of an epoch may have fewer micro-batches than the others.
        streaming = not has_length(train_dataloader)
        batches = len(train_dataloader) / args.gradient_accumulation_steps if not streaming else state.max_steps
        self.steps_per_epoch = math.ceil(batches)

    def on_epoch_begin(self, args, state, control, **kwargs):
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.step.begin(state.global_step, state.max_steps, self.steps_per_epoch)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.step.before_optimizer()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.step.end(skipped=self.trainer.accelerator.optimizer_step_was_skipped)
