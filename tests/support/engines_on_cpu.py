"""accelerate's DDP and FSDP2 on the CPU, in processes that exist already; and FSDP2 for `accelerate launch` to start.

accelerate keeps FSDP to GPUs. One thing is changed here: it is told that gloo's processes are GPUs. Plugin, wrapping,
device mesh, gradients, checkpoints and everything of ours run as they do there, on CPU tensors.

    accelerate launch --config_file scripts/accelerate_configs/fsdp2.yaml --num_processes 2 \
        tests/support/engines_on_cpu.py loop|trainer [options of orthossl pretrain]
"""

import contextlib
import os
import sys
from unittest.mock import patch

import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType

# What `accelerate launch` sets for scripts/accelerate_configs/fsdp2.yaml.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@contextlib.contextmanager
def pretended_gpus():
    """Lets accelerate take this gloo process for one of several with a GPU each."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    _forget()
    with (
        patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": "cpu", "LOCAL_RANK": str(dist.get_rank())}),
        patch.object(PartialState, "_prepare_backend", lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)),
    ):
        yield
    _forget()


@contextlib.contextmanager
def fsdp2():
    """What `accelerate launch` with fsdp2.yaml does to a process, in one of `two_processes`."""
    with patch.dict(os.environ, FSDP2), pretended_gpus():
        yield


@contextlib.contextmanager
def ddp():
    """What `accelerate launch` with two_cpu_processes.yaml does to a process, in one of `two_processes`."""
    rank, count = str(dist.get_rank()), str(dist.get_world_size())
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    _forget()
    with patch.dict(os.environ, launched | {"MASTER_ADDR": "127.0.0.1"}):
        yield
    _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


if __name__ == "__main__":
    from hf_orthossl.cli import perform, run

    front, argv = sys.argv[1], sys.argv[2:]
    with pretended_gpus():
        run("engines_on_cpu.py", lambda rest: perform("pretrain", rest, front=front), argv)
