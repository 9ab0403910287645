"""MoCo V3: momentum contrast within the batch, with a predictor."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.gather import all_gather
from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision, normalize, own_rows
from .target_networks import TargetNetwork, cosine_momentum


@dataclass
class MoCoV3Config(MethodConfig):
    """Hyper-parameters of [`MoCoV3`]; the defaults are solo-learn's for CIFAR."""

    hidden_dim: int = hyper(4096, "width of the hidden layers of projector and predictor", at_least=1)
    output_dim: int = hyper(256, "width of the embedding", at_least=1)
    projector_layers: int = hyper(2, "layers of the projector: 2 for a ResNet, 3 for a ViT", at_least=1)
    predictor_norm: bool = hyper(False, "batch norm after the predictor: off for a ResNet, on for a ViT")
    temperature: float = hyper(0.2, "softmax temperature of the loss", above=0)
    momentum: float = hyper(0.99, "target momentum τ at the first step", at_least=0, at_most=1)
    final_momentum: float = hyper(1.0, "target momentum τ at the last step", at_least=0, at_most=1)


@full_precision
def batch_contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return 2T times the cross-entropy of each query against the keys of the whole batch.

    Source: MoCo v3, Chen et al. 2021, algorithm 1.

    Args:
        queries (`Tensor` of shape `(B, d)`): Predictor outputs of one view.
        keys (`Tensor` of shape `(B, d)`): Target embeddings of the other view, used without gradient.
        temperature (`float`): T > 0.
    """
    logits = normalize(queries) @ all_gather(normalize(keys.detach())).T / temperature
    return 2 * temperature * F.cross_entropy(logits, own_rows(len(queries), queries.device))


@register_method
class MoCoV3(SSLMethod[MoCoV3Config]):
    """Predict the target embedding of the other view and distinguish it from those of all other images.

    L = Σ over both view orders of 2T·CE(q·k/T). The loss couples the whole batch over all processes. The target network
    is in train mode, see [`TargetNetwork`].

    Source: Chen, Xie & He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021, algorithm
    1, arXiv 2104.02057.
    """

    name = "mocov3"
    title = "MoCoV3"
    summary = "contrastive, with a target network: stable for vision transformers"
    family = "contrastive"
    source = "arXiv 2104.02057"
    heads = "projector 4096(BN)→256(BN), predictor 4096(BN)→256"
    recipe = TrainingRecipe("lars", 0.3, 1e-6, views="cifar-asym", warmup_epochs=10, warmup_start_lr=3e-5)
    batch_coupled = True
    has_predictor = True
    has_target = True

    def __init__(self, encoder: Encoder, config: MoCoV3Config):
        super().__init__(encoder, config)
        hidden, output = config.hidden_dim, config.output_dim
        widths = [encoder.num_features, *[hidden] * (config.projector_layers - 1), output]
        self.projector = mlp(*widths, last_norm="plain", last_bias=False)
        last_norm = "plain" if config.predictor_norm else None
        self.predictor = mlp(output, hidden, output, last_norm=last_norm, last_bias=False)
        self.target = TargetNetwork(encoder, self.projector)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views, summed over both orders."""
        representations = [encoder(view) for view in views[:2]]
        embeddings = [self.projector(h) for h in representations]
        queries = [self.predictor(z) for z in embeddings]
        keys = [self.target(view) for view in views[:2]]
        temperature = self.config.temperature
        loss = batch_contrast(queries[0], keys[1], temperature) + batch_contrast(queries[1], keys[0], temperature)
        return self.output(loss, representations, embeddings, queries)

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the target network."""
        tau = cosine_momentum(self.config.momentum, self.config.final_momentum, self.progress.fraction)
        self.target.follow(tau, encoder, self.projector)
