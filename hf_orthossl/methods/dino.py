"""DINO: self-distillation with no labels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..encoders import Encoder
from .base import SSLOutput, TrainingRecipe, register_method
from .heads import DINOHead
from .hyperparameters import hyper
from .self_distillation import SelfDistillation, SelfDistillationConfig, centred_softmax, move_center
from .target_networks import TargetNetwork


@dataclass
class DINOConfig(SelfDistillationConfig):
    """Hyper-parameters of [`DINO`]; the defaults are solo-learn's for CIFAR."""

    center_momentum: float = hyper(0.9, "momentum of the centre", at_least=0, at_most=1)


@register_method
class DINO(SelfDistillation[DINOConfig]):
    """Match the student's distribution over prototypes to the centred and sharpened one of the teacher.

    L = mean over pairs (t, s), s ≠ t, of −Σ_k P_t(k)·log P_s(k), with P_t = softmax((g_t − c)/T_t) for the two global
    views t and P_s = softmax(g_s/T_s) for all views s. The centre c ← m·c + (1 − m)·mean(g_t) moves once per optimizer
    step. The loss is per sample. The teacher is in train mode like the student, see [`TargetNetwork`]. Views after the
    second are local crops, which only the student sees.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, eq. 1–4, arXiv
    2104.14294.
    """

    name = "dino"
    title = "DINO"
    summary = "strong kNN without probes, for vision transformers above all; uses local crops"
    source = "arXiv 2104.14294"
    heads = "projector 2048→2048→256 (GELU), 4096 prototypes"
    recipe = TrainingRecipe("lars", 0.3, 1e-6, views="cifar-asym", warmup_epochs=10, warmup_start_lr=3e-5)
    batch_coupled = False

    center: Tensor

    def __init__(self, encoder: Encoder, config: DINOConfig):
        super().__init__(encoder, config)
        self.head = DINOHead(
            encoder.num_features, config.hidden_dim, config.bottleneck_dim, config.prototypes, config.norm_last_layer
        )
        self.target = TargetNetwork(encoder, self.head)
        self.register_buffer("center", torch.zeros(config.prototypes))

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views, the first two of which are global."""
        representations = [encoder(view) for view in views]
        embeddings = [self.head.mlp(h) for h in representations]
        student = [self.head.scores(z) for z in embeddings]
        teacher = [self.target(view) for view in views[:2]]
        self.stage("teacher", torch.stack([g.mean(dim=0) for g in teacher]).mean(dim=0))
        return self.output(self.loss(teacher, student), representations, embeddings)

    def loss(self, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        """Return the cross-entropy between teacher and student scores `(B, K)` over all pairs of different views."""
        targets = [centred_softmax(g, self.center, self.teacher_temperature) for g in teacher]
        return self.view_loss(targets, student)

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the teacher and the centre."""
        self.follow(encoder, self.head)
        move_center(self.center, staged["teacher"], self.config.center_momentum)
