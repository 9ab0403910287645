"""The accelerate front: the whole training loop, to be read and changed."""

from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    set_seed,
)
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..distributed.collectives import on_main
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments, steps_between
from .callbacks import append_history, bar_text, trim_history
from .elastic import planned_steps, resumed, steps_per_epoch
from .engines import engine_settings, make_ready
from .inputs import as_image_dataset, build_step, prepared_dataloader
from .interruption import Interruption
from .loop_state import STATE, LoopState
from .optimizers import build_optimizer
from .probe_callbacks import build_probes
from .publishing import EncoderPush, check_push
from .spectra_callback import SpectraCallback


def pretrain_loop(model: SSLModel, train_dataset, args: OrthoSSLTrainingArguments) -> SSLModel:
    """Pretrains an [`SSLModel`] with accelerate, on whatever `accelerate launch` set up.

    Reads the same arguments and writes the same run folder as [`OrthoSSLTrainer`]; from the same seed both give the
    same losses. With `push_to_hub=True` the encoder is published at every save, unless `hub_strategy` is "end",
    and at the end. SIGTERM and Ctrl-C end it after the step in progress, with a checkpoint to `resume` from.

    Args:
        model ([`SSLModel`]): What to train; trained in place.
        train_dataset: A data set name or folder, a Hugging Face data set, an `ImageSource` or an `ImageDataset`.
        args ([`OrthoSSLTrainingArguments`]): What is `None` in it follows the method's recipe.

    Returns:
        `SSLModel`: The trained model, unwrapped.

    Raises:
        FloatingPointError: the loss is not finite, see `on_nonfinite`.
        Interrupted: by a signal; a `SystemExit`.
    """
    args = resumed(args, STATE).with_recipe(model.method.recipe)
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
    on_main(lambda: check_push(args))
    dataset = as_image_dataset(train_dataset, model, args)
    push = EncoderPush(model, dataset, args, front="accelerate loop") if args.push_to_hub else None
    loader = prepared_dataloader(dataset, args, accelerator)
    max_steps = planned_steps(loader, args)
    # To a stream the whole run is one epoch.
    epoch_steps = steps_per_epoch(loader, args)
    epoch_batches = max_steps * args.gradient_accumulation_steps if epoch_steps is None else len(loader)
    epoch_steps = epoch_steps or max_steps

    make_ready(model, accelerator, args)
    if args.torch_compile:
        # In place: accelerate's plugin would rename what checkpoints hold.
        model.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    optimizer = build_optimizer(model, args)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    # Not prepared: accelerate would step it once per process.
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(max_steps),
        num_training_steps=max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    step = build_step(model, dataset, args)
    state = LoopState(accelerator, scheduler, step, loader, args)
    done = state.load() if args.resume else 0
    # Before anything is written: a run may not be told to end where it has been already.
    planned_steps(loader, args, done)
    spectra = SpectraCallback(args.spectra_steps, threshold=args.spectra_threshold)
    watching = [spectra, *build_probes(model, dataset, args)]
    history = trim_history(args.output_dir, done) if accelerator.is_main_process else []
    for callback in watching:
        callback.begin(model, history)
    quiet = args.disable_tqdm or not accelerator.is_main_process
    wrapped.train()
    epoch, steps_into_epoch = divmod(done, epoch_steps)
    with Interruption() as interruption, tqdm(total=max_steps, initial=done, disable=quiet, dynamic_ncols=True) as bar:
        while done < max_steps:
            skipped = steps_into_epoch * args.gradient_accumulation_steps
            loader.set_epoch(epoch)
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
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
                    if args.max_grad_norm > 0:
                        accelerator.clip_grad_norm_(wrapped.parameters(), args.max_grad_norm)
                    step.before_optimizer(scaled=accelerator.scaler is not None)
                    optimizer.step()
                    step.end(skipped=accelerator.optimizer_step_was_skipped)
                    rate = scheduler.get_last_lr()[0]
                    if not accelerator.optimizer_step_was_skipped:
                        scheduler.step()
                    optimizer.zero_grad()
                done += 1
                bar.update()
                if done % steps_between(args.logging_steps, max_steps) == 0 or done == max_steps:
                    passes = epoch + (index + 1) / epoch_batches
                    logs = {**step.drain(), "learning_rate": rate, "epoch": passes}
                    for callback in watching:
                        logs |= callback.measure(done, max_steps)
                    if accelerator.is_main_process:
                        bar.set_postfix_str(bar_text(logs))
                        append_history(args.output_dir, {"step": done, **logs})
                    accelerator.log(logs, step=done)
                due = _save_is_due(args, done, max_steps, epoch_ends=index + 1 == epoch_batches)
                if interruption.agreed() or due:
                    saved = state.save(done)
                    # Asked again, as saving takes its time.
                    if interruption.agreed():
                        _finish_trackers(accelerator)
                        interruption.stop(done, saved)
                    if push:
                        push.at_save(done)
                if done == max_steps:
                    break
            epoch, steps_into_epoch = epoch + 1, 0
    step.guard.report(max_steps)
    if push:
        push.at_end(done)
    _finish_trackers(accelerator)
    return accelerator.unwrap_model(wrapped)


def _finish_trackers(accelerator: Accelerator) -> None:
    """What `end_training` does, but for ending the processes' group: what was trained is still to be measured."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _save_is_due(args: OrthoSSLTrainingArguments, done: int, max_steps: int, epoch_ends: bool) -> bool:
    """The Trainer's rule: every so many steps or every epoch, and at the end unless nothing is to be saved."""
    if args.save_strategy == "no":
        return False
    due = epoch_ends if args.save_strategy == "epoch" else done % steps_between(args.save_steps, max_steps) == 0
    return due or done == max_steps
