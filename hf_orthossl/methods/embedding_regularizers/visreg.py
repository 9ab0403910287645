"""VISReg's regularizer: scale, shape and centre of the embeddings, each by itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..hyperparameters import hyper
from .base import EmbeddingRegularizer, register_embedding_regularizer, unit_directions


@register_embedding_regularizer
@dataclass
class VISRegSketching(EmbeddingRegularizer):
    """The regularization of VISReg: λ_scale·L_scale + λ_shape·L_shape + λ_centre·L_centre, averaged over the views.

    With μ and σ the mean and the standard deviation (without correction) of each dimension over the batch,
    L_scale = mean of (1 − σ_j)² and L_centre = mean of μ_j². L_shape is the squared 2-Wasserstein distance between the
    standard normal distribution and that of (z − μ)/(sg(σ) + ε), along `slices` random directions: the mean of
    (x_(i) − q_i)², where x_(i) are sorted and q_i is the quantile of i/(B + 1). No gradient flows through σ there.

    Means over dimensions and images as in the paper's Algorithm 1 and the authors' code; its eq. 5 and 6 write sums.
    The paper draws other directions on each process; here all have the same, so that two processes are one. ε is that
    of the authors' code, which adds it to σ in L_scale too, where eq. 1 has none.

    Source: Wu, Balestriero & Levine 2026, eq. 1–7 and Algorithm 1, arXiv 2606.02572.
    """

    name = "visreg"
    title = "VISReg's sketching"
    summary = "standardizes each dimension, and makes random directions Gaussian; strong even at collapse"
    default_weight = 0.1
    source = "arXiv 2606.02572"

    slices: int = hyper(4096, "number of random directions", at_least=1)
    scale_weight: float = hyper(1.0, "weight of the standard deviations' distance from 1", at_least=0)
    shape_weight: float = hyper(1.0, "weight of the distance from a Gaussian shape", at_least=0)
    centre_weight: float = hyper(1.0, "weight of the squared mean", at_least=0)
    epsilon: float = hyper(1e-6, "added to the standard deviation that the shape is divided by", above=0)

    def value(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the mean term of all views, which share the directions."""
        directions = unit_directions(views[0].shape[1], self.slices, generator, views[0])
        return torch.stack([self.term(z, directions) for z in views]).mean()

    def term(self, z: Tensor, directions: Tensor) -> Tensor:
        """Return the term of one view's embeddings `(B, d)`, given directions `(d, slices)`."""
        centre = z.mean(dim=0)
        # torch's gradient of a standard deviation of 0 is 0, and not infinite.
        deviation = z.std(dim=0, correction=0)
        shape = (z - centre) / (deviation.detach() + self.epsilon)
        ordered = (shape @ directions).sort(dim=0).values
        return (
            self.scale_weight * (1 - deviation).square().mean()
            + self.shape_weight * (ordered - normal_quantiles(len(z), z)[:, None]).square().mean()
            + self.centre_weight * centre.square().mean()
        )


def normal_quantiles(count: int, like: Tensor) -> Tensor:
    """Return the quantiles `(count,)` of i/(count + 1), i = 1, …, count, of the standard normal distribution.

    Args:
        count (`int`): Number of quantiles.
        like (`Tensor`): A tensor with the dtype and the device to use.
    """
    # In float64, which some devices do not have.
    levels = torch.arange(1, count + 1, dtype=torch.float64, device="cpu") / (count + 1)
    return torch.special.ndtri(levels).to(like)
