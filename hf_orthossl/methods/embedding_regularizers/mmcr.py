"""MMCR: maximum manifold capacity, the nuclear norm of the images' mean embeddings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hyperparameters import hyper
from .base import EmbeddingRegularizer, register_embedding_regularizer


@register_embedding_regularizer
@dataclass
class MMCR(EmbeddingRegularizer):
    """Maximum manifold capacity representations: λ·mean of ‖Z_b‖_* − ‖C‖_*.

    Embeddings are scaled to unit length; row b of C `(B, d)` is the mean over the views of image b, and Z_b `(V, d)`
    are its views. ‖·‖_* is the nuclear norm, the sum of singular values. It is the whole objective of the paper: a
    large ‖C‖_* asks at once for views that agree and for images that differ. λ is 0 as in the authors' experiments.
    The value grows with the batch as √(B·min(B, d)), so that its weight depends on it.

    Source: Yerxa, Kuang, Simoncelli & Chung, NeurIPS 2023, arXiv 2303.03307.
    """

    name = "mmcr"
    title = "MMCR's nuclear norm"
    summary = "spreads the images' mean embeddings over all directions, and pulls views together"
    default_weight = 0.01
    source = "arXiv 2303.03307"

    local_weight: float = hyper(0.0, "weight λ of the nuclear norm of each image's views", at_least=0)

    def value(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the term of all views together."""
        z = torch.stack([F.normalize(view, dim=1) for view in views], dim=1)
        term = -torch.linalg.svdvals(z.mean(dim=1)).sum()
        if self.local_weight:
            term = term + self.local_weight * torch.linalg.svdvals(z).sum() / len(z)
        return term
