"""What accelerate's engines, DDP and FSDP2, need to know of a run and of its model; the same for both fronts."""

import warnings
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast,
    parse_flag_from_env,
)
from accelerate.utils.constants import FSDP_MODEL_NAME

from ..distributed.sync_batchnorm import synchronize_batchnorm
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments


def engine_settings(args: OrthoSSLTrainingArguments) -> dict[str, Any]:
    """Arguments of `Accelerator` that say which engine runs and how, as the Trainer passes them."""
    return {
        "cpu": args.use_cpu,
        "fsdp_plugin": FullyShardedDataParallelPlugin(**args.fsdp_plugin_args) if args.fsdp else None,
        "kwargs_handlers": [
            DistributedDataParallelKwargs(
                find_unused_parameters=bool(args.ddp_find_unused_parameters),
                broadcast_buffers=bool(args.ddp_broadcast_buffers),
            ),
            InitProcessGroupKwargs(timeout=args.ddp_timeout_delta),
        ],
    }


def prepare_model(model: SSLModel, accelerator: Accelerator, args: OrthoSSLTrainingArguments) -> None:
    """Changes a model in place to what this run trains, on several processes together; before the engine wraps it.

    The encoder goes through batches in chunks of `gradient_cache` images where that is set. On several processes batch
    norm is synchronized where `sync_batchnorm` says so, and all start from the main one's weights and buffers: DDP sees
    to the weights only, FSDP to neither.

    Args:
        model ([`SSLModel`]): The model of this process.
        accelerator (`Accelerator`): Knows the engine.
        args ([`OrthoSSLTrainingArguments`]): With the recipe's values.

    Raises:
        ValueError: FSDP of version 1, or on the CPU, or a batch norm that cannot be synchronized.
    """
    model.gradient_cache = args.gradient_cache
    if accelerator.num_processes == 1:
        return
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and not sharded:
        raise ValueError(
            f"fsdp was asked for, and accelerate has it on GPUs only, not on {accelerator.device.type}: train with "
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
    # accelerate passes it on by the name that torch is about to give up.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")


def check_engine(checkpoint: Path, accelerator: Accelerator) -> None:
    """Refuses to resume under FSDP what was saved without it, or the other way round.

    Raises:
        ValueError: the checkpoint is of the other kind of engine.
    """
    saved, now = any(checkpoint.glob(f"{FSDP_MODEL_NAME}*")), accelerator.distributed_type == DistributedType.FSDP
    if saved != now:
        kinds = {True: "with FSDP", False: "without FSDP"}
        raise ValueError(
            f"{checkpoint} was saved {kinds[saved]} and this run is {kinds[now]}: resume it {kinds[saved]}, on any "
            "number of processes"
        )
