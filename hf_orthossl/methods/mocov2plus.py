"""MoCo V2+: momentum contrast with a queue for each view."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.gather import all_gather_step
from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision, normalize
from .target_networks import EmbeddingQueue, TargetNetwork, cosine_momentum


@dataclass
class MoCoV2PlusConfig(MethodConfig):
    """Hyper-parameters of [`MoCoV2Plus`]; the defaults are solo-learn's for CIFAR."""

    hidden_dim: int = hyper(2048, "width of the projector's hidden layer", at_least=1)
    output_dim: int = hyper(256, "width of the embedding", at_least=1)
    temperature: float = hyper(0.2, "softmax temperature of the loss", above=0)
    queue_size: int = hyper(32_768, "keys in the queue of each view; a multiple of the images per step", at_least=1)
    momentum: float = hyper(0.99, "target momentum τ at the first step", at_least=0, at_most=1)
    final_momentum: float = hyper(0.999, "target momentum τ at the last step", at_least=0, at_most=1)


@full_precision
def queue_contrast(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of queries against their keys and a bank of negatives.

    Source: MoCo, He et al. 2020, eq. 1.

    Args:
        queries (`Tensor` of shape `(B, d)`): Embeddings of one view of each image.
        keys (`Tensor` of shape `(B, d)`): Target embeddings of the other view.
        negatives (`Tensor` of shape `(K, d)`): Normalized keys of other images.
        temperature (`float`): T > 0.
    """
    queries, keys = normalize(queries), normalize(keys)
    positive = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, queries @ negatives.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


@register_method
class MoCoV2Plus(SSLMethod[MoCoV2PlusConfig]):
    """Distinguish the key of the same image from a queue of keys of earlier images, in both directions.

    Each view has its own queue; L is the mean of [`queue_contrast`] over the two directions. The loss is per sample.
    The key encoder is in train mode, see [`TargetNetwork`]. MoCo shuffles keys between processes, so that a query and
    its key are normalized in different batches; this implementation, like solo-learn, synchronizes batch norm instead.

    Source: Chen, Fan, Girshick & He, "Improved Baselines with Momentum Contrastive Learning", 2020, arXiv 2003.04297;
    the symmetric form is solo-learn's.
    """

    name = "mocov2plus"
    title = "MoCoV2+"
    summary = "contrastive with small batches: its negatives come from a queue"
    family = "contrastive"
    source = "arXiv 2003.04297"
    heads = "projector 2048→256"
    recipe = TrainingRecipe("sgd", 0.3, 1e-4, views="cifar-weak", warmup_epochs=10, warmup_start_lr=3e-5)
    batch_coupled = False
    has_target = True
    has_queue = True

    def __init__(self, encoder: Encoder, config: MoCoV2PlusConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.output_dim, norm=False)
        self.target = TargetNetwork(encoder, self.projector)
        self.queues = nn.ModuleList(EmbeddingQueue(config.queue_size, config.output_dim) for _ in range(2))

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views, averaged over both directions."""
        representations = [encoder(view) for view in views[:2]]
        queries = [self.projector(h) for h in representations]
        keys = [self.target(view) for view in views[:2]]
        loss = queries[0].new_zeros((), dtype=torch.float32)
        for i, j in ((0, 1), (1, 0)):
            loss = loss + 0.5 * queue_contrast(queries[i], keys[j], self._queue(j).bank, self.config.temperature)
            self.stage(f"keys{j}", keys[j])
        return self.output(loss, representations, queries)

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the target network and add the keys of the step to the queues."""
        tau = cosine_momentum(self.config.momentum, self.config.final_momentum, self.progress.fraction)
        self.target.follow(tau, encoder, self.projector)
        for i in range(2):
            self._queue(i).enqueue(all_gather_step(staged[f"keys{i}"]))

    def _queue(self, view: int) -> EmbeddingQueue:
        return cast(EmbeddingQueue, self.queues[view])
