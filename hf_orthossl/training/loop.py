"""Pretraining with an accelerate loop: the whole loop and its checkpoints, meant to be read and modified."""

import contextlib
import json
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    set_seed,
)
from accelerate.utils.constants import RNG_STATE_NAME
from torch.optim.lr_scheduler import LRScheduler

from ..distributed.collectives import wait_for_all
from ..locks import locked
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .callbacks.probes import build_probes
from .callbacks.reporting import append_history, begin_history
from .callbacks.watching import build_spectra
from .checkpoints import remove_old_checkpoints, staged
from .data import TrainingData
from .display import Display
from .engines import check_engine, engine_settings, prepare_model
from .interruption import Interruption
from .intervals import steps_between
from .optimizers import GivenSettings, build_optimizer, build_schedule, schedule_factor
from .publishing import EncoderOutput
from .rehearsal import rehearse
from .resume import begin_run, begin_steps, check_start, load_position, load_random_states, save_position
from .run_folder import overwriting
from .step import SSLStep, build_step

# File that distinguishes the checkpoints of this loop from the Trainer's.
STATE = "loop_state.json"
SCHEDULER = "scheduler.pt"


def pretrain_loop(
    model: SSLModel,
    train_dataset: Any,
    args: OrthoSSLTrainingArguments | None = None,
    *,
    write_encoder: bool = True,
) -> SSLModel:
    """Pretrain an [`SSLModel`] with accelerate, in the configuration of `accelerate launch`.

    It reads the same arguments and writes the same run folder as [`OrthoSSLTrainer`]; from the same seed both
    produce the same losses and weights. With `push_to_hub=True` the encoder is published at every save, unless
    `hub_strategy` is "end", and at the end. SIGTERM and Ctrl-C end the run after the current step, with a checkpoint to
    `resume` from.

    Args:
        model ([`SSLModel`]): The model to train, in place.
        train_dataset: Name or folder of a data set, Hugging Face data set, `ImageSource`, `ImageDataset`, or a
            [`TrainingData`], whose `args` then replace `args`.
        args ([`OrthoSSLTrainingArguments`], *optional*): Settings of the run, not changed; options that are `None`
            follow the recipe of the method.
        write_encoder (`bool`, defaults to `True`): Whether to write `output_dir/encoder` at the end, with its card, and
            publish it. Nothing is written with `save_strategy="no"`.

    Returns:
        `SSLModel`: The trained model, unwrapped.

    Raises:
        ValueError: An argument cannot be used; or another run uses `output_dir`, or has used it and
            `overwrite_output` is not set.
        FloatingPointError: The loss is not finite, see `on_nonfinite`.
        Interrupted: A signal ended the run; a `SystemExit`.

    Example:
        ```python
        model = SSLModel(SSLConfig(backbone="resnet18", image_size=32, method="byol", regularizer="so"))
        pretrain_loop(model, "path/to/images", OrthoSSLTrainingArguments("runs/a", max_steps=1000))
        ```
    """
    data = begin_run(model, train_dataset, args, STATE)
    args, output = data.args, EncoderOutput(model, data, front="accelerate loop")
    with locked(args.output_dir) as outermost:
        if outermost:
            check_start(data, Path(str(args.resume_from_checkpoint)) if args.resume else None)
        if write_encoder:
            rehearse(model, data, front=output.front, encoder=output.is_wanted)
        with overwriting(args) if outermost else contextlib.nullcontext():
            return _train(model, data, output, write_encoder)


def _train(model: SSLModel, data: TrainingData, output: EncoderOutput, write_encoder: bool) -> SSLModel:
    """Run the loop, in a folder that is locked and ready."""
    args, max_steps = data.args, data.planned_steps()
    set_seed(args.seed)
    accelerator = Accelerator(
        **engine_settings(args),
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=True
        ),
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        project_config=ProjectConfiguration(project_dir=args.output_dir),
        log_with=args.report_to or None,
    )
    accelerator.init_trackers("orthossl")
    loader = data.loader(accelerator)
    # A stream is one long epoch.
    epoch_steps = data.steps_per_epoch or max_steps
    epoch_batches = data.batches_per_epoch or max_steps * args.gradient_accumulation_steps

    prepare_model(model, accelerator, args)
    if args.torch_compile:
        # In place, because accelerate's plugin would rename the weights in checkpoints.
        model.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    optimizer = build_optimizer(model, args)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    # Not prepared, because accelerate would step it once per process.
    scheduler = build_schedule(optimizer, args, data.warmup_steps(max_steps), max_steps)
    step = build_step(model, data)
    state = LoopState(accelerator, scheduler, step, data)
    done = state.load() if args.resume else 0
    callbacks = [build_spectra(model, data), *build_probes(model, data)]
    history = begin_history(args.output_dir, data.record.run, done) if accelerator.is_main_process else []
    begin_steps(data, optimizer, scheduler, done)
    for callback in callbacks:
        callback.begin(model, history)
    quiet = not accelerator.is_main_process
    wrapped.train()
    epoch, steps_into_epoch = divmod(done, epoch_steps)
    with (
        Interruption(args.output_dir) as interruption,
        contextlib.closing(
            Display(max_steps, done, args.images_per_step, bar=not args.disable_tqdm, quiet=quiet)
        ) as display,
    ):
        while done < max_steps and data.watch.stopped is None:
            skipped = steps_into_epoch * args.gradient_accumulation_steps
            loader.set_epoch(epoch)  # type: ignore[attr-defined]  # accelerate's subclasses have it
            data.set_epoch(epoch)
            first = True
            for index, batch in enumerate(accelerator.skip_first_batches(loader, skipped), start=skipped):
                if first:
                    step.begin(done, max_steps, epoch_steps)
                    # The last step of an epoch may have fewer micro-batches than the others.
                    accumulation = min(args.gradient_accumulation_steps, epoch_batches - index)
                with accelerator.accumulate(wrapped):
                    first = accelerator.sync_gradients
                    loss = step.loss(wrapped, batch, last=first, accumulation=accumulation)
                    # accelerate divides by the configured number of micro-batches, also in a shorter last step.
                    accelerator.backward(loss * (args.gradient_accumulation_steps / accumulation))
                    if not accelerator.sync_gradients:
                        continue
                    step.after_backward(accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0)
                    if args.max_grad_norm > 0:
                        accelerator.clip_grad_norm_(wrapped.parameters(), args.max_grad_norm)
                    step.before_optimizer(scaled=accelerator.scaler is not None)
                    optimizer.step()
                    step.end(accelerator.optimizer_step_was_skipped, schedule_factor(optimizer))
                    rate = float(scheduler.get_last_lr()[0])
                    if not accelerator.optimizer_step_was_skipped:
                        scheduler.step()
                    optimizer.zero_grad()
                done, stops = done + 1, False
                display.step()
                if done % steps_between(args.logging_steps, max_steps) == 0 or done == max_steps:
                    passes = epoch + (index + 1) / epoch_batches
                    logs = {**step.drain(), "learning_rate": rate, "epoch": passes}
                    for callback in callbacks:
                        logs |= callback.measure(done, max_steps)
                    if accelerator.is_main_process:
                        display.log(logs)
                        append_history(args.output_dir, {"step": done, **logs})
                    accelerator.log(logs, step=done)
                    stops = data.watch.agreed_to_stop(done, max_steps)
                due = _save_is_due(args, done, max_steps, epoch_ends=index + 1 == epoch_batches)
                if interruption.agreed() or due or stops:
                    saved = state.save(done)
                    # Check again: a signal may have arrived while the checkpoint was written.
                    if interruption.agreed():
                        _finish_trackers(accelerator)
                        interruption.stop(done, saved)
                    output.at_save(done)
                    wait_for_all()
                if done == max_steps or stops:
                    break
            epoch, steps_into_epoch = epoch + 1, 0
    step.guard.report(done)
    if write_encoder:
        output.at_end(done)
    output.wait()
    _finish_trackers(accelerator)
    return accelerator.unwrap_model(wrapped)


class LoopState:
    """Save and restore the complete state of a run of the loop.

    Args:
        accelerator (`Accelerator`): The accelerator that prepared model and optimizer; it saves them, the random
            number generators and the scaler.
        scheduler (`LRScheduler`): The learning rate schedule, not prepared.
        step ([`SSLStep`]): The step, whose averages that are not yet logged are part of the state.
        data ([`TrainingData`]): The data, whose position is part of the state.
    """

    def __init__(self, accelerator: Accelerator, scheduler: LRScheduler, step: SSLStep, data: TrainingData):
        self.accelerator, self.scheduler, self.step, self.data = accelerator, scheduler, step, data
        self.args = data.args

    def save(self, done: int) -> Path:
        """Write `checkpoint-<done>` and remove those beyond `save_total_limit`; call it on every process.

        Returns:
            `Path`: The checkpoint.

        Raises:
            OSError: The checkpoint cannot be written; earlier checkpoints are intact.
        """
        folder, main = Path(self.args.output_dir), self.accelerator.is_main_process
        with staged(folder, done, write=main) as staging:
            checkpoint = staging / f"checkpoint-{done}"
            self.accelerator.save_state(str(checkpoint))
            # Random states are part of what `save_position` writes.
            (checkpoint / f"{RNG_STATE_NAME}_{self.accelerator.process_index}.pkl").unlink()
            save_position(checkpoint, self.data, self.step, done)
            if main:
                # Not registered with accelerate, because it would unpickle the file.
                torch.save(self.scheduler.state_dict(), checkpoint / SCHEDULER)
                (checkpoint / STATE).write_text(json.dumps({"step": done}), encoding="utf-8")
        checkpoint = folder / checkpoint.name
        if main:
            remove_old_checkpoints(folder, self.args.save_total_limit, checkpoint)
        return checkpoint

    def load(self) -> int:
        """Restore the checkpoint `resume_from_checkpoint` of the arguments.

        Returns:
            `int`: Optimizer steps taken.
        """
        checkpoint = Path(str(self.args.resume_from_checkpoint))
        check_engine(checkpoint, self.accelerator)
        load_position(checkpoint, self.data, self.step)
        optimizer = cast(torch.optim.Optimizer, self.scheduler.optimizer)
        given = GivenSettings(optimizer, self.scheduler)
        self.accelerator.load_state(str(checkpoint))
        # Checkpoints are made between optimizer steps, regardless of accumulation before and now.
        self.accelerator.step = 0
        self.scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER, weights_only=True))
        given.restore(self.data.record.changes)
        # accelerate would go on without them if its own file of them could not be read.
        load_random_states(checkpoint, self.args)
        return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["step"]


def _finish_trackers(accelerator: Accelerator) -> None:
    """Close the trackers as `end_training` does, but keep the process group, which measurements still need."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _save_is_due(args: OrthoSSLTrainingArguments, done: int, max_steps: int, epoch_ends: bool) -> bool:
    """Return whether to save, by the Trainer's rule: at each interval or epoch, and at the end unless disabled."""
    if args.save_strategy == "no":
        return False
    due = epoch_ends if args.save_strategy == "epoch" else done % steps_between(args.save_steps, max_steps) == 0
    return due or done == max_steps
