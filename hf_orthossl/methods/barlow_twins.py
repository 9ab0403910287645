"""Barlow Twins: redundancy reduction between views."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..distributed.gather import all_gather
from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import cross_correlation, full_precision


@dataclass
class BarlowTwinsConfig(MethodConfig):
    """Hyper-parameters of [`BarlowTwins`]; the defaults are LightlySSL's for CIFAR-10."""

    hidden_dim: int = hyper(2048, "width of the projector's hidden layer", at_least=1)
    output_dim: int = hyper(2048, "width of the embedding", at_least=1)
    redundancy_weight: float = hyper(5e-3, "weight λ of the off-diagonal terms", at_least=0)


@register_method
class BarlowTwins(SSLMethod[BarlowTwinsConfig]):
    """Make the cross-correlation of the two views' embeddings the identity.

    L = Σ_i (1 − C_ii)² + λ·Σ_{i≠j} C_ij², where C is the correlation over the batch on all processes.

    Source: Zbontar, Jing, Misra, LeCun & Deny, ICML 2021, eq. 1, arXiv 2103.03230.
    """

    name = "barlowtwins"
    title = "Barlow Twins"
    summary = "no negatives or target network; decorrelates the embedding's dimensions"
    family = "decorrelation"
    source = "arXiv 2103.03230"
    heads = "projector 2048(BN)→2048"
    recipe = TrainingRecipe("sgd", 0.06, 5e-4, views="cifar-barlowtwins", lr_batch_size=128)
    batch_coupled = True

    def __init__(self, encoder: Encoder, config: BarlowTwinsConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.output_dim)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views."""
        representations = [encoder(view) for view in views[:2]]
        embeddings = [self.projector(h) for h in representations]
        return self.output(self.loss(*embeddings), representations, embeddings)

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of a batch of embeddings `(B, d)` of two views."""
        correlation = cross_correlation(all_gather(first), all_gather(second))
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + self.config.redundancy_weight * off_diagonal
