"""SwAV: clustering with swapped assignments."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.gather import all_gather
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .contrastive import own_rows
from .heads import Prototypes, mlp
from .hyperparameters import MethodConfig, hyper
from .precision import full_precision


@dataclass
class SwAVConfig(MethodConfig):
    """Hyper-parameters of [`SwAV`]; defaults are LightlySSL's for CIFAR-10."""

    hidden_dim: int = hyper(512, "width of the projector's hidden layer", at_least=1)
    output_dim: int = hyper(128, "width of the embedding", at_least=1)
    prototypes: int = hyper(512, "number of prototypes", at_least=2)
    temperature: float = hyper(0.1, "softmax temperature of the loss", above=0)
    sinkhorn_epsilon: float = hyper(0.05, "smoothness ε of the assignments", above=0)
    sinkhorn_iterations: int = hyper(3, "rounds of the Sinkhorn-Knopp algorithm", at_least=1)
    freeze_prototypes_epochs: float = hyper(0.0, "epochs before the prototypes are trained", at_least=0)


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assignments that use all prototypes equally over the batch (SwAV, eq. 3–5).

    Works with logarithms in float32 at least: exp(s/ε) overflows float16 at s = 0.6 and, with unnormalized scores, any
    precision.

    Args:
        scores (`Tensor` of shape `(B, K)`): Scores of embeddings against prototypes, on all processes together.
        epsilon (`float`): ε > 0.
        iterations (`int`): Rounds, each making prototypes and then images sum to the same.

    Returns:
        `Tensor` of shape `(B, K)`: Rows that sum to 1.
    """
    own = own_rows(len(scores), scores.device)
    log_q = all_gather(scores) / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()[own]


@register_method
class SwAV(SSLMethod):
    """Predicts the prototype assignment of one view from another.

    L = mean over global views i of mean over views v ≠ i of −Σ_k q_i(k)·log softmax_k(z_v·c_k/T), with q the balanced
    assignments of [`sinkhorn`] and prototypes c on the unit sphere, put back there after every step (Caron et al.,
    "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, eq. 1–5, arXiv
    2006.09882). It couples the whole batch over all processes. Views after the second are local crops, which get no
    assignment of their own.
    """

    name = "swav"
    title = "SwAV"
    family = "clustering"
    source = "arXiv 2006.09882"
    heads = "projector 512(BN)→128, 512 prototypes"
    recipe = TrainingRecipe("adam", 1e-3, 1e-6, views="cifar-swav", lr_batch_size=128)
    config_class = SwAVConfig
    batch_coupled = True
    takes_local_views = True

    def __init__(self, encoder: nn.Module, config: SwAVConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.output_dim)
        self.prototypes = Prototypes(config.output_dim, config.prototypes)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        representations = [encoder(view) for view in views]
        embeddings = [self.projector(h) for h in representations]
        scores = [self.prototypes(z) for z in embeddings]
        return self.output(self.loss(scores), representations[0], embeddings[0])

    @full_precision
    def loss(self, scores: list[Tensor]) -> Tensor:
        """Swapped prediction over scores `(B, K)`, global views first."""
        config = self.config
        logs = [F.log_softmax(s / config.temperature, dim=1) for s in scores]
        total = 0
        for i in range(2):
            assignment = sinkhorn(scores[i].detach(), config.sinkhorn_epsilon, config.sinkhorn_iterations)
            others = [log for v, log in enumerate(logs) if v != i]
            total = total - sum((assignment * log).sum(dim=1).mean() for log in others) / len(others)
        return total / 2

    def before_optimizer_step(self) -> None:
        if self.progress.epoch < self.config.freeze_prototypes_epochs:
            self.prototypes.linear.weight.grad = None

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        self.prototypes.normalize()
