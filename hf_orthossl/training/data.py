"""The training data of a run, for both the Trainer and the loop: data set, batches, steps, and the position."""

import copy
import logging
import math
import os
from collections.abc import Mapping
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
from ..data.augment.recipes import is_recipe_file
from ..data.items import is_items
from ..data.options import MAX_UNREADABLE
from ..distributed.collectives import on_main
from ..encoders.channels import common_channels, match_channels
from ..messages import warn_once
from ..modeling import SSLModel
from ..options import forms
from .adaptation import FROZEN_SHARE
from .arguments import OrthoSSLTrainingArguments
from .interruption import outlast_interruption
from .options import ModelArguments, TrainingOptions
from .settings import NOT_SETTINGS, RunRecord, as_json, option_text
from .watching import Watch

logger = logging.getLogger(__name__)

# The file of a run folder that lists the images that cannot be read.
UNREADABLE_IMAGES = "unreadable_images.txt"
# Options of which a source knows the value in use.
SOURCE_OPTIONS = (
    *("split", "image_column", "label_column", "pixel_range", "nodata", "pages", "channels", "channel_axis"),
    "max_unreadable",
)
# Size of a stream's shuffle buffer, in images; the default of `datasets`.
STREAM_SHUFFLE = 1000


class TrainingData:
    """The images that a run trains on, and how its processes read them.

    Args:
        data: Data in any form that [`~data.load_source`] accepts, an [`ImageSource`], or a torch data set whose items
            [`~data.collate`] can batch.
        model ([`SSLModel`]): The model to train; its encoder determines the image size, and its method the views.
        args ([`OrthoSSLTrainingArguments`]): Settings of the run, with the recipe's values; not changed.
        options (`dict`, *optional*): Further options by which the run was started, for its record.

    Attributes:
        args ([`OrthoSSLTrainingArguments`]): The settings, with `views` chosen.
        options (`dict`): All options of the run as JSON values: those given, and the ones that `model`, data and `args`
            determine.
        record ([`RunRecord`]): What the run was given and what it did, over all the times that it was resumed.
        watch ([`Watch`]): The best encoder so far, and whether the run stops early.
        dataset (`Dataset`): The torch data set.
        source ([`ImageSource`], *optional*): The source of the images, if known.
        views ([`Views`]): The augmentations, normalizing as the encoder expects.
        measured (`str`, *optional*): By what images are normalized, in words, if that was measured; the encoder has
            these `mean` and `std`.

    Raises:
        ValueError: The data set has fewer images than one step needs, the recipe makes too few views for the method,
            or the batch does not fit the method's queue.

    Example:
        ```python
        data = TrainingData("digits", model, args.with_recipe(model.method.recipe))
        data.planned_steps()
        for batch in data.loader(accelerator): ...
        ```
    """

    def __init__(
        self,
        data: Any,
        model: SSLModel,
        args: OrthoSSLTrainingArguments,
        options: Mapping[str, Any] | None = None,
    ):
        encoder = model.encoder
        named = (str, os.PathLike, datasets.Dataset, datasets.DatasetDict, datasets.IterableDataset)
        several = isinstance(data, list) and all(isinstance(path, str | os.PathLike) for path in data)
        if several or isinstance(data, named) or is_items(data):
            data = load_source(data, channels=common_channels({model.config.backbone: encoder}))
        self.source: ImageSource | None = data if isinstance(data, ImageSource) else getattr(data, "source", None)
        self.args = copy.copy(args)
        self.args.views = args.views or default_views(model, self.source)
        self.measured = _measured(model, self.source)
        recipe = get_recipe(self.args.views)
        model.method.check_batch(args.images_per_step, len(recipe.views))
        model.method.check_sizes(recipe.sizes(encoder.image_size))
        if not isinstance(data, ImageSource):
            self.dataset: Dataset = data
        elif data.num_rows is None:
            self.dataset = StreamingImageDataset(
                data, views=recipe, image_size=encoder.image_size, seed=args.seed, shuffle_buffer=STREAM_SHUFFLE
            )
        else:
            self.dataset = ImageDataset(
                data, views=recipe, image_size=encoder.image_size, seed=args.seed, cache_images=args.cache_images
            )
        self.views = Views(recipe, encoder.image_size, encoder.mean, encoder.std)
        if self.args.freeze_epochs is None:
            # `adapt` freezes for a share of the run; a stream has no epochs.
            per_epoch = self.steps_per_epoch
            self.args.freeze_epochs = 0.0 if per_epoch is None else FROZEN_SHARE * self.planned_steps() / per_epoch
        if self.args.freeze_epochs:
            # What is frozen at first is unused then, and DDP must not wait for it.
            self.args.ddp_find_unused_parameters = True
        self._loader: DataLoader | None = None
        self._recipe = model.method.recipe
        self.options = self._all_options(model, options or {})
        self.record = RunRecord()
        self.watch = Watch(self.args)
        count, batch = self.num_images, args.train_batch_size * args.world_size
        if args.dataloader_drop_last and count is not None and count < batch:
            raise ValueError(
                f"the data set has {count} images, but a step needs {batch}: lower --per_device_train_batch_size"
            )

    @property
    def num_images(self) -> int | None:
        """Return the number of images in the data set; `None` for a stream."""
        return len(self.dataset) if hasattr(self.dataset, "__len__") else None

    @property
    def batches_per_epoch(self) -> int | None:
        """Return the batches per process in one pass over the data; `None` for a stream."""
        if self.num_images is None:
            return None
        batch = self.args.train_batch_size * self.args.world_size
        return self.num_images // batch if self.args.dataloader_drop_last else -(-self.num_images // batch)

    @property
    def steps_per_epoch(self) -> int | None:
        """Return the optimizer steps in one pass over the data; the last may be smaller. `None` for a stream."""
        batches = self.batches_per_epoch
        return None if batches is None else math.ceil(batches / self.args.gradient_accumulation_steps)

    def planned_steps(self, done: int = 0) -> int:
        """Return the number of optimizer steps of the whole run: `max_steps`, or those of `num_train_epochs`.

        Args:
            done (`int`, defaults to 0): Optimizer steps that the run has already taken.

        Raises:
            ValueError: The data are a stream and `max_steps` is not set, or the run would end before step `done`.
        """
        args, per_epoch = self.args, self.steps_per_epoch
        if args.max_steps > 0:
            steps = args.max_steps
        elif per_epoch is None:
            raise ValueError("max_steps is not set and a streamed data set has no length: pass --max_steps")
        else:
            steps = math.ceil(args.num_train_epochs * per_epoch)
        if steps < done:
            ends = f"max_steps is {steps}" if args.max_steps > 0 else f"num_train_epochs is {args.num_train_epochs:g}"
            raise ValueError(
                f"{ends}, but the run in {args.output_dir} has done {done} steps: resume it with --max_steps {done} or "
                "more"
            )
        return steps

    def warmup_steps(self, planned: int) -> int:
        """Return the number of optimizer steps of linear warm-up in a run of `planned` steps.

        Raises:
            ValueError: It is given in epochs, which a stream does not have.
        """
        args, per_epoch = self.args, self.steps_per_epoch
        if option_text(args.lr_scheduler_type) == "constant":  # transformers' has none
            return 0
        if args.warmup_steps is not None:
            return args.get_warmup_steps(planned)
        if args.warmup_epochs is None:
            # The recipe's epochs are those of a long run.
            epochs = self._recipe.warmup_epochs
            return min(round(epochs * per_epoch) if per_epoch else planned, planned // 10) if epochs else 0
        if per_epoch is None:
            raise ValueError(
                f"warmup_epochs is {args.warmup_epochs:g} and a streamed data set has no epochs: pass --warmup_steps"
            )
        steps = round(args.warmup_epochs * per_epoch)
        if steps >= planned:
            warn_once(
                logger,
                f"the warm-up of {args.warmup_epochs:g} epochs ({steps} steps) does not end within the {planned} steps "
                "of the run: the learning rate stays below its peak",
            )
        return steps

    def loader(self, accelerator: Accelerator) -> DataLoader:
        """Return the batches of this process, on its device, from the beginning; [`resume`] refers to the last one.

        All processes take the same number of steps. Batch j of process p is batch j·P + p of a single process with the
        same batch size; for streams, see [`~data.StreamBatches`]. The last, incomplete step of an epoch is dropped.
        With `dataloader_drop_last=False`, several processes fill it up with images from the beginning of the epoch,
        except in streams, where it is dropped.
        """
        loader = build_dataloader(self.dataset, self.args)
        if isinstance(loader.dataset, StreamBatches):
            # Each process already reads only its share, so the batches only have to be moved to the device.
            self._loader = prepare_data_loader(
                loader,
                accelerator.device,
                num_processes=1,
                process_index=0,
                put_on_device=accelerator.device_placement,
                dispatch_batches=False,
                non_blocking=accelerator.non_blocking,
            )
        else:
            self._loader = accelerator.prepare(loader)
        return self._loader

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the images and the crops made during decoding."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def position(self, steps: int) -> dict[str, int]:
        """Return the position in a stream after `steps` optimizer steps, as JSON values.

        Returns:
            `dict[str, int]`: Empty unless the data are a stream; otherwise the step determines the position.
        """
        stream = self._stream
        return {} if stream is None else stream.position(steps * self.args.gradient_accumulation_steps)

    def resume(self, steps: int, position: dict[str, int]) -> None:
        """Continue the batches of [`loader`] after `steps` optimizer steps.

        The caller still has to skip the earlier batches, which are empty and cost nothing.

        Args:
            steps (`int`): Optimizer steps that the run has taken.
            position (`dict[str, int]`): The value of [`position`]; ignored unless the data are a stream.
        """
        stream = self._stream
        if stream is not None:
            stream.resume(steps * self.args.gradient_accumulation_steps, position)

    def unreadable_log(self) -> UnreadableLog:
        """Return a log that counts images that cannot be decoded, in a file of the run folder."""
        limit = MAX_UNREADABLE if self.source is None else self.source.max_unreadable
        return UnreadableLog(Path(self.args.output_dir) / UNREADABLE_IMAGES, self.num_images, limit)

    def facts(self) -> dict[str, Any]:
        """Return what determines the steps besides the optimizer, as JSON values; call it on every process."""
        args, source, planned = self.args, self.source, self.planned_steps()
        warmup = self.warmup_steps(planned)
        return {
            "views": self.views.recipe.name,
            "planned_steps": planned,
            "images_per_step": args.images_per_step,
            "processes": args.world_size,
            "device": args.device.type,
            "lr_scheduler_type": option_text(args.lr_scheduler_type),
            "warmup_steps": warmup,
            "warmup_start_lr": (args.warmup_start_lr or None) if warmup else None,
            "max_grad_norm": args.max_grad_norm or None,
            "gradient_cache": args.gradient_cache,
            "gradient_checkpointing": args.gradient_checkpointing or None,
            "adapt": args.adapt or None,
            "layer_decay": None if args.layer_decay == 1 else args.layer_decay,
            "freeze": " ".join(args.freeze or []) or None,
            "freeze_epochs": args.freeze_epochs or None,
            "seed": args.seed,
            "num_images": self.num_images,
            "fingerprint": on_main(lambda: None if source is None else source.fingerprint),
        }

    def _all_options(self, model: SSLModel, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options as JSON values: those given, and what data, model and arguments have made of them."""
        options = dict(given)
        if self.source is not None:
            options.setdefault("dataset", self.source.name)
            options |= {name: getattr(self.source, name) for name in SOURCE_OPTIONS}
        options |= {name: getattr(model.config, name) for name in forms(ModelArguments) if hasattr(model.config, name)}
        options |= {name: getattr(self.args, name) for name in forms(TrainingOptions)}
        if is_recipe_file(self.args.views):
            # Of a file the content counts, which may change until the run is resumed.
            options["views"] = self.views.recipe.to_dict()
        return as_json({name: value for name, value in options.items() if name not in NOT_SETTINGS})

    @property
    def _stream(self) -> StreamBatches | None:
        dataset = None if self._loader is None else self._loader.dataset
        return dataset if isinstance(dataset, StreamBatches) else None


def _measured(model: SSLModel, source: ImageSource | None) -> str | None:
    """Measure by what images are normalized, if asked or unknown, and return it in words.

    Raises:
        ValueError: The images have another number of channels than the encoder, or there is no source to measure.
    """
    wanted = model.config.normalization == "data"
    if source is None:
        if wanted or not model.encoder.knows_normalization:
            raise ValueError(
                f"normalization of {model.encoder.channels} channels is measured on a data set of load_source, and the "
                "data set is another one: pass mean and std to SSLConfig"
            )
        return None
    measured = match_channels(model.encoder, source, measure=wanted)
    if measured is not None:
        model.keep_normalization()
    return measured


def default_views(model: SSLModel, source: ImageSource | None) -> str:
    """Return the default augmentation recipe: that of the digits, of large images, or of the method."""
    one = model.method.views_needed == 1
    if source is not None and source.name == "digits":
        return "digits-one" if one else "digits"
    return "imagenet" if model.encoder.image_size >= 96 and not one else model.method.recipe.views


def build_dataloader(dataset: Dataset, args: OrthoSSLTrainingArguments) -> DataLoader:
    """Return batches whose order depends only on seed and epoch, before they are distributed over processes."""
    workers: dict[str, Any] = {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and torch.cuda.is_available(),
        "prefetch_factor": args.dataloader_prefetch_factor,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        # A separate generator, because a loader draws a number each time it is read, which a resumed run does once
        # more.
        "generator": torch.Generator(),
        "worker_init_fn": outlast_interruption,
    }
    if isinstance(dataset, StreamingImageDataset):
        stream = StreamBatches(dataset, args.train_batch_size, drop_last=args.dataloader_drop_last, **workers)
        return DataLoader(stream, batch_size=None, collate_fn=_unchanged, generator=torch.Generator())
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        sampler=None if isinstance(dataset, IterableDataset) else SeedableRandomSampler(dataset, data_seed=args.seed),
        collate_fn=collate,
        drop_last=args.dataloader_drop_last,
        persistent_workers=args.dataloader_persistent_workers,
        **workers,
    )


def _unchanged(batch: Any) -> Any:
    return batch
