"""The options of a pretraining run: data, model and training, with their defaults and help; without torch.

The fields of [`TrainingOptions`] are all that a run accepts of `transformers.TrainingArguments`, and what this package
adds to them. [`inherited`] says of every other training argument why it is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..data.options import ImageOptions
from ..distributed.environment import LIMIT
from ..options import check_layer_decay, convert, forms, named_backbone, parse_assignments
from .choices import ADAM, MOMENTUM, check_optimizer, check_schedule, check_settings, checked_trackers
from .intervals import check_interval, check_threshold

# Headings of the help.
SAVING, HUB = "measuring and saving", "hub"
# The least value of options that have one.
AT_LEAST = {
    "gradient_accumulation_steps": 1,
    "gradient_cache": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "adam_epsilon": 0,
    "warmup_steps": 0,
    "warmup_epochs": 0,
    "warmup_start_lr": 0,
    "max_grad_norm": 0,
    "freeze_epochs": 0,
    "seed": 0,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "ddp_timeout": 1,
    "save_total_limit": 0,
}


@dataclass
class DataArguments(ImageOptions):
    """Options that select the images to train on."""

    split: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "split to train on (default: train and unlabeled)"}
    )
    streaming: bool = field(default=False, metadata={"help": "read the data while training, without a copy"})
    knn_images: int = field(default=2048, metadata={"help": "images to measure kNN with; 0: none"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.knn_images < 0:
            raise ValueError(f"knn_images is {self.knn_images}: it must be 0 or more; 0 measures no kNN")


@dataclass
class ModelArguments:
    """Options that define the model to train; the defaults are those of [`SSLConfig`]."""

    _argument_group_name = "model"

    backbone: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "timm name, Hub id, folder (default: resnet10t)"}
    )
    pretrained: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "start from these weights; names the backbone"}
    )
    image_size: int | None = field(
        default=None,
        metadata={"metavar": "PX", "help": "side of the views (default: as images, up to 224)"},
    )
    normalization: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "mean and std: backbone, data, cifar10, …", "more": True}
    )
    backbone_config: dict | None = field(
        default=None, metadata={"help": "for the backbone, as in patch_size=4", "more": True}
    )
    method: str = field(default="simclr", metadata={"metavar": "NAME", "help": "SSL method, see orthossl methods"})
    method_config: dict | None = field(default=None, metadata={"help": "hyper-parameters, as in temperature=0.2"})
    regularizer: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "penalty, see orthossl methods (default: so)"}
    )
    gamma: float | Literal["auto"] | None = field(
        default=None, metadata={"help": "weight of the penalty (default: the penalty's)"}
    )
    penalty_mode: Literal["loss", "decoupled"] = field(
        default="loss", metadata={"help": "where it acts: in the loss, or after the optimizer", "more": True}
    )
    strength: float | None = field(
        default=None, metadata={"help": "λ of a decoupled penalty (default: its own)", "more": True}
    )
    regularizer_config: dict | None = field(
        default=None, metadata={"help": "for the penalty, as in iterations=4", "more": True}
    )
    penalty_every: int = field(
        default=1, metadata={"help": "compute the penalty at every N-th step, times N", "more": True}
    )
    constrain: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "orthogonal: orthonormal weights (default: none)", "more": True},
    )
    whitening: float = field(
        default=0.0,
        metadata={"help": "weight of feature whitening, the paper's baseline", "more": True},
    )
    embedding_regularizer: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "on embeddings (default: none)"}
    )
    embedding_weight: float | None = field(
        default=None, metadata={"help": "its weight (default: the regularizer's)", "more": True}
    )
    embedding_layer: Literal["embedding", "representation"] = field(
        default="embedding", metadata={"help": "what it acts on", "more": True}
    )
    embedding_config: dict | None = field(default=None, metadata={"help": "for it, as in slices=256", "more": True})

    def __post_init__(self) -> None:
        for name in ("backbone_config", "method_config", "regularizer_config", "embedding_config"):
            setattr(self, name, convert(name, getattr(self, name) or {}, forms(ModelArguments)[name]))
        self.backbone = named_backbone(self.backbone, self.pretrained)


@dataclass(repr=False)
class TrainingOptions:
    """Options that say how to train; [`OrthoSSLTrainingArguments`] describes them."""

    _argument_group_name = "training"

    views: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "objects": True, "help": "augmentations (default: by method and image size)"},
    )
    per_device_train_batch_size: int = field(default=256, metadata={"help": "images per process and step"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches per process and step"})
    gradient_cache: int | None = field(
        default=None,
        metadata={"help": "whole batch's loss, N images' memory (default: off)"},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute activations: less memory, slower"})
    num_train_epochs: float = field(default=30.0, metadata={"help": "passes over the data"})
    max_steps: int = field(default=-1, metadata={"help": "optimizer steps, instead of epochs (default: off)"})
    optim: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "lars, adamw_torch, muon, … (default: the method's)"}
    )
    optim_args: str | None = field(
        default=None,
        metadata={"help": "for the optimizer, as in trust_coeff=0.001,eps=1e-8", "more": True},
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "peak rate (default: the method's, by batch size)"}
    )
    weight_decay: float | None = field(default=None, metadata={"help": "weight decay (default: the method's)"})
    adapt: bool = field(default=False, metadata={"help": "careful settings for going on from --pretrained"})
    layer_decay: float | None = field(
        default=None, metadata={"help": "rate × this per layer from the head down (default: 1)"}
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={"metavar": "PATTERN", "help": "parameters to freeze, as in layer1 all_but_last=2"},
    )
    freeze_epochs: float | None = field(
        default=None, metadata={"help": "epochs before they, or the encoder, are trained"}
    )
    momentum: float | None = field(default=None, metadata={"help": "of lars, sgd (default: 0.9), muons (0.95)"})
    adam_beta1: float = field(default=0.9, metadata={"help": "β1 of Adam and its kind", "more": True})
    adam_beta2: float = field(default=0.999, metadata={"help": "β2 of Adam and its kind", "more": True})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "ε of Adam and its kind", "more": True})
    lr_scheduler_type: str = field(default="cosine", metadata={"metavar": "NAME", "help": "learning rate schedule"})
    lr_scheduler_kwargs: dict | None = field(
        default=None, metadata={"help": "for the schedule, as in min_lr=1e-5", "more": True}
    )
    warmup_steps: float | None = field(
        default=None, metadata={"help": "steps, or share of the run (default: the method's)"}
    )
    warmup_epochs: float | None = field(
        default=None, metadata={"help": "epochs of warm-up, instead of warmup_steps", "more": True}
    )
    warmup_start_lr: float | None = field(
        default=None, metadata={"help": "rate at its start (default: the method's)", "more": True}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "limit of the gradients' norm; 0: none"})
    bf16: bool = field(default=False, metadata={"help": "compute in bfloat16"})
    fp16: bool = field(default=False, metadata={"help": "compute in float16, on a GPU only"})
    tf32: bool | None = field(
        default=None, metadata={"help": "TF32 for float32 on NVIDIA GPUs (default: torch's)", "more": True}
    )
    torch_compile: bool = field(default=False, metadata={"help": "compile the model with torch.compile", "more": True})
    torch_compile_backend: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "compile with this backend (default: inductor)", "more": True},
    )
    torch_compile_mode: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "compile in this mode (default: torch's)", "more": True},
    )
    use_cpu: bool = field(default=False, metadata={"help": "train on the CPU even if there is a GPU"})
    seed: int = field(default=42, metadata={"help": "seed of weights, order and views"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "drop the last, smaller batch", "more": True})
    dataloader_pin_memory: bool = field(
        default=True, metadata={"help": "pin the memory of batches for a GPU", "more": True}
    )
    dataloader_persistent_workers: bool = field(
        default=False, metadata={"help": "keep decoding processes between epochs", "more": True}
    )
    dataloader_prefetch_factor: int | None = field(
        default=None, metadata={"help": "batches that each of them prepares (default: 2)", "more": True}
    )
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = field(
        default=None, metadata={"help": "how they start (default: Python's way)", "more": True}
    )
    cache_images: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"help": "keep decoded images in memory", "more": True}
    )
    sync_batchnorm: bool = field(
        default=True, metadata={"help": "batch norm over all processes' batches", "more": True}
    )
    # Every method uses all its parameters at every step.
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "for weights that a forward pass does not use", "more": True}
    )
    # Queues, centres and synchronized statistics are already equal on all processes, so broadcasting them at every
    # forward pass would only cost time. Statistics of batch norm that is not synchronized remain local, and those of
    # the main process are saved, as they would be with broadcasting.
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "send the main process's buffers at every step", "more": True}
    )
    ddp_backend: Literal["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"] | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "nccl, gloo, … (default: by device)", "more": True},
    )
    # A main process that measures for hours answers all the while.
    ddp_timeout: int = field(
        default=LIMIT,
        metadata={"help": "seconds to wait for a process that is silent", "more": True},
    )
    output_dir: str = field(
        default="runs/default", metadata={"metavar": "DIR", "help": "folder of the run", "group": SAVING}
    )
    overwrite_output: bool = field(default=False, metadata={"help": "replace the run in output_dir", "group": SAVING})
    resume: bool = field(default=False, metadata={"help": "continue from the newest valid checkpoint", "group": SAVING})
    logging_steps: float = field(default=10, metadata={"help": "steps between log entries", "group": SAVING})
    report_to: list[str] | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "tensorboard, wandb, … (default: none)", "group": SAVING},
    )
    disable_tqdm: bool | None = field(
        default=None, metadata={"help": "dated lines instead of a progress bar", "group": SAVING, "more": True}
    )
    save_strategy: Literal["steps", "epoch", "no"] = field(
        default="steps", metadata={"help": "when to save checkpoints", "group": SAVING, "more": True}
    )
    save_steps: float = field(default=500, metadata={"help": "steps between checkpoints, or share", "group": SAVING})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints to keep; 0: all", "group": SAVING})
    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "when loss or gradients are NaN", "group": SAVING}
    )
    knn_steps: float = field(default=0.0, metadata={"help": "steps between kNN results; 0: none", "group": SAVING})
    linear_probe_steps: float = field(
        default=0.0, metadata={"help": "steps between linear probes; 0: none", "group": SAVING}
    )
    spectra_steps: float = field(default=0.1, metadata={"help": "steps between spectra, or share", "group": SAVING})
    spectra_images: int = field(
        default=0, metadata={"help": "images whose features are measured too", "group": SAVING, "more": True}
    )
    spectra_threshold: float = field(
        default=0.1,
        metadata={"help": "warn below this share of directions used; 0: never", "group": SAVING, "more": True},
    )
    select_by: Literal["rankme", "lidar", "alpha_req", "effective_rank"] | None = field(
        default=None,
        metadata={
            "metavar": "NAME",
            "help": "keep the best encoder by rankme, lidar, …",
            "group": SAVING,
            "more": True,
        },
    )
    stop_on_collapse: bool = field(
        default=False, metadata={"help": "stop once it has collapsed", "group": SAVING, "more": True}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "publish the encoder on the Hub", "group": HUB})
    hub_model_id: str | None = field(
        default=None, metadata={"metavar": "USER/NAME", "help": "repository to publish to", "group": HUB}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "make a new repository private", "group": HUB}
    )
    hub_strategy: Literal["every_save", "end"] = field(
        default="every_save", metadata={"help": "when to publish", "group": HUB, "more": True}
    )
    hub_always_push: bool = field(
        default=False, metadata={"help": "publish even while an earlier push runs", "group": HUB, "more": True}
    )
    hub_revision: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "branch to publish to (default: main)", "group": HUB, "more": True},
    )
    hub_token: str | None = field(
        default=None,
        metadata={"help": "access token (default: HF_TOKEN, or hf auth login)", "group": HUB, "more": True},
    )

    def __post_init__(self) -> None:
        for name, form in forms(TrainingOptions).items():
            setattr(self, name, convert(name, getattr(self, name), form))
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value:g}: it must be {least} or more")
        if not self.output_dir.strip():
            raise ValueError("output_dir is empty: pass the folder of the run, as in runs/a")
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}: it must be below 2**32")
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}: batch normalization and every "
                "method's loss need at least 2 images per process"
            )
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"max_steps is {self.max_steps}: it must be 1 or more, or -1 to train by num_train_epochs")
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs:g}: it must be above 0")
        for name in ("momentum", "adam_beta1", "adam_beta2"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie in [0, 1), as in 0.9")
        if self.layer_decay is not None:
            check_layer_decay(self.layer_decay)
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 exclude each other: pass one of them")
        for name in ("logging_steps", "save_steps"):
            check_interval(name, getattr(self, name), never=False)
        for name in ("spectra_steps", "knn_steps", "linear_probe_steps"):
            check_interval(name, getattr(self, name))
        if self.spectra_images < 0 or self.spectra_images == 1:
            raise ValueError(
                f"spectra_images is {self.spectra_images}: it must be 2 or more, or 0 to measure weights only"
            )
        check_threshold("spectra_threshold", self.spectra_threshold)
        self._check_watched()
        warmup = {name: getattr(self, name) for name in ("warmup_steps", "warmup_epochs", "warmup_start_lr")}
        check_schedule(self.lr_scheduler_type, self.lr_scheduler_kwargs, warmup)
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps:g} and warmup_epochs {self.warmup_epochs:g}: pass one of them"
            )
        if self.learning_rate is not None and (self.warmup_start_lr or 0) > self.learning_rate:
            raise ValueError(
                f"warmup_start_lr is {self.warmup_start_lr:g}: it must be at most the learning rate, "
                f"{self.learning_rate:g}"
            )
        if self.optim is not None:
            check_optimizer(self.optim)
            self.check_optimizer_settings()
        for name in (
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
        ):
            if getattr(self, name) and not self.dataloader_num_workers:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but no process decodes images: pass --dataloader_num_workers too"
                )
        self.report_to = checked_trackers(self.report_to)

    def _check_watched(self) -> None:
        """Reject options that need measurements of the representation in a run without them."""
        for name in ("select_by", "stop_on_collapse"):
            value = getattr(self, name)
            if not value:
                continue
            if not self.spectra_steps:
                raise ValueError(
                    f"{name} is {value}, but spectra_steps is 0, which measures nothing: pass --spectra_steps 0.1"
                )
            if not self.spectra_images:
                raise ValueError(
                    f"{name} is {value}, which measures features of training images: pass --spectra_images 1024 too"
                )
        if self.stop_on_collapse and not self.spectra_threshold:
            raise ValueError(
                "stop_on_collapse is True, but spectra_threshold is 0, which nothing is below: leave it out"
            )
        if self.select_by and self.save_strategy == "no":
            raise ValueError(
                f"select_by is {self.select_by}, but save_strategy is no, which keeps no encoder: pass steps or epoch"
            )

    def check_optimizer_settings(self) -> None:
        """Reject settings that the optimizer does not read.

        Raises:
            ValueError: The optimizer `optim` has no such setting.
        """
        usual = {spec.name: spec.default for spec in fields(TrainingOptions)}
        given = {name: getattr(self, name) for name in (*MOMENTUM, *ADAM) if getattr(self, name) != usual[name]}
        check_settings(str(getattr(self.optim, "value", self.optim)), given, self.optimizer_arguments)

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """Return the assignments of `optim_args`."""
        return parse_assignments((self.optim_args or "").replace(",", " ").split())


def check_given(given: Mapping[str, Any]) -> None:
    """Reject options that have no effect beside the others of a command.

    Args:
        given (mapping): The options that the user set to another value than the default.

    Raises:
        ValueError: With what to pass too, or to leave out.
    """
    if given.get("adapt") and given.get("pretrained") is None:
        raise ValueError("adapt is true, but there are no weights to adapt: pass --pretrained NAME too")
    for name in ("hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision", "hub_token"):
        if name in given and not given.get("push_to_hub"):
            shown = "given" if name == "hub_token" else given[name]
            raise ValueError(f"{name} is {shown}, but nothing is published: pass --push_to_hub too")
    if "save_steps" in given and given.get("save_strategy", "steps") != "steps":
        raise ValueError(
            f"save_steps is {given['save_steps']:g}, but save_strategy is {given['save_strategy']}: leave out one of "
            "them"
        )
    for name in ("spectra_threshold", "spectra_images"):
        if name in given and given.get("spectra_steps") == 0:
            raise ValueError(
                f"{name} is {given[name]}, but spectra_steps is 0, which measures none: leave one of them out"
            )
    if given.get("streaming"):
        for name in ("cache_images", "knn_images", "spectra_images"):
            if given.get(name) not in (None, 0, "never"):
                raise ValueError(f"{name} is {given[name]}, which a stream cannot have: leave it out, or --streaming")


# Every option of `orthossl pretrain` belongs to one of these.
OPTION_CLASSES = (DataArguments, ModelArguments, TrainingOptions)
