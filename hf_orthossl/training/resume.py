"""Begin or resume a run: choose the checkpoint, and restore position and averages on any number of processes."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed

from ..distributed.collectives import on_main, rank
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .checkpoints import damage, newest_checkpoint, steps_done
from .data import TrainingData
from .publishing import check_push
from .step import SSLStep

# File in a checkpoint with the number of processes, the images per step, and the position in the data.
SHAPE = "run_shape.json"


def begin_run(model: SSLModel, train_dataset: Any, args: OrthoSSLTrainingArguments | None, marker: str) -> TrainingData:
    """Check the arguments of a run and open its data; the Trainer and the loop call it first, on every process.

    Args:
        model ([`SSLModel`]): The model to train.
        train_dataset: Any data that [`TrainingData`] accepts, or a [`TrainingData`] made with the result of
            [`settled_arguments`], which is returned unchanged.
        args ([`OrthoSSLTrainingArguments`], *optional*): Settings of the run; not changed.
        marker (`str`): File that identifies checkpoints of the training loop in use.

    Returns:
        [`TrainingData`]: The data, whose `args` are the complete settings of the run.

    Raises:
        ValueError: `train_dataset` is `None`, or an argument cannot be used.
        OSError: The encoder cannot be published, or there is no checkpoint to resume from.
    """
    if isinstance(train_dataset, TrainingData):
        return train_dataset
    if train_dataset is None:
        raise ValueError("train_dataset is None: pass a data set")
    args = settled_arguments(args or OrthoSSLTrainingArguments(), marker)
    return TrainingData(train_dataset, model, args.with_recipe(model.method.recipe))


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
    # Only the main process checks and cleans up.
    checkpoint = on_main(lambda: newest_checkpoint(Path(args.output_dir), marker))
    shape = _read_shape(checkpoint)
    args = copy.copy(args)
    args.resume_from_checkpoint = str(checkpoint)
    images, parts = shape["images_per_step"], args.images_per_step // args.per_device_train_batch_size
    if images == args.images_per_step:
        return args
    if images % parts or images // parts < 2:
        raise ValueError(
            f"the run in {args.output_dir} has {images} images per optimizer step, which {parts} batches (processes "
            "× --gradient_accumulation_steps) cannot divide equally with at least 2 each: resume it on a number of "
            f"processes that divides {images}, or with another --gradient_accumulation_steps"
        )
    args.per_device_train_batch_size = images // parts
    if rank() == 0:
        print(
            f"resume   {shape['processes']} processes before, {args.world_size} now: --per_device_train_batch_size "
            f"{args.per_device_train_batch_size} keeps {images} images per optimizer step"
        )
    return args


def chosen_checkpoint(
    args: OrthoSSLTrainingArguments, chosen: str | os.PathLike | bool | None, marker: str
) -> Path | None:
    """Return the checkpoint to resume from for `train(resume_from_checkpoint=chosen)`, or `None`.

    Args:
        args ([`OrthoSSLTrainingArguments`]): Arguments of the run, from [`settled_arguments`].
        chosen (`str`, `PathLike` or `bool`, *optional*): A checkpoint; `True` for the newest valid one, as with
            `args.resume`.
        marker (`str`): File that identifies checkpoints of the training loop in use.

    Raises:
        FileNotFoundError: There is no valid checkpoint, or another training loop wrote it.
        ValueError: The checkpoint is damaged, or its run has another number of images per step.
    """
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
    else:
        checkpoint = on_main(lambda: newest_checkpoint(Path(args.output_dir), marker))
    images = _read_shape(checkpoint)["images_per_step"]
    if images != args.images_per_step:
        raise ValueError(
            f"the run of {checkpoint} has {images} images per optimizer step, not {args.images_per_step}: pass "
            "resume=True in the arguments, which adapts the batch size"
        )
    return checkpoint


def save_position(checkpoint: Path, data: TrainingData, step: SSLStep, done: int) -> None:
    """Write the position, for [`load_position`] and [`settled_arguments`], into a checkpoint, on every process.

    Args:
        checkpoint (`Path`): The checkpoint that is being written.
        data ([`TrainingData`]): The data, whose steps per epoch and position are saved.
        step ([`SSLStep`]): The step, whose averages that are not yet logged are saved, one file per process.
        done (`int`): Optimizer steps taken.
    """
    checkpoint.mkdir(exist_ok=True)
    args = data.args
    _step_file(checkpoint, args.process_index).write_text(json.dumps(step.state_dict()), encoding="utf-8")
    if args.process_index == 0:
        shape = {
            "processes": args.world_size,
            "images_per_step": args.images_per_step,
            "steps_per_epoch": data.steps_per_epoch,
            "data": data.position(done),
        }
        (checkpoint / SHAPE).write_text(json.dumps(shape), encoding="utf-8")


def load_position(checkpoint: Path, data: TrainingData, step: SSLStep) -> None:
    """Restore the position of `data` and the averages of `step`, on the same or a different number of processes.

    Raises:
        ValueError: An epoch has another number of optimizer steps than before, so that positions do not correspond.
    """
    shape, args = _read_shape(checkpoint), data.args
    before, now = shape["steps_per_epoch"], data.steps_per_epoch
    if before != now:
        raise ValueError(
            f"an epoch of the run in {args.output_dir} had {before} optimizer steps and would now have "
            f"{now}: resume it on the same data set, with --gradient_accumulation_steps and "
            "--dataloader_drop_last as before"
        )
    data.resume(steps_done(checkpoint), shape["data"])
    same = shape["processes"] == args.world_size
    ranks = [args.process_index] if same else range(shape["processes"])
    step.load_state_dicts(
        [json.loads(_step_file(checkpoint, process).read_text(encoding="utf-8")) for process in ranks]
    )


def seed_if_processes_changed(checkpoint: Path, args: OrthoSSLTrainingArguments) -> bool:
    """Seed all random number generators from seed, process and step if the number of processes has changed.

    The saved generator states belong to processes that saw other images. With the same number of processes nothing
    happens.

    Returns:
        `bool`: Whether the generators were seeded.
    """
    if _read_shape(checkpoint)["processes"] == args.world_size:
        return False
    parts = (args.seed, args.process_index, steps_done(checkpoint))
    set_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))
    return True


def _read_shape(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / SHAPE).read_text(encoding="utf-8"))


def _step_file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"step_state_{process}.json"
