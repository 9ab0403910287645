"""OrthogonalityCallback on two processes, under DDP and FSDP2, against one process."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_orthossl import OrthogonalityCallback

GAMMA, STEPS = 0.05, 3


class Network(nn.Module):
    def __init__(self, spare):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 8)).double()
        if spare:  # regularized, but no part of the forward pass
            self.spare = nn.Linear(4, 3).double()

    def forward(self, x):
        return self.body(x).square().mean()


def train(model, engine, kind, settings, rank=0, count=1):
    """What a Trainer does; returns weights and logged penalties."""
    callback = OrthogonalityCallback(kind, GAMMA)
    # DDP cannot accumulate in the first step of a static graph.
    micro_batches = 1 if "ddp_static_graph" in settings else 2
    args = SimpleNamespace(**{"ddp_find_unused_parameters": None, "ddp_static_graph": None} | settings)
    callback.on_train_begin(args, None, None, model=model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    logged = []
    for step in range(STEPS):
        state = SimpleNamespace(global_step=step)
        callback.on_step_begin(args, state, None, optimizer=optimizer)
        for micro_batch in range(micro_batches):
            x = torch.randn(8, 6, generator=generator, dtype=torch.float64).chunk(count)[rank]
            waits = micro_batch < micro_batches - 1 and hasattr(engine, "no_sync")
            with engine.no_sync() if waits else contextlib.nullcontext():
                (engine(x) / micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()
        logged.append(callback.scalars(state, {"loss": 0.0})["orthogonality"])
    weights = [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]
    return weights, logged, callback.processes


def train_in_group(kind, spare, engine, settings):
    model = Network(spare)
    if engine == "fsdp":
        for layer in model.body:
            fully_shard(layer)
        wrapped = fully_shard(model)
    else:
        options = {name.removeprefix("ddp_"): value for name, value in settings.items()}
        wrapped = DistributedDataParallel(model, **options)
    return train(model, wrapped, kind, settings, dist.get_rank(), dist.get_world_size())


@pytest.mark.parametrize(
    ("engine", "settings", "spare", "processes"),
    [
        ("ddp", {"ddp_find_unused_parameters": True}, True, 1),
        ("ddp", {"ddp_find_unused_parameters": False}, False, 2),
        ("ddp", {"ddp_find_unused_parameters": False, "ddp_static_graph": True}, True, 1),
        ("ddp", {"ddp_find_unused_parameters": False, "ddp_gradient_as_bucket_view": True}, False, 2),
        ("fsdp", {}, True, 1),
    ],
    ids=["unused parameters", "shared out", "static graph", "bucket views", "fsdp"],
)
@pytest.mark.parametrize("kind", ["so", "srip"])
def test_same_training_as_one_process(two_processes, kind, engine, settings, spare, processes):
    alone = Network(spare)
    expected, penalties, _ = train(alone, alone, kind, settings)
    for weights, logged, shared in two_processes.run(train_in_group, kind, spare, engine, settings):
        assert shared == processes
        assert logged == pytest.approx(penalties, rel=1e-9)
        for ours, theirs in zip(weights, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
