"""Penalties as a user writes them, in a module of their own, and training that uses them."""

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_orthossl import OrthogonalityRegularizer, Penalty, register_penalty


class LogDeterminant(Penalty):
    name = "test_logdet"
    title = "log-determinant divergence"
    default_gamma = 1e-4

    def value(self, W, vectors=None):
        X = W if W.shape[-2] <= W.shape[-1] else W.mT
        G = X @ X.mT + 0.1 * torch.eye(min(W.shape[-2:]), dtype=W.dtype, device=W.device)
        return G.diagonal(dim1=-2, dim2=-1).sum(-1) - torch.logdet(G) - G.shape[-1]


class RandomDirections(Penalty):
    """The mean over random directions of a power of `‖Gv‖ − ‖v‖`."""

    name = "test_directions"
    title = "stretch of random directions"
    default_gamma = 1e-3

    def __init__(self, count=3, power=2):
        self.num_vectors, self.power = count, power

    def value(self, W, vectors=None):
        X = W if W.shape[-2] <= W.shape[-1] else W.mT
        stretched = (vectors @ X @ X.mT).norm(dim=-1) - vectors.norm(dim=-1)
        return stretched.pow(self.power).mean(-1)


def register():
    """Register them when a test or its process begins; not when imported, as other tests list all penalties."""
    register_penalty(LogDeterminant)
    register_penalty(RandomDirections)


class Penalized(nn.Module):
    """A network whose loss carries its penalty, in float64."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = timm.create_model("test_vit", num_classes=0, img_size=32).double().eval()
        self.regularizer = OrthogonalityRegularizer(self.encoder, kind)

    def forward(self, x, process=0, processes=1):
        penalty = self.regularizer(torch.Generator().manual_seed(5), process=process, processes=processes)
        return self.encoder(x).square().mean() + 0.01 * penalty


def train(kind, engine=None):
    """Return the weights after two steps: in one process, or in this one of several under "ddp" or "fsdp2"."""
    register()
    model = Penalized(kind)
    rank, count = (dist.get_rank(), dist.get_world_size()) if engine else (0, 1)
    wrapped = model
    if engine == "ddp":
        # The registers and tokens of a ViT have no weight matrix; all parameters take part nevertheless.
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    elif engine == "fsdp2":
        mesh = init_device_mesh("cpu", (count,))
        for block in model.encoder.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(images.chunk(count)[rank], process=rank, processes=count).backward()
        optimizer.step()
    weights = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters())
    return [weight.detach().clone() for weight in weights]
