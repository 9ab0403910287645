"""KoLeo: embeddings that keep their distance from their nearest neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..hyperparameters import hyper
from ..losses import koleo
from .base import EmbeddingRegularizer, register_embedding_regularizer


@register_embedding_regularizer
@dataclass
class KoLeo(EmbeddingRegularizer):
    """The Kozachenko–Leonenko estimator of entropy: −mean of log(‖z_i − z_j‖ + ε), j the nearest neighbour of i.

    Embeddings are scaled to unit length first. The nearest neighbour is looked for among those of the same view on all
    processes, and the views are averaged.

    Source: Sablayrolles et al., ICLR 2019, arXiv 1806.03198; ε and the default weight, Oquab et al., DINOv2,
    2023, arXiv 2304.07193.
    """

    name = "koleo"
    title = "KoLeo"
    summary = "pushes each embedding away from its nearest neighbour on the sphere"
    default_weight = 0.1
    source = "arXiv 1806.03198"

    epsilon: float = hyper(1e-8, "added to distances, within the logarithm", above=0)

    def value(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the mean term of all views."""
        return torch.stack([koleo(z, self.epsilon) for z in views]).mean()
