"""NNCLR: nearest-neighbour contrastive learning."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..distributed.gather import all_gather_step
from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import nt_xent
from .target_networks import EmbeddingQueue


@dataclass
class NNCLRConfig(MethodConfig):
    """Hyper-parameters of [`NNCLR`]; the defaults are LightlySSL's for CIFAR-10."""

    hidden_dim: int = hyper(2048, "width of the projector's hidden layer", at_least=1)
    output_dim: int = hyper(256, "width of the embedding", at_least=1)
    predictor_dim: int = hyper(4096, "width of the predictor's hidden layer", at_least=1)
    temperature: float = hyper(0.5, "softmax temperature of the loss", above=0)
    queue_size: int = hyper(4096, "embeddings in the queue; a multiple of the images per step", at_least=1)


@register_method
class NNCLR(SSLMethod[NNCLRConfig]):
    """SimCLR whose positives are the nearest neighbours of the other view's embedding among past embeddings.

    L = ½·[NT-Xent(NN(z, Q), p') + NT-Xent(NN(z', Q), p)], where p are the predictor's outputs and Q holds the latest
    embeddings of second views. Neighbours are looked up before the current batch enters the queue. The loss couples the
    whole batch over all processes. As in LightlySSL, both neighbours and predictions serve as negatives; in the paper's
    eq. 3 only predictions do.

    Source: Dwibedi et al., "With a Little Help from My Friends", ICCV 2021, arXiv 2104.14548.
    """

    name = "nnclr"
    title = "NNCLR"
    summary = "positives from a queue: more varied than augmentations, for data with weak ones"
    family = "contrastive"
    source = "arXiv 2104.14548"
    heads = "projector 2048(BN)→256(BN), predictor 4096(BN)→256"
    recipe = TrainingRecipe("sgd", 0.06, 5e-4, views="cifar-simclr", lr_batch_size=128)
    batch_coupled = True
    has_predictor = True
    has_queue = True

    def __init__(self, encoder: Encoder, config: NNCLRConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.output_dim, last_norm="affine")
        self.predictor = mlp(config.output_dim, config.predictor_dim, config.output_dim)
        self.queue = EmbeddingQueue(config.queue_size, config.output_dim)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views, averaged over both orders."""
        representations = [encoder(view) for view in views[:2]]
        embeddings = [self.projector(h) for h in representations]
        predictions = [self.predictor(z) for z in embeddings]
        neighbours = [self.queue.nearest(z) for z in embeddings]
        temperature = self.config.temperature
        loss = 0.5 * (
            nt_xent(neighbours[0], predictions[1], temperature) + nt_xent(neighbours[1], predictions[0], temperature)
        )
        self.stage("keys", embeddings[1])
        return self.output(loss, representations, embeddings, predictions)

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Add the embeddings of the second views to the queue."""
        self.queue.enqueue(all_gather_step(staged["keys"]))
