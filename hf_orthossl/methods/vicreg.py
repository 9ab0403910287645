"""VICReg: variance-invariance-covariance regularization."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.gather import all_gather
from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import covariance_term, full_precision, variance_term


@dataclass
class VICRegConfig(MethodConfig):
    """Hyper-parameters of [`VICReg`]; the defaults are solo-learn's for CIFAR."""

    projector: bool = hyper(True, "put a projector on the encoder; without it, the loss acts on representations")
    hidden_dim: int = hyper(2048, "width of the projector's two hidden layers", at_least=1)
    output_dim: int = hyper(2048, "width of the embedding", at_least=1)
    invariance_weight: float = hyper(25.0, "weight of the mean squared difference of the views", at_least=0)
    variance_weight: float = hyper(25.0, "weight of the variance term of each view", at_least=0)
    covariance_weight: float = hyper(1.0, "weight of the covariance term of each view", at_least=0)


@register_method
class VICReg(SSLMethod[VICRegConfig]):
    """Make views agree while every dimension keeps its variance and no two dimensions are correlated.

    L = λ·MSE(z, z') + μ·[v(z) + v(z')] + ν·[c(z) + c(z')], with statistics over all processes. MSE is the mean over
    dimensions too, as in the authors' code, whereas eq. 5 has a sum. The authors' code halves v; solo-learn's code,
    which is reproduced here, does not.

    Source: Bardes, Ponce & LeCun, ICLR 2022, eq. 6, arXiv 2105.04906.
    """

    name = "vicreg"
    title = "VICReg"
    summary = "as Barlow Twins, with terms for variance and covariance to weigh"
    family = "decorrelation"
    source = "arXiv 2105.04906"
    heads = "projector 2048(BN)→2048(BN)→2048"
    recipe = TrainingRecipe("lars", 0.3, 1e-4, views="cifar-vicreg", warmup_epochs=10, warmup_start_lr=3e-5)
    batch_coupled = True

    def __init__(self, encoder: Encoder, config: VICRegConfig):
        super().__init__(encoder, config)
        hidden = config.hidden_dim
        self.projector = (
            mlp(encoder.num_features, hidden, hidden, config.output_dim, hidden_bias=True)
            if config.projector
            else nn.Identity()
        )

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views."""
        representations = [encoder(view) for view in views[:2]]
        embeddings = [self.projector(h) for h in representations]
        return self.output(self.loss(*embeddings), representations, embeddings)

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of a batch of embeddings `(B, d)` of two views.

        Raises:
            ValueError: The views' embeddings differ in shape, or the batch of all processes is a single image, whose
                variance is undefined.
        """
        config = self.config
        if first.shape != second.shape:
            raise ValueError(
                f"the embeddings of the two views have the shapes {tuple(first.shape)} and {tuple(second.shape)}: they "
                "must be equal"
            )
        first, second = (all_gather(z) for z in (first, second))
        if len(first) < 2:
            raise ValueError("the batch has 1 image: the variance over a batch needs 2 or more")
        return (
            config.invariance_weight * F.mse_loss(first, second)
            + config.variance_weight * (variance_term(first) + variance_term(second))
            + config.covariance_weight * (covariance_term(first) + covariance_term(second))
        )
