"""DCL and DCLW: decoupled contrastive learning."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed.gather import all_gather
from .base import TrainingRecipe, register_method
from .hyperparameters import hyper
from .losses import full_precision, normalize, own_rows
from .simclr import SimCLR, SimCLRConfig


@dataclass
class DCLConfig(SimCLRConfig):
    """Hyper-parameters of [`DCL`]; the defaults are LightlySSL's for CIFAR-10."""

    temperature: float = hyper(0.1, "softmax temperature of the loss", above=0)


@dataclass
class DCLWConfig(DCLConfig):
    """Hyper-parameters of [`DCLW`]; the defaults are LightlySSL's for CIFAR-10."""

    sigma: float = hyper(0.5, "concentration σ of the weights of positive pairs", above=0)


@register_method
class DCL(SimCLR):
    """SimCLR without the positive pair in the denominator.

    L_i = −s(z_i, z_j)/T + log Σ_{k ≠ i, j} exp(s(z_i, z_k)/T), averaged over both views. The loss couples the whole
    batch over all processes.

    Source: Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, eq. 5, arXiv 2110.06848.
    """

    name = "dcl"
    title = "DCL"
    summary = "SimCLR with smaller batches: without the positive pair in the denominator"
    source = "arXiv 2110.06848"
    recipe = TrainingRecipe("sgd", 0.06, 5e-4, views="cifar-simclr", lr_batch_size=128)
    config: DCLConfig
    config_class = DCLConfig

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of a batch of embeddings `(B, d)` of two views."""
        first, second = normalize(first), normalize(second)
        weights = self.weights(first, second)
        both = torch.cat([all_gather(first), all_gather(second)])
        rows, images = own_rows(len(first), first.device), len(both) // 2
        total = first.new_zeros(())
        for queries in (first, second):
            similarity = queries @ both.T / self.config.temperature
            # Mask the columns of the image itself, in both views.
            same = torch.stack([rows, rows + images], dim=1)
            negatives = similarity.scatter(1, same, float("-inf")).logsumexp(dim=1)
            positives = (first * second).sum(dim=1) / self.config.temperature
            total = total + (negatives - weights * positives).mean()
        return total / 2

    def weights(self, first: Tensor, second: Tensor) -> Tensor | float:
        """Return the weights `(B,)` of the positive pairs, which are 1 in DCL."""
        return 1.0


@register_method
class DCLW(DCL):
    """DCL with smaller weights for easy positive pairs.

    The positive term is multiplied by w_i = 2 − B·softmax_i(⟨z_i, z_j⟩/σ), without gradient: the negative von
    Mises–Fisher weights, over the batch on all processes.

    Source: Yeh et al. 2022, eq. 6, arXiv 2110.06848.
    """

    name = "dclw"
    title = "DCLW"
    summary = "DCL that weighs hard positive pairs more"
    config: DCLWConfig
    config_class = DCLWConfig

    @torch.no_grad()
    def weights(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the negative von Mises–Fisher weights `(B,)` of the positive pairs."""
        similarity = all_gather((first * second).sum(dim=1) / self.config.sigma)
        weights = 2 - len(similarity) * similarity.softmax(dim=0)
        return weights[own_rows(len(first), first.device)]
