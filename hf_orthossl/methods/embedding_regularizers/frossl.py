"""FroSSL's regularizer: the Frobenius norm of the embeddings' normalized covariance."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import EmbeddingRegularizer, register_embedding_regularizer


@register_embedding_regularizer
@dataclass
class FroSSL(EmbeddingRegularizer):
    """The logarithm of the squared Frobenius norm of the covariance of trace 1, averaged over the views.

    Each dimension is scaled to unit length over the batch first; Σ is then ZᵀZ divided by its trace, and the term
    log‖Σ‖_F² = log Σ_k λ_k² lies between −log(min(B, d)), all eigenvalues equal, and 0, a single one. FroSSL's
    invariance term, which any method has in a form of its own, is left out.

    Source: Skean, Dhakal, Jacobs & Giraldo, ECCV 2024, eq. 6, arXiv 2310.02903; scaled as in the authors' code for
    several views, which sums over them.
    """

    name = "frossl"
    title = "FroSSL's log Frobenius norm"
    summary = "evens out the spectrum of the embedding; does not depend on its scale"
    default_weight = 0.1
    source = "arXiv 2310.02903"

    def value(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the mean term of all views."""
        return torch.stack([log_frobenius_norm(z) for z in views]).mean()


def log_frobenius_norm(embeddings: Tensor) -> Tensor:
    """Return log‖ZᵀZ / tr(ZᵀZ)‖_F², with the columns of `(B, d)` scaled to unit length."""
    z = F.normalize(embeddings, dim=0)
    # ZᵀZ and ZZᵀ have the same eigenvalues but for zeros.
    gram = z.T @ z if z.shape[0] > z.shape[1] else z @ z.T
    return gram.square().sum().log() - 2 * gram.trace().log()
