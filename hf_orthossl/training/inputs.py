"""From a data set to shuffled batches and the views made of them, the same for both fronts."""

from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..data import (
    ImageDataset,
    ImageSource,
    StreamBatches,
    StreamingImageDataset,
    UnreadableLog,
    Views,
    collate,
    get_recipe,
    load_source,
)
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .interruption import outlast_interruption
from .step import SSLStep

# Images of a stream among which the next one is drawn; `datasets`' own default.
STREAM_SHUFFLE = 1000


def as_image_dataset(
    data: str | datasets.Dataset | ImageSource | Dataset, model: SSLModel, args: OrthoSSLTrainingArguments
) -> Dataset:
    """Whatever the user calls a training set, as a torch data set that [`collate`] can batch.

    Args:
        data: Name or folder, Hugging Face data set, [`ImageSource`], or a data set of such items already.
        model ([`SSLModel`]): Its encoder says which image size is needed.
        args ([`OrthoSSLTrainingArguments`]): Its `views`, if left open, are set to what suits data and model.
    """
    if isinstance(data, str | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset):
        data = load_source(data)
    source = data if isinstance(data, ImageSource) else getattr(data, "source", None)
    args.views = args.views or default_views(model, source)
    if isinstance(data, ImageSource):
        settings = {"views": get_recipe(args.views), "image_size": model.encoder.image_size, "seed": args.seed}
        if data.num_rows is None:
            return StreamingImageDataset(data, **settings, shuffle_buffer=STREAM_SHUFFLE)
        return ImageDataset(data, **settings, cache_images=args.cache_images)
    return data


def default_views(model: SSLModel, source: ImageSource | None) -> str:
    """The augmentation recipe where the user names none: handwriting's, large images', or the method's."""
    if source is not None and source.name == "digits":
        return "digits"
    return "imagenet" if model.encoder.image_size >= 96 else model.method.recipe.views


def build_dataloader(dataset: Dataset, args: OrthoSSLTrainingArguments) -> DataLoader:
    """Batches in an order that follows from the seed and the epoch alone, for [`prepared_dataloader`].

    Raises:
        ValueError: the data set has fewer images than one step needs.
    """
    workers = {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and torch.cuda.is_available(),
        "prefetch_factor": args.dataloader_prefetch_factor,
        # Its own: a loader draws a number whenever it is read, and a resumed run reads it once more.
        "generator": torch.Generator(),
        "worker_init_fn": outlast_interruption,
    }
    if isinstance(dataset, StreamingImageDataset):
        stream = StreamBatches(dataset, args.train_batch_size, drop_last=args.dataloader_drop_last, **workers)
        return DataLoader(stream, batch_size=None, collate_fn=_as_it_is, generator=torch.Generator())
    streaming = isinstance(dataset, IterableDataset)
    if not streaming and args.dataloader_drop_last and len(dataset) < args.train_batch_size * args.world_size:
        raise ValueError(
            f"the data set has {len(dataset)} images and a step takes {args.train_batch_size * args.world_size}: "
            "lower --per_device_train_batch_size"
        )
    seed = args.seed if args.data_seed is None else args.data_seed
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        sampler=None if streaming else SeedableRandomSampler(dataset, data_seed=seed),
        collate_fn=collate,
        drop_last=args.dataloader_drop_last,
        persistent_workers=args.dataloader_persistent_workers,
        **workers,
    )


def prepared_dataloader(dataset: Dataset, args: OrthoSSLTrainingArguments, accelerator: Accelerator) -> DataLoader:
    """The batches of this process, on its device; all processes take the same number of steps.

    Batch j of process p is batch j·P + p of what a single process with the same batch size has; streams: see
    [`~data.StreamBatches`]. The last, incomplete step of an epoch is left out. With `dataloader_drop_last=False`,
    several processes fill it up with images from the epoch's beginning, except in streams, which leave it out.

    Raises:
        ValueError: the data set has fewer images than one step needs.
    """
    loader = build_dataloader(dataset, args)
    if not isinstance(loader.dataset, StreamBatches):
        return accelerator.prepare(loader)
    # Shared out already: all that is left to do is to put batches on the device.
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        dispatch_batches=False,
        non_blocking=accelerator.non_blocking,
    )


def data_position(loader: DataLoader, batches: int) -> dict[str, int]:
    """Where in the data a run is after `batches` batches per process, to be saved as JSON; empty where it follows."""
    return loader.dataset.position(batches) if isinstance(loader.dataset, StreamBatches) else {}


def resume_data(loader: DataLoader, batches: int, position: dict[str, int]) -> None:
    """Makes a new loader continue after `batches` batches, which are still to be skipped, at no cost.

    Args:
        loader (`DataLoader`): From [`prepared_dataloader`].
        batches (`int`): Batches per process that the run has had.
        position (`dict`): What [`data_position`] gave; ignored unless the data are a stream.
    """
    if isinstance(loader.dataset, StreamBatches):
        loader.dataset.resume(batches, position)


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def build_views(model: SSLModel, args: OrthoSSLTrainingArguments) -> Views:
    """The view pipeline of a run, normalizing as the encoder expects.

    Raises:
        ValueError: the recipe makes too few views for the method, or the batch does not fit the method's queue.
    """
    recipe = get_recipe(args.views or default_views(model, None))
    model.method.check_batch(args.images_per_step, len(recipe.views))
    encoder = model.encoder
    return Views(recipe, encoder.image_size, encoder.mean, encoder.std)


def unreadable_log(dataset: Dataset, args: OrthoSSLTrainingArguments) -> UnreadableLog:
    """Counts images that cannot be decoded, in a file of the run folder."""
    total = len(dataset) if hasattr(dataset, "__len__") else None
    return UnreadableLog(Path(args.output_dir) / "unreadable_images.txt", total)


def build_step(model: SSLModel, dataset: Dataset, args: OrthoSSLTrainingArguments) -> SSLStep:
    """What both fronts do in an optimizer step, on this process.

    Raises:
        ValueError: as [`build_views`].
    """
    return SSLStep(
        model,
        build_views(model, args),
        args.seed,
        args.process_index,
        unreadable_log(dataset, args),
        images_per_step=args.images_per_step,
        on_nonfinite=args.on_nonfinite,
    )
