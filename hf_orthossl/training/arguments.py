"""Settings of a pretraining run: `transformers.TrainingArguments` with defaults for SSL and additional options."""

import copy
import math
import os
from dataclasses import dataclass, field
from typing import Self

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.utils.logging import get_logger

from ..distributed.collectives import TIMEOUT
from ..methods import TrainingRecipe

logger = get_logger(__name__)

# Values of `optim` that `transformers` does not support; `None` means the one of the recipe.
OWN_OPTIMIZERS = (None, "lars", "adam")
# What to do with a step whose loss or gradients are not finite.
POLICIES = ("stop", "skip")


def steps_between(value: float, max_steps: int) -> int:
    """Return the steps between two events, given as a number or, below 1, as a share of the run."""
    return max(math.ceil(value * max_steps) if value < 1 else int(value), 1)


def is_due(step: int, before: int, every: float, max_steps: int) -> bool:
    """Return whether an event every `every` steps is due since step `before`; it always is at the end of the run."""
    interval = steps_between(every, max_steps)
    return step > before and (step >= max_steps or step // interval != before // interval)


def check_interval(name: str, steps: float) -> None:
    """Reject a value that is not a number of steps between two events.

    Raises:
        ValueError: The value is neither a whole number nor a share in [0, 1).
    """
    if not (0 <= steps < 1 or (steps >= 1 and float(steps).is_integer())):
        raise ValueError(f"{name} is {steps}: it must be a whole number of steps, a share below 1, or 0 for none")


def check_threshold(name: str, share: float) -> None:
    """Reject a threshold outside [0, 1).

    Raises:
        ValueError: The threshold is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"{name} is {share}: it must lie in [0, 1), as in 0.1; 0 gives no warnings")


@dataclass
class OrthoSSLTrainingArguments(TrainingArguments):
    """Settings of [`OrthoSSLTrainer`] and [`pretrain_loop`].

    An option that is `None` follows the recipe that the method was published with. Everything else is
    `transformers.TrainingArguments` with other defaults: batches of 256, the last, smaller one dropped, 30 epochs, a
    cosine schedule, no gradient clipping, only the two newest checkpoints, and a timeout of one day between processes,
    since measurements on the main one may take long. One process trains on one GPU, even if there are several.

    Args:
        output_dir (`str`, defaults to "runs/default"): Folder of the run.
        views (`str`, *optional*): Augmentation recipe. By default "digits" for the digits, "imagenet" from 96 pixels
            on, and otherwise that of the method.
        optim (`str`, *optional*): "lars", "sgd", "adam", or a name of `TrainingArguments.optim`; the method's by
            default.
        learning_rate (`float`, *optional*): Peak learning rate, used as given. By default the method's, scaled by
            images per step over the batch size its recipe refers to.
        weight_decay (`float`, *optional*): Weight decay; the method's by default.
        momentum (`float`, defaults to 0.9): Momentum of "lars" and "sgd", in [0, 1).
        warmup_steps (`float`, *optional*): Steps of linear warm-up, or a share of the run if below 1; the method's by
            default.
        sync_batchnorm (`bool`, defaults to `True`): Whether batch norm uses the statistics of all processes' batches.
            It has no effect on a single process.
        cache_images (`str`, defaults to "auto"): Whether to cache decoded images in memory: "auto" (images of at most
            96 pixels that fill at most a quarter of the free memory), "always", or "never". Streams are never cached.
        gradient_cache (`int`, *optional*): Images per chunk in which the encoder processes each batch: the loss of the
            whole batch with the memory of a chunk, for a third more time in the encoder, whose batch norm sees one
            chunk at a time. See [`~methods.gradient_cache.ChunkedEncoder`].
        spectra_steps (`float`, defaults to 0.1): Steps between two measurements of the weights' spectra, or a share of
            the run if below 1; 0 for none. They are part of the log entries.
        spectra_threshold (`float`, defaults to 0.1): Warn when a layer's effective rank falls below this share of its
            maximum; 0 for no warnings.
        knn_steps, linear_probe_steps (`float`, defaults to 0): Steps between two measurements of kNN and linear-probe
            accuracy on labelled training images, or a share of the run if below 1; 0 for none.
        on_nonfinite (`str`, defaults to "stop"): What to do when loss or gradients are not finite: "stop" the run, or
            "skip" the optimizer step, count it, and stop after 10 consecutive ones.
        resume (`bool`, defaults to `False`): Continue from the newest valid checkpoint in `output_dir`.
        overwrite_output (`bool`, defaults to `False`): Replace the run in `output_dir`.
    """

    # Heading in --help.
    _argument_group_name = "training"

    output_dir: str = field(default="runs/default", metadata={"help": "folder of the run"})
    views: str | None = field(
        default=None,
        metadata={
            "help": "augmentation recipe (default: digits for the digits, imagenet from 96 px, else that of the method)"
        },
    )
    optim: str | None = field(  # type: ignore[assignment]  # None until the recipe sets it
        default=None, metadata={"help": "lars, sgd, adam or a transformers optimizer (default: the method's)"}
    )
    learning_rate: float | None = field(  # type: ignore[assignment]  # None until the recipe sets it
        default=None, metadata={"help": "peak learning rate (default: the method's, scaled to the batch)"}
    )
    weight_decay: float | None = field(  # type: ignore[assignment]  # None until the recipe sets it
        default=None, metadata={"help": "weight decay (default: the method's)"}
    )
    momentum: float = field(default=0.9, metadata={"help": "momentum of lars and sgd"})
    warmup_steps: float | None = field(  # type: ignore[assignment]  # None until the recipe sets it
        default=None,
        metadata={"help": "warm-up steps, or share of the run if below 1 (default: the method's)"},
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "images per process and step"})
    num_train_epochs: float = field(default=30.0, metadata={"help": "passes over the data"})
    max_grad_norm: float = field(default=0.0, metadata={"help": "maximum gradient norm; 0 for no clipping"})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "drop the last, smaller batch"})
    logging_steps: float = field(default=10, metadata={"help": "steps between two log entries"})
    save_total_limit: int | None = field(default=2, metadata={"help": "number of checkpoints to keep"})
    # Batches have columns that the model's forward does not accept, and a NaN must stop the run, not be averaged.
    remove_unused_columns: bool = field(default=False, metadata={"help": "must stay False: the views need the columns"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "must stay False: a NaN stops the run"})
    # Every method uses all its parameters at every step.
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "set it for a backbone with parameters that a forward pass does not use"}
    )
    # Queues, centres and synchronized statistics are already equal on all processes, so broadcasting them at every
    # forward pass would only cost time. Statistics of batch norm that is not synchronized remain local, and those of
    # the main process are saved, as they would be with broadcasting.
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "broadcast the main process's buffers at every forward pass"}
    )
    ddp_timeout: int = field(
        default=int(TIMEOUT.total_seconds()), metadata={"help": "seconds that processes wait for each other"}
    )
    sync_batchnorm: bool = field(
        default=True, metadata={"help": "batch norm over the batches of all processes (default: yes)"}
    )
    cache_images: str = field(
        default="auto", metadata={"help": "keep decoded images in memory: auto (small ones that fit), always, or never"}
    )
    gradient_cache: int | None = field(
        default=None,
        metadata={
            "help": "images per chunk, for the loss of the whole batch with the memory of a chunk (default: off)"
        },
    )
    spectra_steps: float = field(
        default=0.1,
        metadata={"help": "steps between two measurements of the weights' spectra, or share of the run; 0 for none"},
    )
    spectra_threshold: float = field(
        default=0.1, metadata={"help": "warn when a layer uses less than this share of its directions"}
    )
    knn_steps: float = field(
        default=0.0,
        metadata={"help": "steps between two kNN measurements on labelled training images, or share of the run"},
    )
    linear_probe_steps: float = field(
        default=0.0, metadata={"help": "steps between two linear probes on frozen representations, or share of the run"}
    )
    on_nonfinite: str = field(
        default="stop", metadata={"help": "if loss or gradients are not finite: stop the run, or skip the step"}
    )
    resume: bool = field(default=False, metadata={"help": "continue from the newest valid checkpoint in output_dir"})
    overwrite_output: bool = field(default=False, metadata={"help": "replace the run in output_dir"})

    def __post_init__(self):
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}: it must lie in [0, 1), as in 0.9")
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}: batch normalization and every "
                "method's loss need at least 2 images per process"
            )
        if self.remove_unused_columns or self.logging_nan_inf_filter:
            raise ValueError(
                "remove_unused_columns and logging_nan_inf_filter must stay False: the views need the columns, and a "
                "loss that is not finite must stop the run"
            )
        if self.on_nonfinite not in POLICIES:
            raise ValueError(f"on_nonfinite is {self.on_nonfinite!r}: choose from {', '.join(POLICIES)}")
        if self.gradient_cache is not None and self.gradient_cache < 1:
            raise ValueError(
                f"gradient_cache is {self.gradient_cache}: the number of images in a chunk must be 1 or more"
            )
        if self.save_only_model:
            raise ValueError(
                "save_only_model removes from checkpoints the state that resume needs: omit it; output_dir/encoder "
                "contains only the model"
            )
        if self.resume_from_checkpoint is not None:
            raise ValueError(
                f"resume_from_checkpoint is {self.resume_from_checkpoint!r}: pass --resume, which uses the newest "
                "checkpoint in output_dir"
            )
        for name in ("spectra_steps", "knn_steps", "linear_probe_steps"):
            check_interval(name, getattr(self, name))
        check_threshold("spectra_threshold", self.spectra_threshold)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
                # Otherwise accelerate does not recognize several CPU processes as one run.
                self.use_cpu = True
            if self.use_cpu:
                # The parent class would create the process group without the timeout.
                PartialState(cpu=True, backend=self.ddp_backend, timeout=self.ddp_timeout_delta)
        # The parent class rejects these values and `None`, so pass a placeholder while it checks the rest.
        ours = self.optim, self.warmup_steps
        self.optim = "sgd" if self.optim in OWN_OPTIMIZERS else self.optim
        self.warmup_steps = self.warmup_steps or 0
        super().__post_init__()
        if self.n_gpu > 1:
            # The Trainer would wrap the model in nn.DataParallel, and the batch would be n_gpu times as large.
            logger.warning_once(
                f"one process trains on one of the {self.n_gpu} GPUs of this machine: start it with `accelerate "
                "launch` to use all"
            )
            self._n_gpu = 1
        if self.on_nonfinite == "skip" and self.deepspeed_plugin is not None:
            raise ValueError("on_nonfinite skip does not work with DeepSpeed, which steps by itself: use stop")
        if ours[0] in OWN_OPTIMIZERS:
            self.optim = ours[0]
        self.warmup_steps = ours[1]

    @property
    def images_per_step(self) -> int:
        """Images in one optimizer step, over all processes and accumulation steps."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def with_recipe(self, recipe: TrainingRecipe) -> Self:
        """Return a copy in which every option that is `None` has the value of the recipe."""
        args = copy.copy(self)
        if args.optim is None:
            args.optim = recipe.optim
        if args.learning_rate is None:
            scale = self.images_per_step / recipe.lr_batch_size if recipe.lr_batch_size else 1.0
            args.learning_rate = recipe.learning_rate * scale
        if args.weight_decay is None:
            args.weight_decay = recipe.weight_decay
        if args.warmup_steps is None:
            args.warmup_steps = recipe.warmup
        return args
