"""SimSiam: a Siamese network without negatives and without a target network."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import cosine


@dataclass
class SimSiamConfig(MethodConfig):
    """Hyper-parameters of [`SimSiam`]; the defaults are LightlySSL's for CIFAR-10."""

    hidden_dim: int = hyper(2048, "width of the projector's hidden layer", at_least=1)
    output_dim: int = hyper(2048, "width of the embedding", at_least=1)
    predictor_dim: int = hyper(512, "width of the predictor's hidden layer", at_least=1)


@register_method
class SimSiam(SSLMethod[SimSiamConfig]):
    """Predict the embedding of the other view, through which no gradient flows.

    L = −½·[cos(p, stop(z')) + cos(p', stop(z))]. The loss is per sample.

    Source: Chen & He, "Exploring Simple Siamese Representation Learning", CVPR 2021, eq. 1–4, arXiv 2011.10566.
    """

    name = "simsiam"
    title = "SimSiam"
    summary = "the simplest of two views: no negatives, target network or queue"
    family = "distillation"
    source = "arXiv 2011.10566"
    heads = "projector 2048(BN)→2048(BN), predictor 512(BN)→2048"
    recipe = TrainingRecipe("sgd", 0.06, 5e-4, views="cifar-simsiam", lr_batch_size=None)
    batch_coupled = False
    has_predictor = True

    def __init__(self, encoder: Encoder, config: SimSiamConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.output_dim, last_norm="affine")
        self.predictor = mlp(config.output_dim, config.predictor_dim, config.output_dim)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views, averaged over both orders."""
        representations = [encoder(view) for view in views[:2]]
        embeddings = [self.projector(h) for h in representations]
        predictions = [self.predictor(z) for z in embeddings]
        loss = -0.5 * (cosine(predictions[0], embeddings[1]) + cosine(predictions[1], embeddings[0]))
        return self.output(loss, representations, embeddings, predictions)
