"""What a checkpoint says of the processes that wrote it, and how others take the run over."""

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers.trainer_utils import has_length

from ..distributed.collectives import on_main, rank
from .arguments import OrthoSSLTrainingArguments
from .checkpoint_files import damage
from .checkpoints import newest_checkpoint, steps_done
from .inputs import data_position, resume_data
from .step import SSLStep

SHAPE = "run_shape.json"


def resumed(args: OrthoSSLTrainingArguments, marker: str) -> OrthoSSLTrainingArguments:
    """The arguments with the checkpoint to resume from, and the batch that keeps the images of an optimizer step.

    The number of processes may differ from that of the run so far: order and views of the images follow from seed,
    epoch and step, so that with as many images per step none is seen twice or left out. Without `resume`, and when a
    checkpoint was chosen already, the arguments are returned as they are. Every process has to call it.

    Args:
        args ([`OrthoSSLTrainingArguments`]): Whose `per_device_train_batch_size` may change, with a line that says so.
        marker (`str`): File that the front's checkpoints hold.

    Raises:
        FileNotFoundError: no checkpoint is whole, or the other front wrote it.
        ValueError: the images of a step cannot be shared out equally.
    """
    if not args.resume or args.resume_from_checkpoint is not None:
        return args
    # One process checks and cleans up.
    checkpoint = on_main(lambda: newest_checkpoint(Path(args.output_dir), marker))
    shape = json.loads((checkpoint / SHAPE).read_text())
    args = copy.copy(args)
    args.resume_from_checkpoint = str(checkpoint)
    images, parts = shape["images_per_step"], args.images_per_step // args.per_device_train_batch_size
    if images == args.images_per_step:
        return args
    if images % parts or images // parts < 2:
        raise ValueError(
            f"the run in {args.output_dir} takes {images} images per optimizer step, and {parts} batches (processes × "
            "--gradient_accumulation_steps) cannot share them equally with at least 2 each: resume it on a number of "
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
    """The checkpoint that `train(resume_from_checkpoint=chosen)` is to resume from, or `None`.

    Args:
        args ([`OrthoSSLTrainingArguments`]): Arguments of the run, as [`resumed`] gave them.
        chosen (`str`, `PathLike` or `bool`, *optional*): A checkpoint; `True` for the newest that is whole, as
            `args.resume` asks.
        marker (`str`): File that the front's checkpoints hold.

    Raises:
        FileNotFoundError, ValueError: what [`resumed`] raises.
        ValueError: the checkpoint named is damaged, or the run has another number of images per step.
    """
    if not (args.resume if chosen is None else chosen):
        return None
    if isinstance(chosen, str | os.PathLike):
        checkpoint = Path(chosen)
        reason = damage(checkpoint)
        if reason:
            raise ValueError(f"checkpoint {chosen} is damaged ({reason}): pass resume=True, which takes a whole one")
    else:
        asked = copy.copy(args)
        asked.resume = True
        checkpoint = Path(resumed(asked, marker).resume_from_checkpoint)
    images = json.loads((checkpoint / SHAPE).read_text())["images_per_step"]
    if images != args.images_per_step:
        raise ValueError(
            f"the run of {checkpoint} takes {images} images per optimizer step, not {args.images_per_step}: pass "
            "resume=True with the arguments, which adapts the batch"
        )
    return checkpoint


def save_shape(checkpoint: Path, args: OrthoSSLTrainingArguments, step: SSLStep, loader: DataLoader, done: int) -> None:
    """Writes what [`load_shape`] and [`resumed`] read; every process calls it.

    Args:
        checkpoint (`Path`): The checkpoint in the making.
        args ([`OrthoSSLTrainingArguments`]): Arguments of the run.
        step ([`SSLStep`]): Its averages not yet logged are saved, one file per process.
        loader (`DataLoader`): Of this process; its place in a stream is saved.
        done (`int`): Optimizer steps done.
    """
    checkpoint.mkdir(exist_ok=True)
    _own(checkpoint, args.process_index).write_text(json.dumps(step.state_dict()))
    if args.process_index == 0:
        shape = {
            "processes": args.world_size,
            "images_per_step": args.images_per_step,
            "steps_per_epoch": steps_per_epoch(loader, args),
            "data": data_position(loader, done * args.gradient_accumulation_steps),
        }
        (checkpoint / SHAPE).write_text(json.dumps(shape))


def load_shape(checkpoint: Path, args: OrthoSSLTrainingArguments, step: SSLStep, loader: DataLoader) -> None:
    """Gives `step` back what it had collected and `loader` its place, on the same or another number of processes.

    Raises:
        ValueError: an epoch has another number of optimizer steps than before, so that positions in it do not compare.
    """
    shape = json.loads((checkpoint / SHAPE).read_text())
    before, now = shape["steps_per_epoch"], steps_per_epoch(loader, args)
    if before != now:
        raise ValueError(
            f"an epoch of the run in {args.output_dir} had {before} optimizer steps and would now have "
            f"{now}: resume it on the same data set, with --gradient_accumulation_steps and "
            "--dataloader_drop_last as before"
        )
    resume_data(loader, steps_done(checkpoint) * args.gradient_accumulation_steps, shape["data"])
    same = shape["processes"] == args.world_size
    ranks = [args.process_index] if same else range(shape["processes"])
    step.load_state_dicts([json.loads(_own(checkpoint, process).read_text()) for process in ranks])


def steps_per_epoch(loader: DataLoader, args: OrthoSSLTrainingArguments) -> int | None:
    """Optimizer steps in one pass over the data, the last of which may be smaller; `None` for a stream."""
    return math.ceil(len(loader) / args.gradient_accumulation_steps) if has_length(loader) else None


def planned_steps(loader: DataLoader, args: OrthoSSLTrainingArguments, done: int = 0) -> int:
    """Optimizer steps of the whole run: `max_steps`, else as many as `num_train_epochs` have.

    Raises:
        ValueError: a stream without `max_steps`, or the run is to end before the `done` steps that it has behind it.
    """
    per_epoch = steps_per_epoch(loader, args)
    if args.max_steps <= 0 and per_epoch is None:
        raise ValueError("max_steps is not set and a streamed data set has no length: pass --max_steps")
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    if steps < done:
        ends = f"max_steps is {steps}" if args.max_steps > 0 else f"num_train_epochs is {args.num_train_epochs:g}"
        raise ValueError(
            f"{ends} and the run in {args.output_dir} has done {done} steps: resume it with --max_steps {done} or more"
        )
    return steps


def seed_if_processes_changed(checkpoint: Path, args: OrthoSSLTrainingArguments) -> bool:
    """On another number of processes, sets all random number generators from seed, process and step.

    The saved states belong to processes that saw other images. With the same number nothing happens.

    Returns:
        `bool`: Whether it did.
    """
    if json.loads((checkpoint / SHAPE).read_text())["processes"] == args.world_size:
        return False
    parts = (args.seed, args.process_index, steps_done(checkpoint))
    set_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))
    return True


def _own(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"step_state_{process}.json"
