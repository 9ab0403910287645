"""Target networks (moving averages of the online network), their momentum schedule, and queues of embeddings."""

import copy
import math
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .losses import full_precision


class TargetNetwork(nn.Module):
    """A slowly moving copy of the online encoder and projector.

    Parameters follow θ_target ← τ·θ_target + (1 − τ)·θ_online and receive no gradient. Buffers are not averaged: as in
    the reference code of BYOL and MoCo v3, the copy stays in train mode with the rest of the model, so that its batch
    norms normalize by the current batch and maintain separate running statistics.

    Source: MoCo, He et al. 2020; BYOL, Grill et al. 2020.

    Args:
        modules (`nn.Module`): Online modules in the order of application, such as `(encoder, projector)`.
        deterministic (`bool`, defaults to `False`): Whether the copy has no dropout and no random depth, as the
            teachers of iBOT and DINOv2; all but its batch norms are in evaluation mode.
    """

    def __init__(self, *modules: nn.Module, deterministic: bool = False):
        super().__init__()
        self.stack = nn.ModuleList(copy.deepcopy(module) for module in modules)
        self.deterministic = deterministic
        self.requires_grad_(False)
        if deterministic:
            self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the copy; what is random in a deterministic one stays in evaluation mode."""
        super().train(mode)
        if self.deterministic:
            for module in self.modules():
                module.training = mode and isinstance(module, _BatchNorm)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the target embeddings `(B, d)` of images `(B, C, H, W)`, without gradient."""
        output = images
        for module in self.stack:
            output = module(output)
        return output

    @torch.no_grad()
    def follow(self, tau: float, *online: nn.Module) -> None:
        """Move the parameters one step towards those of the online modules.

        Args:
            tau (`float`): Momentum τ in [0, 1].
            online (`nn.Module`): The modules that were copied, in the same order.
        """
        targets = cast(list[Tensor], list(self.parameters()))
        sources: list[Tensor] = [parameter for module in online for parameter in module.parameters()]
        torch._foreach_lerp_(targets, sources, 1.0 - tau)


def cosine_momentum(base: float, final: float, fraction: float) -> float:
    """Return the momentum τ that rises from `base` to `final` along half a cosine.

    τ = final − (final − base)·(cos(π·fraction) + 1)/2.

    Source: BYOL, Grill et al. 2020, section 3.2.

    Args:
        base (`float`): Momentum at the first step, in [0, 1].
        final (`float`): Momentum at the last step, in [0, 1].
        fraction (`float`): Share of the run that is done, in [0, 1].
    """
    return final - (final - base) * (math.cos(math.pi * fraction) + 1) / 2


class EmbeddingQueue(nn.Module):
    """A queue of the latest `size` embeddings, L2-normalized; the oldest are overwritten first.

    The queue starts with random directions. Bank and cursor are persistent buffers, so that a resumed run continues
    with them.

    Source: MoCo, He et al. 2020, section 3.1.

    Args:
        size (`int`): Number of embeddings in the queue.
        dim (`int`): Width d of each embedding.
    """

    bank: Tensor
    cursor: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("bank", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor) -> None:
        """Write embeddings at the cursor, in order.

        Args:
            embeddings (`Tensor` of shape `(n, d)`): Embeddings; if there are more than `size`, the last `size` remain.
        """
        size = self.bank.shape[0]
        embeddings = nn.functional.normalize(embeddings.to(self.bank.dtype), dim=1)
        count = embeddings.shape[0]
        # Indices stay on the device, because reading the cursor would synchronize with the host at every step.
        slots = (self.cursor + torch.arange(count, device=self.cursor.device)) % size
        self.bank[slots[-size:]] = embeddings[-size:]
        self.cursor.copy_((self.cursor + count) % size)

    @torch.no_grad()
    @full_precision
    def nearest(self, queries: Tensor) -> Tensor:
        """Return the embedding in the queue that is most similar, by cosine, to each query.

        Source: NNCLR, Dwibedi et al. 2021, eq. 1.

        Args:
            queries (`Tensor` of shape `(B, d)`): Embeddings.

        Returns:
            `Tensor` of shape `(B, d)`.
        """
        queries = nn.functional.normalize(queries, dim=1)
        return self.bank[(queries @ self.bank.T).argmax(dim=1)]
