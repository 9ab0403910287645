"""Begin or resume a run: choose the checkpoint, compare the options with the run's, and restore its position."""

import copy
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.optim.lr_scheduler import LRScheduler

from ..data.fingerprint import difference
from ..distributed.collectives import all_gather_object, on_main, rank
from ..locks import locked
from ..modeling import SSLModel
from .adaptation import OPTIONS as ADAPTED
from .arguments import OrthoSSLTrainingArguments
from .auto_gamma import check_auto_gamma
from .callbacks.reporting import CHANGED, append_history
from .checkpoints import checkpoints, damage, newest_checkpoint, steps_done
from .choices import MUONS
from .data import TrainingData
from .freezing import check_freezing
from .muon import Muon, hidden_matrices
from .optimizers import optimizer_facts
from .publishing import check_push
from .random_states import read_random_states, save_random_states, set_random_states
from .run_folder import EXCLUSIVE, check_folder, run_of, update_settings
from .settings import MEASURED, MOVABLE, PER_PROCESS, STEP_OPTIONS, Timeline, check_changes, differences, option_text
from .step import SSLStep
from .watching import check_watch

# File in a checkpoint: what the run was given and did so far, how its steps are made up, and the position in the data.
RUN = "run.json"
ACCUMULATION = "gradient_accumulation_steps"


def begin_run(model: SSLModel, train_dataset: Any, args: OrthoSSLTrainingArguments | None, marker: str) -> TrainingData:
    """Check the arguments of a run and open its data; the Trainer and the loop call it first, on every process.

    Args:
        model ([`SSLModel`]): The model to train.
        train_dataset: Any data that [`TrainingData`] accepts, or a [`TrainingData`] made with the result of
            [`settled_arguments`], which is returned.
        args ([`OrthoSSLTrainingArguments`], *optional*): Settings of the run; not changed.
        marker (`str`): File that identifies checkpoints of the training loop in use.

    The folder of a run to resume is locked while its checkpoints are looked at.

    Returns:
        [`TrainingData`]: The data, whose `args` are the complete settings of the run, and whose record has begun.

    Raises:
        TypeError: `model` is no [`SSLModel`].
        ValueError: `train_dataset` is `None`, an argument cannot be used, or a resumed run cannot change it.
        OSError: The encoder cannot be published, or there is no checkpoint to resume from.
    """
    if not isinstance(model, SSLModel):
        raise TypeError(
            f"model is {type(model).__name__}: pass SSLModel(SSLConfig(method=…), encoder=…), which trains a network "
            "of your own too"
        )
    if train_dataset is None:
        raise ValueError("train_dataset is None: pass a data set")
    if args is not None and not isinstance(args, OrthoSSLTrainingArguments):
        raise ValueError(
            f"args is {type(args).__name__}: pass OrthoSSLTrainingArguments, which has the options of a run"
        )
    if isinstance(train_dataset, TrainingData):
        data = train_dataset
    else:
        args = args or OrthoSSLTrainingArguments()
        with locked(args.output_dir):
            args = settled_arguments(args, marker)
        data = TrainingData(train_dataset, model, args.with_recipe(model.method.recipe))
    begin_record(model, data)
    return data


def settled_arguments(args: OrthoSSLTrainingArguments, marker: str) -> OrthoSSLTrainingArguments:
    """Check that the encoder can be published, and return the arguments with the checkpoint to resume from.

    The number of processes may differ from that of the run so far. The order and views of the images follow from seed,
    epoch and step, so the batch size is adapted to keep the number of images per optimizer step, and no image is
    repeated or missed. Call it on every process.

    Args:
        args ([`OrthoSSLTrainingArguments`]): Settings of the run; not changed.
        marker (`str`): File that identifies checkpoints of the training loop in use.

    Returns:
        [`OrthoSSLTrainingArguments`]: The same arguments without `resume`; else a copy with `resume_from_checkpoint`
        set and, if needed, an adapted `per_device_train_batch_size`, which is printed.

    Raises:
        FileNotFoundError: There is no valid checkpoint, or another training loop wrote it.
        ValueError: The images of a step cannot be divided equally, or [`check_push`] rejects the repository.
        OSError: The Hub cannot be reached or rejects the token.
    """
    on_main(lambda: check_push(args))
    if not args.resume:
        return args
    checkpoint = _newest_of_run(Path(args.output_dir), marker)
    run = _read_run(checkpoint)
    args = copy.copy(args)
    args.resume_from_checkpoint = str(checkpoint)
    images, batch = run["images_per_step"], args.per_device_train_batch_size
    parts = args.images_per_step // batch
    if images == args.images_per_step:
        return args
    if batch not in Timeline(run["options"]).values_of("per_device_train_batch_size"):
        raise ValueError(
            f"per_device_train_batch_size is {batch}, {args.images_per_step} images per optimizer step, and the run in "
            f"{args.output_dir} has {images}: omit it, or pass the --gradient_accumulation_steps that keep {images}"
        )
    if images % parts or images // parts < 2:
        raise ValueError(
            f"the run in {args.output_dir} has {images} images per optimizer step, which {parts} batches (processes "
            "× --gradient_accumulation_steps) cannot divide equally with at least 2 each: resume it on a number of "
            f"processes that divides {images}, or with another --gradient_accumulation_steps"
        )
    args.per_device_train_batch_size = images // parts
    if rank() == 0:
        print(
            f"resume   {parts} batches per optimizer step ({args.world_size} processes, {run['processes']} before): "
            f"--per_device_train_batch_size {args.per_device_train_batch_size} keeps {images} images per step"
        )
    return args


def chosen_checkpoint(
    data: TrainingData, model: SSLModel, chosen: str | os.PathLike | bool | None, marker: str
) -> Path | None:
    """Return the checkpoint to resume from for `train(resume_from_checkpoint=chosen)`, or `None`.

    Args:
        data ([`TrainingData`]): Data and settings of the run, from [`begin_run`].
        model ([`SSLModel`]): The model to train.
        chosen (`str`, `PathLike` or `bool`, *optional*): A checkpoint; `True` for the newest valid one, as with
            `args.resume`.
        marker (`str`): File that identifies checkpoints of the training loop in use.

    Raises:
        FileNotFoundError: There is no valid checkpoint, or another training loop wrote it.
        ValueError: The checkpoint is damaged or not one of the run in the folder, its run has another number of images
            per step, or an option differs that a resumed run cannot change.
    """
    args, folder = data.args, Path(data.args.output_dir)
    if chosen is None and args.resume:
        return Path(str(args.resume_from_checkpoint))
    if not chosen:
        return None
    if isinstance(chosen, str | os.PathLike):
        checkpoint = Path(chosen)
        reason = damage(checkpoint)
        if reason:
            raise ValueError(
                f"checkpoint {chosen} is damaged ({reason}): pass resume=True, which uses the newest valid one"
            )
        on_main(lambda: _check_origin(checkpoint, folder))
    else:
        checkpoint = _newest_of_run(folder, marker)
    images = _read_run(checkpoint)["images_per_step"]
    if images != args.images_per_step:
        raise ValueError(
            f"the run of {checkpoint} has {images} images per optimizer step, not {args.images_per_step}: pass "
            "resume=True in the arguments, which adapts the batch size"
        )
    _continue_record(checkpoint, model, data)
    return checkpoint


def check_start(data: TrainingData, checkpoint: Path | None) -> None:
    """Check that a run may use its folder; a front calls it on every process, unless a command has prepared the folder.

    Args:
        data ([`TrainingData`]): Data and settings of the run, whose folder is locked.
        checkpoint (`Path`, *optional*): The checkpoint that the run continues from.

    Raises:
        ValueError: See [`check_folder`], or another command has used the folder since the checkpoint was chosen.
    """
    args, folder = data.args, Path(data.args.output_dir)

    def check() -> None:
        if checkpoint is None:
            check_folder(folder, args, data.record.run)
        elif args.overwrite_output:
            raise ValueError(EXCLUSIVE)
        elif args.resume:
            _check_still_newest(checkpoint, folder)

    on_main(check)


def begin_record(model: SSLModel, data: TrainingData) -> None:
    """Begin the record of a run, or continue that of the run to resume; call it on every process, before training.

    Raises:
        ValueError: An option, the model or the data differ from those of the run in a way that it cannot continue
            with, or a file of the checkpoint cannot be used. Nothing in the run folder has changed.
    """
    if "seed" in data.record.facts:
        return
    _check_equal(data)
    model.method.check_folder(Path(data.args.output_dir))
    check_freezing(model, data)
    if data.args.optim in MUONS:
        hidden_matrices(model)
    check_auto_gamma(model, data)
    check_watch(model, data.args, data.planned_steps())
    if data.args.resume:
        _continue_record(Path(str(data.args.resume_from_checkpoint)), model, data)
        return
    if data.args.adapt:
        if model.encoder.start is None and not model.name_or_path:
            raise ValueError(
                "adapt is true, but the model has random weights: start it from others, as in "
                'SSLConfig(pretrained="resnet50")'
            )
        if rank() == 0:
            values = ", ".join(f"{name} {option_text(getattr(data.args, name))}" for name in ADAPTED)
            print(f"adapt    {values}, regularizer {model.config.regularizer or 'none'}")
    data.record.run = on_main(lambda: uuid.uuid4().hex[:12])
    data.record.options.note(0, data.options)
    # What the weights of a checkpoint started from is part of the record of another run.
    encoder, given = model.encoder, not model.name_or_path
    facts = data.facts() | {"pretrained": encoder.pretrained if given else None} | on_main(model.method.facts)
    if encoder.start is not None and given:
        facts |= {"base_model": encoder.start.repository, "started_from": on_main(encoder.start.describe)}
    data.record.facts.note(0, facts)


def _continue_record(checkpoint: Path, model: SSLModel, data: TrainingData) -> None:
    """Take over the record of a run, compare its options with those given now, and apply the changes to `data.args`."""
    run, args, done, record = _read_run(checkpoint), data.args, steps_done(checkpoint), data.record
    options, facts = Timeline(run["options"]), Timeline(run["facts"])
    if run["processes"] == args.world_size:
        on_main(lambda: _check_random_states(checkpoint, args.world_size))
    changes = differences(options, data.options)
    # Extending a run does not warm it up again.
    if not {"warmup_steps", "warmup_epochs", "lr_scheduler_type"} & set(changes):
        args.warmup_steps = facts["warmup_steps"]
    planned, now = data.planned_steps(done), data.facts()
    same_data = now["fingerprint"] is not None and now["fingerprint"] == facts["fingerprint"]
    check_changes(changes, args.output_dir, (MOVABLE,) if same_data else ())
    _check_data(facts, now, args)
    _check_method(facts, on_main(model.method.facts), args)
    if run["steps_per_epoch"] != data.steps_per_epoch:
        raise ValueError(
            f"an epoch of the run in {args.output_dir} had {run['steps_per_epoch']} optimizer steps and would now have "
            f"{data.steps_per_epoch}: resume it with --gradient_accumulation_steps {options[ACCUMULATION]}, as before"
        )
    if "num_train_epochs" in changes and args.max_steps > 0:
        raise ValueError(
            f"num_train_epochs is {args.num_train_epochs:g} and has no effect, because max_steps is {args.max_steps}: "
            "pass --max_steps -1 with it, or omit it"
        )
    unused = [name for name in STEP_OPTIONS if name in changes]
    if planned == done and unused:
        given = ", ".join(f"{name} is {changes[name][1]!r}" for name in unused)
        raise ValueError(
            f"{given}, but the run in {args.output_dir} has taken all its {done} steps: pass --max_steps above {done} "
            "to continue it, or omit the option"
        )
    record.run, record.options, record.facts = run["run"], options, facts
    record.steps, record.skipped_steps = done, run["skipped_steps"]
    data.watch.load(checkpoint)
    if MEASURED in facts:
        model.config.measured_gamma = facts[MEASURED]
    if planned == done:
        return
    record.changes = changes
    record.options.note(done, data.options)
    record.facts.note(done, now)
    if changes and rank() == 0:
        given = ", ".join(f"{name} {after} (was {before})" for name, (before, after) in changes.items())
        print(f"resume   from step {done} on: {given}")


def _check_equal(data: TrainingData) -> None:
    """Refuse processes of one run that were started with different options; call it on every process.

    Raises:
        ValueError: An option that decides what a step does has another value on another process.
    """
    own = {name: value for name, value in data.options.items() if name not in PER_PROCESS}
    options = all_gather_object(own | {"number of images": data.num_images})
    for process, given in enumerate(options):
        for name, (first, other) in differences(options[0], given).items():
            raise ValueError(
                f"{name} is {first!r} on process 0 and {other!r} on process {process}: start all processes of a run "
                "with the same options and the same data"
            )


def _newest_of_run(folder: Path, marker: str) -> Path:
    """Return the newest valid checkpoint of the run in a folder; call it on every process, with the folder locked."""

    def check(newest: Path) -> None:
        for checkpoint in checkpoints(folder):
            if checkpoint == newest or damage(checkpoint, thorough=(RUN,)) is None:
                _check_origin(checkpoint, folder)

    # Only the main process checks and cleans up.
    return on_main(lambda: newest_checkpoint(folder, marker, check))


def _check_origin(checkpoint: Path, folder: Path) -> None:
    """Refuse a checkpoint of another run than the folder's, or of another step than its name says."""
    run, own = _read_run(checkpoint), run_of(folder)
    if run["step"] != steps_done(checkpoint):
        raise ValueError(
            f"{checkpoint} was saved after step {run['step']}: rename it to checkpoint-{run['step']}, or remove it"
        )
    if own is not None and run["run"] != own:
        raise ValueError(
            f"{checkpoint} belongs to run {run['run']}, and {folder} is the folder of run {own}: move the checkpoint "
            f"out of it to resume run {own}"
        )


def _check_still_newest(checkpoint: Path, folder: Path) -> None:
    """Refuse to resume if another command has used the folder since the checkpoint was chosen."""
    valid = (path for path in checkpoints(folder) if damage(path, thorough=False) is None)
    if next(valid, None) != checkpoint:
        raise ValueError(
            f"the checkpoints in {folder} have changed since {checkpoint.name} was chosen: begin again with --resume"
        )


def _check_random_states(checkpoint: Path, processes: int) -> None:
    for process in range(processes):
        read_random_states(checkpoint, process)


def _check_data(facts: Timeline, now: dict[str, Any], args: OrthoSSLTrainingArguments) -> None:
    """Refuse data that are not those of the run."""
    what = None
    if None not in (facts["fingerprint"], now["fingerprint"]):
        what = difference(facts["fingerprint"], now["fingerprint"])
    if what is None and facts["num_images"] != now["num_images"]:
        what = f"{facts['num_images']} images before, {now['num_images']} now"
    if what:
        raise ValueError(
            f"the images are not those of the run in {args.output_dir} ({what}): restore them to resume it, or start a "
            "new run with another --output_dir"
        )


def _check_method(facts: Timeline, now: dict[str, str], args: OrthoSSLTrainingArguments) -> None:
    """Refuse a method that reads something else than before, such as a teacher that was replaced."""
    for name, (before, value) in differences(facts, now).items():
        raise ValueError(
            f"{name} is {value}, and the run in {args.output_dir} was started with {before}: restore it to resume the "
            "run, or start a new one with another --output_dir"
        )


def begin_steps(data: TrainingData, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, done: int) -> None:
    """Record what the first step will use, and note the changes of a resumed run in its history and settings.

    Both fronts call it on every process once all states are loaded and before the first step.

    Args:
        data ([`TrainingData`]): Data and settings of the run.
        optimizer (`Optimizer`): The optimizer, in the state of its next step.
        scheduler (`LRScheduler`): Its schedule.
        done (`int`): Optimizer steps taken.
    """
    record, folder = data.record, data.args.output_dir
    if done >= data.planned_steps():
        return
    record.facts.note(done, optimizer_facts(optimizer, scheduler))
    # accelerate wraps the optimizer that it prepares.
    kind = getattr(optimizer, "optimizer", optimizer)
    if isinstance(kind, Muon) and rank() == 0:
        print(f"optim    {kind.describe()}; peak rate {record.facts['learning_rate']:g}")
    if record.changes and rank() == 0:
        changed = {name: {"before": before, "now": now} for name, (before, now) in record.changes.items()}
        append_history(folder, {"step": done, CHANGED: changed})
        update_settings(Path(folder), record)


def save_position(checkpoint: Path, data: TrainingData, step: SSLStep, done: int) -> None:
    """Write record, position and random states, for [`begin_record`] and [`load_position`], on every process.

    Args:
        checkpoint (`Path`): The checkpoint that is being written.
        data ([`TrainingData`]): The data, whose record, steps per epoch and position are saved.
        step ([`SSLStep`]): The step, whose averages that are not yet logged are saved, one file per process.
        done (`int`): Optimizer steps taken.
    """
    checkpoint.mkdir(exist_ok=True)
    args = data.args
    _step_file(checkpoint, args.process_index).write_text(json.dumps(step.state_dict()), encoding="utf-8")
    save_random_states(checkpoint, args.process_index)
    if args.process_index == 0:
        data.watch.save(checkpoint)
        run = {
            "step": done,
            "processes": args.world_size,
            "images_per_step": args.images_per_step,
            "steps_per_epoch": data.steps_per_epoch,
            "data": data.position(done),
            **data.record.to_dict(),
        }
        (checkpoint / RUN).write_text(json.dumps(run), encoding="utf-8")


def load_position(checkpoint: Path, data: TrainingData, step: SSLStep) -> None:
    """Restore the position of `data` and the averages of `step`, on the same or a different number of processes."""
    run, args = _read_run(checkpoint), data.args
    data.resume(steps_done(checkpoint), run["data"])
    same = run["processes"] == args.world_size
    ranks = [args.process_index] if same else range(run["processes"])
    step.load_state_dicts(
        [json.loads(_step_file(checkpoint, process).read_text(encoding="utf-8")) for process in ranks]
    )


def load_random_states(checkpoint: Path, args: OrthoSSLTrainingArguments) -> None:
    """Restore the random number generators of this process, or seed them anew if the number of processes has changed.

    Saved states belong to processes that saw certain images. With another number of processes, all generators are
    seeded from seed, process and step.

    Raises:
        ValueError: The states of this process are missing or cannot be read.
    """
    if _read_run(checkpoint)["processes"] == args.world_size:
        set_random_states(read_random_states(checkpoint, args.process_index))
        return
    parts = (args.seed, args.process_index, steps_done(checkpoint))
    set_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))


def _read_run(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / RUN).read_text(encoding="utf-8"))


def _step_file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"step_state_{process}.json"
