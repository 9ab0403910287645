"""VICReg's regularizer: variance and covariance of the embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..hyperparameters import hyper
from ..losses import covariance_term, variance_term
from .base import EmbeddingRegularizer, register_embedding_regularizer


@register_embedding_regularizer
@dataclass
class VarianceCovariance(EmbeddingRegularizer):
    """The variance and the covariance term of VICReg: μ·v(z) + ν·c(z), averaged over the views.

    v is the mean of max(0, 1 − √(Var + 1e-4)) over the dimensions, and c the sum of squared covariances of different
    dimensions, divided by d. VICReg's invariance term, which any method has in a form of its own, is left out. The
    ratio of the default weights is the paper's, 25 to 1.

    Source: Bardes, Ponce & LeCun, ICLR 2022, eq. 1 and 3, arXiv 2105.04906.
    """

    name = "vicreg"
    title = "variance and covariance, as in VICReg"
    summary = "keeps the variance of each dimension above 1 and the dimensions uncorrelated"
    default_weight = 0.1
    source = "arXiv 2105.04906"

    variance_weight: float = hyper(1.0, "weight of the variance term", at_least=0)
    covariance_weight: float = hyper(0.04, "weight of the covariance term", at_least=0)

    def value(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the mean term of all views."""
        terms = [self.variance_weight * variance_term(z) + self.covariance_weight * covariance_term(z) for z in views]
        return torch.stack(terms).mean()
