"""SimCLR: a simple framework for contrastive learning."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import nt_xent


@dataclass
class SimCLRConfig(MethodConfig):
    """Hyper-parameters of [`SimCLR`]; the defaults are LightlySSL's for CIFAR-10."""

    hidden_dim: int = hyper(512, "width of the projector's hidden layer", at_least=1)
    output_dim: int = hyper(128, "width of the embedding", at_least=1)
    temperature: float = hyper(0.5, "softmax temperature of the loss", above=0)


@register_method
class SimCLR(SSLMethod[SimCLRConfig]):
    """Pull the two views of an image together and push all other images of the batch away.

    The loss is [`nt_xent`] on the embeddings of both views. It couples the whole batch: negatives come from all
    processes, but not from other accumulation steps.

    Source: Chen, Kornblith, Norouzi & Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020, eq. 1, arXiv 2002.05709.
    """

    name = "simclr"
    title = "SimCLR"
    summary = "the simple reference, any backbone; wants large batches, whose images are its negatives"
    family = "contrastive"
    source = "arXiv 2002.05709"
    heads = "projector 512(BN)→128(BN)"
    recipe = TrainingRecipe("sgd", 0.06, 5e-4, views="cifar-simclr", lr_batch_size=128)
    batch_coupled = True

    def __init__(self, encoder: Encoder, config: SimCLRConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.output_dim, last_norm="affine")

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views."""
        representations = [encoder(view) for view in views[:2]]
        embeddings = [self.projector(h) for h in representations]
        return self.output(self.loss(*embeddings), representations, embeddings)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of a batch of embeddings `(B, d)` of two views."""
        return nt_xent(first, second, self.config.temperature)
