"""SwAV: clustering with swapped assignments."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import Prototypes, mlp
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision, sinkhorn


@dataclass
class SwAVConfig(MethodConfig):
    """Hyper-parameters of [`SwAV`]; the defaults are LightlySSL's for CIFAR-10."""

    hidden_dim: int = hyper(512, "width of the projector's hidden layer", at_least=1)
    output_dim: int = hyper(128, "width of the embedding", at_least=1)
    prototypes: int = hyper(512, "number of prototypes", at_least=2)
    prototype_bias: bool = hyper(True, "add a bias to the scores of prototypes, as LightlySSL does")
    temperature: float = hyper(0.1, "softmax temperature of the loss", above=0)
    sinkhorn_epsilon: float = hyper(0.05, "smoothness ε of the assignments", above=0)
    sinkhorn_iterations: int = hyper(3, "rounds of the Sinkhorn-Knopp algorithm", at_least=1)
    freeze_prototypes_epochs: float = hyper(0.0, "epochs before the prototypes are trained", at_least=0)


@register_method
class SwAV(SSLMethod[SwAVConfig]):
    """Predict the prototype assignment of one view from another view.

    L = mean over global views i of mean over views v ≠ i of −Σ_k q_i(k)·log softmax_k(z_v·c_k/T), where q are the
    balanced assignments of [`sinkhorn`]. The prototypes c have unit length, which is restored after every step; a bias
    is added to the scores z_v·c_k by default, as in LightlySSL, which the paper does not have. The loss couples the
    whole batch over all processes. Views after the second are local crops, which have no assignments.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
    eq. 1–5, arXiv 2006.09882.
    """

    name = "swav"
    title = "SwAV"
    summary = "clusters online; uses local crops, and works with small batches"
    family = "clustering"
    source = "arXiv 2006.09882"
    heads = "projector 512(BN)→128, 512 prototypes"
    recipe = TrainingRecipe("adam", 1e-3, 1e-6, views="cifar-swav", lr_batch_size=128)
    batch_coupled = True
    takes_local_views = True

    def __init__(self, encoder: Encoder, config: SwAVConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.output_dim)
        self.prototypes = Prototypes(config.output_dim, config.prototypes, bias=config.prototype_bias)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views, the first two of which are global."""
        representations = [encoder(view) for view in views]
        embeddings = [self.projector(h) for h in representations]
        scores = [self.prototypes(z) for z in embeddings]
        return self.output(self.loss(scores), representations, embeddings)

    @full_precision
    def loss(self, scores: list[Tensor]) -> Tensor:
        """Return the loss of swapped prediction, given scores `(B, K)` of each view, global views first."""
        config = self.config
        logs = [F.log_softmax(s / config.temperature, dim=1) for s in scores]
        total = logs[0].new_zeros(())
        for i in range(2):
            assignment = sinkhorn(scores[i].detach(), config.sinkhorn_epsilon, config.sinkhorn_iterations)
            others = [log for v, log in enumerate(logs) if v != i]
            total = total - sum((assignment * log).sum(dim=1).mean() for log in others) / len(others)
        return total / 2

    def before_optimizer_step(self) -> None:
        """Drop the gradients of the prototypes during the first `freeze_prototypes_epochs`."""
        if self.progress.epoch < self.config.freeze_prototypes_epochs:
            for parameter in self.prototypes.parameters():
                parameter.grad = None

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Scale the prototypes to unit length."""
        self.prototypes.normalize()
