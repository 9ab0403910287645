"""Settings of a pretraining run as `transformers.TrainingArguments`, which both fronts read."""

import copy
import dataclasses
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

import torch
from accelerate import PartialState
from accelerate.utils import DynamoBackend, parse_flag_from_env
from transformers import TrainingArguments, get_scheduler
from transformers.utils.logging import get_logger

from ..distributed.environment import is_multi_process
from ..distributed.launch import group_timeout, meet_processes
from ..messages import Secret, first_line, suggest
from ..methods import TrainingRecipe
from ..options import default_of
from .adaptation import LAYER_DECAY, WARMUP, adaptation_of
from .choices import (
    ADAM_RATE,
    ADAM_SCALE,
    ADAM_WEIGHT_DECAY,
    MUONS,
    OPTIMIZERS,
    OWN_OPTIMIZERS,
    TRACKERS,
    rate_scale,
)
from .inherited import refusal
from .options import TrainingOptions
from .settings import option_text

logger = get_logger(__name__)


@dataclass(repr=False)  # That of the parent class hides tokens.
class OrthoSSLTrainingArguments(TrainingOptions, TrainingArguments):  # type: ignore[misc]  # None: as the recipe says
    """Settings of [`OrthoSSLTrainer`] and [`pretrain_loop`].

    An option that is `None` follows the recipe that the method was published with. The defaults differ from those of
    `transformers.TrainingArguments`: batches of 256, the last, smaller one dropped, 30 epochs, a cosine schedule, no
    gradient clipping, only the two newest checkpoints, and a timeout of five minutes for a process that does not
    answer. One process trains on one GPU, even if there are several.

    The fields of [`TrainingOptions`] are the options that both fronts honour. To set any other field of
    `TrainingArguments` is an error that says why; docs/training_options.md lists them all.

    Args:
        output_dir (`str`, defaults to "runs/default"): Folder of the run.
        views (`str` or [`~data.Recipe`], *optional*): Augmentation recipe. By default "digits" for the digits,
            "imagenet" from 96 pixels on, and otherwise that of the method.
        optim (`str`, *optional*): "lars", "sgd", "adam", "muon", "adamuon" (see [`~training.muon.Muon`]), or a name of
            `TrainingArguments.optim`; the method's by default.
        learning_rate (`float`, *optional*): Peak learning rate, used as given. By default the method's, scaled by
            images per step over the batch size its recipe refers to. Where the recipe is for LARS or SGD, that of Adam
            and its kind, Muon included, is 1e-3; any other optimizer than the recipe's needs a rate of its own.
        weight_decay (`float`, *optional*): Weight decay; the method's by default, and likewise 0.01 for AdamW and its
            kind.
        adapt (`bool`, defaults to `False`): Whether options that are `None` follow what is published on going on from
            foundation weights, instead of the recipe for random ones: `adaptation.py` has the values and their sources.
            The model must start from given weights; its penalty is best "so_init".
        layer_decay (`float`, *optional*): Factor of the learning rate from each layer of the encoder to the one below
            it, in (0, 1]; the heads have the whole rate. Layers are the blocks of a ViT and the stages of a
            convolutional network. 1 by default.
        freeze (`list[str]`, *optional*): Parameters of the encoder that are not trained: shell patterns of their names,
            or of modules, as the backbone's library names them (`layer1`, `blocks.[0-5]`), or `all_but_last=K`, which
            leaves the last K layers. They have no gradient, no weight decay and no penalty, and batch norms among them
            normalize by their running statistics, in target networks too.
        freeze_epochs (`float`, *optional*): Epochs in which `freeze`, or without it the whole encoder, is frozen; then
            it is trained. 0 by default.
        momentum (`float`, *optional*): Momentum in [0, 1): of "lars" and "sgd" 0.9 by default, of "muon" and "adamuon"
            0.95.
        warmup_steps (`float`, *optional*): Steps of linear warm-up, or a share of the run if below 1. By default the
            method's, which is one of epochs, in a run of fewer than ten times as many epochs a tenth of its steps.
        warmup_epochs (`float`, *optional*): Epochs of linear warm-up, exactly, instead of `warmup_steps`.
        warmup_start_lr (`float`, *optional*): Learning rate at the first step of the warm-up, at most `learning_rate`;
            the method's by default.
        sync_batchnorm (`bool`, defaults to `True`): Whether batch norm uses the statistics of all processes' batches.
            It has no effect on a single process.
        cache_images (`str`, defaults to "auto"): Whether to cache decoded images in memory: "auto" (images of at most
            96 pixels that fill at most a quarter of the free memory), "always", or "never". Streams are never cached.
        gradient_cache (`int`, *optional*): Images per chunk in which the encoder processes each batch: the loss of the
            whole batch with the memory of a chunk, for a third more time in the encoder, whose batch norm sees one
            chunk at a time. See [`~methods.gradient_cache.ChunkedEncoder`].
        gradient_checkpointing (`bool`, defaults to `False`): Recompute the encoder's activations in the backward pass
            instead of keeping them, by the switch of timm or transformers: the same losses, for less memory and a third
            more time in the encoder. Batch norm counts each batch once.
        spectra_steps (`float`, defaults to 0.1): Steps between two measurements of the weights' spectra, or a share of
            the run if below 1; 0 for none. They are part of the log entries.
        spectra_images (`int`, defaults to 0): Measure features too, at the same steps: the representation, and the
            patch tokens of a vision transformer, of as many training images.
        spectra_threshold (`float`, defaults to 0.1): Warn when a layer's effective rank falls below this share of its
            maximum; 0 for no warnings.
        select_by (`str`, *optional*): Write the encoder of the step at which this measure of the representation was
            best, of those measured every `spectra_steps` on `spectra_images` training images, instead of the last:
            "rankme", "lidar" (of ten views of each image) and "effective_rank", of which more is better, or
            "alpha_req", which is best at 1. The weights of the last step are in the last checkpoint.
        stop_on_collapse (`bool`, defaults to `False`): End the run, with a checkpoint and its encoder, after two
            measurements in a row at which the representation's effective rank is below `spectra_threshold` of the
            highest possible; `orthossl pretrain` then exits with code 3.
        knn_steps, linear_probe_steps (`float`, defaults to 0): Steps between two measurements of kNN and linear-probe
            accuracy on labelled training images, or a share of the run if below 1; 0 for none.
        on_nonfinite (`str`, defaults to "stop"): What to do when loss or gradients are not finite: "stop" the run, or
            "skip" the optimizer step, count it, and stop after 10 consecutive ones.
        resume (`bool`, defaults to `False`): Continue from the newest valid checkpoint in `output_dir`.
        overwrite_output (`bool`, defaults to `False`): Replace the run in `output_dir`.

    Raises:
        ValueError: An option cannot be used, or has a value that cannot; the message says what to do.
    """

    # Batches have columns that the model's forward does not accept, and a NaN must stop the run, not be averaged.
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        # Every checkpoint holds the arguments, and folders of runs are passed on.
        super().__setattr__(name, Secret(value) if name == "hub_token" and isinstance(value, str) else value)

    def __post_init__(self):
        TrainingOptions.__post_init__(self)
        _check_not_set(self)
        _check_schedule(self)
        if self.torch_compile or self.torch_compile_backend or self.torch_compile_mode:
            _check_compilation(self.torch_compile_backend or "inductor", self.torch_compile_mode)
        if not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
            # Otherwise accelerate does not recognize several CPU processes as one run, and bf16 is refused.
            self.use_cpu = True
        if self.use_cpu:
            if self.fp16:
                raise ValueError("fp16 needs a GPU: pass --bf16, which computes in bfloat16 on the CPU")
            if self.tf32 is not None:
                raise ValueError(f"tf32 is {self.tf32}, which only NVIDIA's GPUs have: leave it out")
        several = is_multi_process()
        if several:
            meet_processes(self.ddp_timeout)
        timeout = group_timeout(cpu=bool(self.use_cpu))
        if self.use_cpu and several:
            # The parent class would create the process group without the timeout.
            PartialState(cpu=True, backend=self.ddp_backend, timeout=timeout)
        # The parent class rejects these values and `None`, so pass a placeholder while it checks the rest. With a
        # backend it would expect a process group even of one process. Its timeout is that of torch. It would hand
        # gradient checkpointing, whose name has changed there, to the whole model.
        ours = self.optim, self.warmup_steps, self.ddp_backend, self.ddp_timeout, self.gradient_checkpointing
        self.gradient_checkpointing = None  # type: ignore[assignment]
        self.ddp_timeout = int(timeout.total_seconds())
        self.ddp_backend = self.ddp_backend if several else None
        self.optim = "sgd" if self.optim in (None, *OWN_OPTIMIZERS) else self.optim
        self.warmup_steps = self.warmup_steps or 0
        TrainingArguments.__post_init__(self)
        # The parent class adds trackers that it finds in its environment, and the loop has only some of them.
        self.report_to = [name for name in self.report_to if name in TRACKERS]
        if self.n_gpu > 1:
            # The Trainer would wrap the model in nn.DataParallel, and the batch would be n_gpu times as large.
            logger.warning_once(
                f"one process trains on one of the {self.n_gpu} GPUs of this machine: start it with `accelerate "
                "launch` to use all"
            )
            self._n_gpu = 1
        if self.on_nonfinite == "skip" and self.deepspeed_plugin is not None:
            raise ValueError("on_nonfinite skip does not work with DeepSpeed, which steps by itself: use stop")
        if ours[0] in MUONS and self.deepspeed_plugin is not None:
            raise ValueError(
                f"optim {ours[0]} does not work with DeepSpeed, which flattens the matrices that it orthogonalizes: "
                "train with DDP or FSDP2, or pass --optim adamw_torch"
            )
        if ours[0] in (None, *OWN_OPTIMIZERS):
            self.optim = ours[0]
        self.warmup_steps, self.ddp_backend, self.ddp_timeout, self.gradient_checkpointing = ours[1:]

    @property
    def images_per_step(self) -> int:
        """Return the images in one optimizer step, over all processes and accumulation steps."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def with_recipe(self, recipe: TrainingRecipe) -> Self:
        """Return a copy in which every option that is `None` has the value of the recipe, or of `adapt`.

        Raises:
            ValueError: A setting has no effect on the optimizer, or the optimizer needs a learning rate.
        """
        args = copy.copy(self)
        if args.adapt:
            recipe = adaptation_of(recipe)
        if args.optim is None:
            args.optim = recipe.optim
        asked = option_text(args.optim)
        # A rate of LARS or SGD says nothing about one of Adam and its kind, nor the other way round.
        if rate_scale(asked) != rate_scale(recipe.optim):
            if rate_scale(asked) == ADAM_SCALE:
                rates: dict[str, Any] = {"learning_rate": ADAM_RATE, "lr_batch_size": None, "warmup_start_lr": 0.0}
                # Plain Adam's passes through its gradient, as that of LARS and SGD does.
                decay = recipe.weight_decay if asked == "adam" else ADAM_WEIGHT_DECAY
                recipe = dataclasses.replace(recipe, weight_decay=decay, **rates)
            elif args.learning_rate is None:
                raise ValueError(
                    f"optim is {asked} without a learning rate, and that of the recipe is for {recipe.optim}: pass "
                    "--learning_rate"
                )
        if args.learning_rate is None:
            scale = self.images_per_step / recipe.lr_batch_size if recipe.lr_batch_size else 1.0
            args.learning_rate = recipe.learning_rate * scale
        if args.weight_decay is None:
            args.weight_decay = recipe.weight_decay
        if args.warmup_start_lr is None:
            args.warmup_start_lr = min(recipe.warmup_start_lr, args.learning_rate)
        if args.adapt and args.warmup_steps is None and args.warmup_epochs is None:
            args.warmup_steps = None if option_text(args.lr_scheduler_type) == "constant" else WARMUP
        if args.layer_decay is None:
            args.layer_decay = LAYER_DECAY if args.adapt else 1.0
        if args.freeze_epochs is None and not args.adapt:
            # With `adapt` it is a share of the run, whose length the data decide.
            args.freeze_epochs = 0.0
        args.check_optimizer_settings()
        optimizer = OPTIMIZERS[option_text(args.optim)]
        if args.momentum is None and "momentum" in optimizer.settings:
            args.momentum = optimizer.momentum
        return args


def _check_not_set(args: OrthoSSLTrainingArguments) -> None:
    """Reject a value of a training argument that is no option of ours."""
    ours = {spec.name for spec in fields(TrainingOptions)}
    others = [spec for spec in fields(args) if spec.name not in ours]
    given = [spec.name for spec in others if getattr(args, spec.name) != default_of(spec)]
    if not given:
        return
    # `dataclasses.replace` passes on what the parent class has made of a default.
    usual = TrainingArguments(args.output_dir)
    fixed = OrthoSSLTrainingArguments.__annotations__
    for name in given:
        if name in fixed or getattr(args, name) != getattr(usual, name, MISSING):
            raise ValueError(f"{name} cannot be used: {refusal(name, inherited=True)}")


def _check_compilation(backend: str, mode: str | None) -> None:
    """Reject a backend or mode of `torch.compile` that does not exist."""
    known = [one.value.lower() for one in DynamoBackend if one is not DynamoBackend.NO]
    if backend not in known:
        raise ValueError(f"torch_compile_backend is {backend!r}: {suggest(backend, known)}")
    try:
        torch.compile(lambda: None, backend=backend, mode=mode)
    except RuntimeError as error:
        raise ValueError(f"torch_compile_mode is {mode!r}: {first_line(error)}") from error


def _check_schedule(args: OrthoSSLTrainingArguments) -> None:
    """Reject arguments that the learning rate schedule does not take."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate or 1.0)
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 0, 100, dict(args.lr_scheduler_kwargs or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lr_scheduler_kwargs is {args.lr_scheduler_kwargs}: {args.lr_scheduler_type} does not take it "
            f"({first_line(error)})"
        ) from error
