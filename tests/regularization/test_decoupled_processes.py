"""The decoupled step of weights that processes share out or hold in shards, against one process that has them whole."""

import copy

import pytest
import torch
import torch.distributed as dist
from layouts import ON_FOUR, Layouts, MoreLayouts, close, shard
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from hf_orthossl import OrthogonalityRegularizer

KINDS = ("so", "scaled_so")
STEPS = 3


def stepped(module, kind, strength, **share):
    """The values of a few steps."""
    regularizer = OrthogonalityRegularizer(module, kind)
    return torch.stack([regularizer.step(strength, **share) for _ in range(STEPS)])


def share_out(kind, dtype):
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    module = MoreLayouts().to(dtype)
    module.tall.weight.requires_grad_(False)
    if rank:
        # As if another kind of machine had computed it: what is exchanged is the owner's.
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1 + 1e-7)
    values = stepped(module, kind, 0.2, process=rank, processes=count)
    weights = {name: p.detach() for name, p in module.named_parameters() if p.ndim > 1}
    return values, weights


@pytest.mark.parametrize("kind", KINDS)
def test_shared_out_steps_are_those_of_one_process_and_equal_on_all(kind, two_processes):
    torch.manual_seed(0)
    module = MoreLayouts().double()
    module.tall.weight.requires_grad_(False)
    expected = stepped(module, kind, 0.2)
    (one, first), (other, second) = two_processes.run(share_out, kind, torch.float64)
    # Each process knows its share of the sum.
    assert (one != other).all()
    torch.testing.assert_close((one + other) / 2, expected, rtol=1e-5, atol=0)
    for name, p in module.named_parameters():
        if p.ndim > 1:
            close(first[name], p.detach(), name, 1e-6)
            # Others keep what tells the processes apart here: a frozen weight, and one that is not selected.
            assert torch.equal(first[name], second[name]) == (name not in ("tall.weight", "one_row.weight")), name


def check_layouts(shape, placements, dtype):
    torch.manual_seed(0)
    whole = Layouts().to(dtype)
    sharded = copy.deepcopy(whole)
    shard(sharded, init_device_mesh("cpu", shape), placements)
    for kind in KINDS:
        rank, count = dist.get_rank(), dist.get_world_size()
        expected, values = stepped(whole, kind, 0.2), stepped(sharded, kind, 0.2, process=rank, processes=count)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(values, expected, rtol=tolerance, atol=tolerance)
        for (name, p), q in zip(sharded.named_parameters(), whole.parameters(), strict=True):
            if q.ndim > 1:
                assert p.placements == tuple(placements), name
                close(p.full_tensor().detach(), q.detach(), f"{kind} {name}", tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_layout_on_two_processes(two_processes, dtype):
    two_processes.run(check_layouts, (2,), [Shard(0)], dtype)


@pytest.mark.parametrize(("shape", "placements"), ON_FOUR.values(), ids=ON_FOUR)
def test_every_layout_on_four_processes(four_processes, shape, placements):
    four_processes.run(check_layouts, shape, placements, torch.float64)


def step_under_fsdp(kind):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 33), nn.Linear(33, 5)).double()
    fully_shard(module)
    values = stepped(module, kind, 0.2)
    # What the next forward pass gathers.
    output = module(torch.ones(1, 12, dtype=torch.float64)).detach()
    return values, output


@pytest.mark.parametrize("kind", KINDS)
def test_fsdp_uses_the_stepped_weights(kind, two_processes):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 33), nn.Linear(33, 5)).double()
    expected = stepped(module, kind, 0.2)
    output = module(torch.ones(1, 12, dtype=torch.float64)).detach()
    for values, found in two_processes.run(step_under_fsdp, kind):
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(found, output, rtol=1e-10, atol=1e-12)
