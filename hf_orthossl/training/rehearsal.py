"""Before step 1, do on a small scale what comes after the last: whatever would stop a run there stops it here."""

import contextlib
import copy
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..disk_errors import not_written
from ..distributed.collectives import on_main, world_size
from ..files import require_writable, scratch_folder
from ..hub.encoder_folder import rehearse_encoder_folder
from ..messages import readable_size
from ..methods import ChunkedEncoder, Progress, SSLOutput
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .callbacks.measuring import error_text
from .checkpoints import STAGING, checkpoints, steps_done
from .data import TrainingData
from .intervals import steps_between
from .publishing import training_record
from .run_folder import RUN_FILES, size_of_run

# Folders among the files of a run.
FOLDERS = ("encoder", "start")
# The fewest images of a batch, which every method and every batch norm accepts.
FEWEST = 2
# Tensors of a parameter's size that optimizers keep for it, of those whose number is known.
MOMENTS = {"sgd": 1, "lars": 1, "adam": 2, "adamw_torch": 2, "adamw_torch_fused": 2}


def rehearse(model: SSLModel, data: TrainingData, *, front: str, encoder: bool = True) -> None:
    """Check that a run can write what it will write, and train on every batch that it will see.

    Checkpoints, encoder folder and disk are checked on the main process, without writing the weights. A batch of the
    smallest size goes through views, encoder, heads and loss on every process. Nothing changes: model, random states
    and files are the same as before, so that training is the same, bit for bit. The memory that training needs is not
    tested.

    Args:
        model ([`SSLModel`]): The model to train, not yet wrapped by an engine.
        data ([`TrainingData`]): The data of the run and its settings.
        front (`str`): "Trainer" or "accelerate loop".
        encoder (`bool`, defaults to `True`): Whether the run writes its encoder.

    Raises:
        ValueError: A batch, the views, the export or the card would fail; the message says which, and the remedy.
        OSError: The folder of the run cannot be written, or the disk has too little space.
    """
    with _random_states_kept(data.args.device):
        on_main(lambda: _rehearse_files(model, data, front, encoder))
        check_batches(model, data)


def check_batches(model: SSLModel, data: TrainingData) -> None:
    """Check that the model can be trained on the views, and on the first and the last batch of an epoch.

    Raises:
        ValueError: The encoder cannot recompute its activations or process a view, a batch of one image or a chunk of
            the gradient cache is too small, the method fails, or the embedding regularizer needs a larger batch.
    """
    args, last = data.args, last_batch(data)
    model.encoder.set_gradient_checkpointing(args.gradient_checkpointing)
    if args.gradient_cache is not None:
        for images in {args.train_batch_size, last or args.train_batch_size}:
            if not (args.sync_batchnorm and world_size() > 1):
                ChunkedEncoder(model.encoder, args.gradient_cache).check(images)
    sizes = ", ".join(f"{size} px" for size in sorted(set(data.views.sizes), reverse=True))
    output, reason = _rehearsed(model, data, FEWEST)
    if reason is not None:
        remedy = "choose other --views, --backbone or --image_size"
        if len(set(data.views.sizes)) > 1 and getattr(model.encoder.backbone, "dynamic_img_size", None) is False:
            remedy = "pass --backbone_config dynamic_img_size=true"
        raise ValueError(
            f"views {data.views.recipe.name!r} ({sizes}) cannot be trained on with backbone {model.config.backbone!r} "
            f"at image_size={model.encoder.image_size} and method {model.config.method!r} ({reason}): {remedy}"
        )
    if last == 1:
        output, reason = _rehearsed(model, data, 1)
        if reason is not None:
            raise ValueError(
                f"the last batch of an epoch has a single image ({data.num_images:,} images in batches of "
                f"{args.train_batch_size}), too few for {model.method.title} ({reason}): pass --dataloader_drop_last "
                "true, or another --per_device_train_batch_size"
            )
    if model.embedding_regularizer is not None and output is not None:
        views = model.regularized(output)
        model.embedding_regularizer.check_batch(args.train_batch_size * args.world_size, views[0].shape[1], len(views))
        least = model.embedding_regularizer.least_images(views[0].shape[1])
        if last is not None and last < least:
            raise ValueError(
                f"embedding_regularizer is {model.config.embedding_regularizer}, which needs {least} images of width "
                f"{views[0].shape[1]}, and the last batch of an epoch has {last} ({data.num_images:,} images in "
                f"batches of {args.train_batch_size}): pass --dataloader_drop_last true"
            )


def last_batch(data: TrainingData) -> int | None:
    """Return the images of the last batch of an epoch, if it is smaller than the others and the run reaches it."""
    args, images, steps = data.args, data.num_images, data.steps_per_epoch
    # Several processes fill the last batch up. The length of a stream is unknown.
    if args.dataloader_drop_last or images is None or steps is None or args.world_size > 1:
        return None
    remainder = images % args.train_batch_size
    return remainder if remainder and data.planned_steps() >= steps else None


@torch.no_grad()
def _rehearsed(model: SSLModel, data: TrainingData, images: int) -> tuple[SSLOutput | None, str | None]:
    """Return the output for a batch of noise of so many images, and why it cannot be trained on, if it cannot."""
    try:
        rehearsed = copy.deepcopy(model)
    except (TypeError, RuntimeError):
        # A model of the user's own may hold what cannot be copied: it is then first used at the first step.
        return None, None
    rehearsed.gradient_cache = None
    # It may need more images; its own check knows how many.
    rehearsed.embedding_regularizer = None
    try:
        device: Any = data.args.device
        rehearsed.to(device).train()
        rehearsed.begin_step(Progress(0, data.planned_steps(), data.steps_per_epoch or 1, data.args.seed))
        size = (images, model.encoder.channels, model.encoder.image_size, model.encoder.image_size)
        noise = torch.randint(256, size, dtype=torch.uint8, device=device)
        output = rehearsed(data.views(noise, seed=0), penalty_weight=0)
    except torch.OutOfMemoryError:
        # Whether the run itself has enough memory shows at its first step.
        return None, None
    except Exception as error:  # each backbone and each method of the user's own raises its own
        return None, error_text(error)
    # Two images of noise may give any loss, but one that is not a number for a single image never is one.
    valid = images > 1 or torch.isfinite(output.loss)
    return output, None if valid else f"the loss is {output.loss.item()}"


def _rehearse_files(model: SSLModel, data: TrainingData, front: str, encoder: bool) -> None:
    folder = Path(data.args.output_dir)
    require_writable(folder, [name for name in RUN_FILES if name not in FOLDERS])
    for path in (*(folder / name for name in FOLDERS), folder / STAGING):
        if path.exists() and not path.is_dir():
            raise ValueError(f"output_dir {folder}: {path} is a file, where a folder is to be written: remove it")
    check_space(model, data, encoder)
    if not encoder:
        return
    with scratch_folder(folder) as scratch:
        try:
            model.config.save_pretrained(scratch / "checkpoint")
            record = training_record(model, data, front=front)
            rehearse_encoder_folder(model, scratch / "encoder", source=data.source, training=record)
        except OSError as error:
            raise not_written(
                folder, error, otherwise="pass another --output_dir", name=f"output_dir {folder}"
            ) from error
        except Exception as error:  # the libraries raise many classes, and all of them would end the run
            raise ValueError(
                f"backbone {model.config.backbone!r} could not be written after training, with its spectra and card "
                f"({error_text(error)}): choose another backbone, or correct what the error names"
            ) from error


def check_space(model: SSLModel, data: TrainingData, encoder: bool = True) -> None:
    """Check that the disk has space for the checkpoints that exist at the same time, and for the encoder.

    Args:
        model ([`SSLModel`]): The model to train.
        data ([`TrainingData`]): The data of the run and its settings.
        encoder (`bool`, defaults to `True`): Whether the run writes its encoder.

    Raises:
        OSError: It has not; the message states what is needed and what is free.
    """
    args, folder = data.args, Path(data.args.output_dir)
    weights = sum(_bytes(weight) for weight in model.state_dict().values())
    trained = sum(_bytes(parameter) for parameter in model.parameters() if parameter.requires_grad)
    checkpoint = weights + MOMENTS.get(str(getattr(args.optim, "value", args.optim)), 0) * trained
    encoder_size = sum(_bytes(weight) for weight in model.encoder.state_dict().values())
    # The best encoder is part of each.
    checkpoint += encoder_size if args.select_by else 0
    exported = encoder_size if encoder else 0
    existing = checkpoints(folder) if args.resume else []
    saves = planned_saves(args, data, steps_done(existing[0]) if existing else 0)
    kept = args.save_total_limit or saves + len(existing)
    # The oldest is removed after a new one is complete.
    most = min(saves, max(kept + 1 - len(existing), 1))
    at_the_end = min(saves, max(kept - len(existing), 0))
    needed = max(most * checkpoint, at_the_end * checkpoint + exported)
    free = _free(folder) + (size_of_run(folder) if args.overwrite_output else 0)
    if free < needed:
        raise OSError(
            f"output_dir {folder} has {readable_size(free)} ({free:,} bytes) free and the run needs "
            f"{readable_size(needed)} ({needed:,} bytes), for up to {most} checkpoints of {readable_size(checkpoint)} "
            "at a time and the encoder: free space, lower --save_total_limit, or pass another --output_dir"
        )


def planned_saves(args: OrthoSSLTrainingArguments, data: TrainingData, done: int = 0) -> int:
    """Return the number of checkpoints that a run saves after `done` steps."""
    steps = data.planned_steps()
    if args.save_strategy == "no" or done >= steps:
        return 0
    every = (data.steps_per_epoch or steps) if args.save_strategy == "epoch" else steps_between(args.save_steps, steps)
    # There is one at the end in any case.
    return -(-steps // every) - done // every


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _free(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or would be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free


@contextlib.contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    """Restore the states of all random number generators: whoever decodes, probes or drops out may draw from them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
