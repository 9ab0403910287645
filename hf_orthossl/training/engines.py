"""Prepare a run and its model for accelerate's engines, DDP and FSDP2, for both the Trainer and the loop."""

import warnings
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast,
    parse_flag_from_env,
)
from accelerate.utils.constants import FSDP_MODEL_NAME

from ..configuration import AUTO
from ..distributed.launch import group_timeout
from ..distributed.sync_batchnorm import synchronize_batchnorm
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .freezing import Freezing


def engine_settings(args: OrthoSSLTrainingArguments) -> dict[str, Any]:
    """Return the arguments of `Accelerator` that select and configure the engine, as the Trainer passes them."""
    return {
        "cpu": args.use_cpu,
        "kwargs_handlers": [
            DistributedDataParallelKwargs(
                find_unused_parameters=bool(args.ddp_find_unused_parameters),
                broadcast_buffers=bool(args.ddp_broadcast_buffers),
            ),
            InitProcessGroupKwargs(timeout=group_timeout(cpu=args.use_cpu)),
        ],
    }


def prepare_model(model: SSLModel, accelerator: Accelerator, args: OrthoSSLTrainingArguments) -> None:
    """Configure a model in place for a run, on all processes, before the engine wraps it.

    What stays frozen is frozen. The encoder processes batches in chunks of `gradient_cache` images, if set, and
    recomputes its activations with `gradient_checkpointing`; copies of it that take no gradient do neither. With
    several processes, batch norm is synchronized if `sync_batchnorm` is set, and all processes start from the weights
    and buffers of the main one, because DDP copies only the weights and FSDP neither.

    Args:
        model ([`SSLModel`]): The model of this process.
        accelerator (`Accelerator`): The accelerator with its engine.
        args ([`OrthoSSLTrainingArguments`]): Settings of the run, with the recipe's values.

    Raises:
        ValueError: The backbone cannot recompute its activations, FSDP has version 1 or runs on the CPU, a batch norm
            cannot be synchronized, or the engine cannot train weights that are frozen at first, or hides gradients that
            are to be measured.
    """
    if model.config.gamma == AUTO and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            f"gamma is {AUTO}, which compares gradients, and DeepSpeed does not show them: pass a number, or train "
            "with DDP or FSDP2"
        )
    model.gradient_cache = args.gradient_cache
    model.encoder.set_gradient_checkpointing(args.gradient_checkpointing)
    freezing = Freezing.of(model, args)
    if freezing is None:
        # An earlier run may have frozen something.
        model.set_frozen(())
    elif freezing.epochs and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        engine = accelerator.distributed_type
        raise ValueError(
            f"freeze_epochs is {freezing.epochs:g}, but {engine.value} cannot train weights later that were frozen "
            "when it divided them: freeze for the whole run with --freeze alone, or train with DDP"
        )
    else:
        freezing.begin_run(model)
    if accelerator.num_processes == 1:
        return
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and not sharded:
        raise ValueError(
            f"fsdp is set, but accelerate supports it only on GPUs, not on {accelerator.device.type}: train with "
            "scripts/accelerate_configs/two_cpu_processes.yaml"
        )
    if sharded and not accelerator.is_fsdp2:
        raise ValueError(
            "fsdp_version is 1, which flattens the weights that penalty and spectra read as matrices: set it to 2, as "
            "in scripts/accelerate_configs/fsdp2.yaml"
        )
    if args.sync_batchnorm:
        synchronize_batchnorm(model)
    for tensor in chain(model.parameters() if sharded else (), model.buffers()):
        tensor.data.copy_(broadcast(tensor.detach().to(accelerator.device)))
    # accelerate uses a name of the argument that torch has deprecated.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")


def check_engine(checkpoint: Path, accelerator: Accelerator) -> None:
    """Reject a checkpoint that was saved with FSDP if the run is without it, and vice versa.

    Raises:
        ValueError: The checkpoint belongs to the other kind of engine.
    """
    saved, now = any(checkpoint.glob(f"{FSDP_MODEL_NAME}*")), accelerator.distributed_type == DistributedType.FSDP
    if saved != now:
        kinds = {True: "with FSDP", False: "without FSDP"}
        raise ValueError(
            f"{checkpoint} was saved {kinds[saved]}, but this run is {kinds[now]}: resume it {kinds[saved]}, on any "
            "number of processes"
        )
