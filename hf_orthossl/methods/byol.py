"""BYOL: bootstrap your own latent."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import cosine
from .target_networks import TargetNetwork, cosine_momentum


@dataclass
class BYOLConfig(MethodConfig):
    """Hyper-parameters of [`BYOL`]; the defaults are solo-learn's for CIFAR."""

    hidden_dim: int = hyper(4096, "width of the hidden layers of projector and predictor", at_least=1)
    output_dim: int = hyper(256, "width of the embedding", at_least=1)
    momentum: float = hyper(0.99, "target momentum τ at the first step", at_least=0, at_most=1)
    final_momentum: float = hyper(1.0, "target momentum τ at the last step", at_least=0, at_most=1)


@register_method
class BYOL(SSLMethod[BYOLConfig]):
    """Predict the target network's embedding of one view from the online network's embedding of the other.

    L = Σ over both view orders of ‖p/‖p‖ − z'/‖z'‖‖² = 2 − 2·cos(p, z'). The loss is per sample: up to batch-norm
    statistics, n accumulated batches of m images give the update of one batch of n·m. The target network is in train
    mode, see [`TargetNetwork`].

    Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, eq. 2, arXiv 2006.07733.
    """

    name = "byol"
    title = "BYOL"
    summary = "no negatives, so small batches work; a target network costs a second encoder"
    family = "distillation"
    source = "arXiv 2006.07733"
    heads = "projector 4096(BN)→256, predictor 4096(BN)→256"
    recipe = TrainingRecipe("lars", 1.0, 1e-5, views="cifar-asym", warmup_epochs=10, warmup_start_lr=3e-5)
    batch_coupled = False
    has_predictor = True
    has_target = True

    def __init__(self, encoder: Encoder, config: BYOLConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.output_dim, hidden_bias=True)
        self.predictor = mlp(config.output_dim, config.hidden_dim, config.output_dim, hidden_bias=True)
        self.target = TargetNetwork(encoder, self.projector)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views, summed over both orders."""
        representations = [encoder(view) for view in views[:2]]
        embeddings = [self.projector(h) for h in representations]
        predictions = [self.predictor(z) for z in embeddings]
        targets = self.look_up([self.target(view) for view in views[:2]])
        loss = 4 - 2 * cosine(predictions[0], targets[1]) - 2 * cosine(predictions[1], targets[0])
        return self.output(loss, representations, embeddings, predictions)

    def look_up(self, targets: list[Tensor]) -> list[Tensor]:
        """Return the targets of the predictor: in BYOL, the target embeddings `(B, d)` of both views, unchanged."""
        return targets

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the target network."""
        tau = cosine_momentum(self.config.momentum, self.config.final_momentum, self.progress.fraction)
        self.target.follow(tau, encoder, self.projector)
