"""NNBYOL: BYOL that predicts the nearest neighbour of the target."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..distributed.gather import all_gather_step
from ..encoders import Encoder
from .base import TrainingRecipe, register_method
from .byol import BYOL, BYOLConfig
from .hyperparameters import hyper
from .target_networks import EmbeddingQueue


@dataclass
class NNBYOLConfig(BYOLConfig):
    """Hyper-parameters of [`NNBYOL`]; the defaults are solo-learn's for CIFAR."""

    queue_size: int = hyper(65_536, "embeddings in the queue; a multiple of the images per step", at_least=1)


@register_method
class NNBYOL(BYOL):
    """BYOL whose targets are replaced by their nearest neighbours among past target embeddings.

    L = Σ over both view orders of 2 − 2·cos(p, NN(z', Q)), where Q holds the latest normalized target embeddings of
    first views. Neighbours are looked up before the current batch enters the queue, so that the loss is per sample.

    Source: the combination is solo-learn's (da Costa et al., JMLR 2022); neighbours as positives are NNCLR's (Dwibedi
    et al., ICCV 2021, eq. 1, arXiv 2104.14548).
    """

    name = "nnbyol"
    title = "NNBYOL"
    summary = "BYOL towards nearest neighbours in a queue"
    source = "arXiv 2104.14548"
    heads = BYOL.heads
    recipe = TrainingRecipe("lars", 1.0, 1e-5, views="cifar-asym", warmup_epochs=10, warmup_start_lr=3e-5)
    config_class = NNBYOLConfig
    has_queue = True

    def __init__(self, encoder: Encoder, config: NNBYOLConfig):
        super().__init__(encoder, config)
        self.queue = EmbeddingQueue(config.queue_size, config.output_dim)

    def look_up(self, targets: list[Tensor]) -> list[Tensor]:
        """Return the nearest neighbours in the queue of the target embeddings `(B, d)` of both views."""
        self.stage("keys", targets[0])
        return [self.queue.nearest(target) for target in targets]

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the target network and add the target embeddings of the first views to the queue."""
        super().advance(encoder, staged)
        self.queue.enqueue(all_gather_step(staged["keys"]))
