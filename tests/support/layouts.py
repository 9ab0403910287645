"""Modules with every way in which a parameter holds matrices, sharded or not."""

import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from transformers.pytorch_utils import Conv1D

# Shape of a mesh of four processes, and how they divide a weight.
ON_FOUR = {
    "fsdp": ((4,), [Shard(0)]),
    "hsdp": ((2, 2), [Replicate(), Shard(0)]),
    "hsdp, other way round": ((2, 2), [Shard(0), Replicate()]),
    "twice": ((2, 2), [Shard(0), Shard(0)]),
    "columns": ((4,), [Shard(1)]),
    "replicated": ((4,), [Replicate()]),
}


class Layouts(nn.Module):
    """Every way in which a parameter holds matrices, with sides that 2 and 4 do not divide, and fewer rows than 4."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(9, 27)
        self.square = nn.Linear(7, 7)
        self.square_input_first = Conv1D(7, 7)
        self.tall = nn.Linear(5, 33)
        self.wide = nn.Linear(33, 5)
        self.between = nn.Linear(9, 13)
        self.three_rows = nn.Linear(10, 3)
        self.one_row = nn.Conv2d(4, 1, 3)
        self.grouped = nn.Conv2d(6, 12, 3, groups=3)
        self.transposed = nn.ConvTranspose2d(10, 6, (2, 3), groups=2)
        self.c_attn = Conv1D(30, 10)
        self.input_first = Conv1D(3, 3)


class MoreLayouts(Layouts):
    """Also matrices of equal shape, a Gram matrix of several blocks, and a kernel in channels-last order."""

    def __init__(self):
        super().__init__()
        self.tall_too = nn.Linear(5, 33)
        self.large = nn.Linear(150, 200)
        self.last = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        self.norm = nn.LayerNorm(5)


def shard(module, mesh, placements):
    """Shards every weight of a module over the processes of a mesh, without FSDP."""
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.dim() > 1:
                setattr(layer, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, placements)))


def close(ours, expected, what, tolerance):
    """Asserts that two tensors agree up to a relative error."""
    error = float((ours - expected).norm() / expected.norm().clamp(min=1e-12))
    assert error <= tolerance, f"{what}: relative error {error:.1e}"
