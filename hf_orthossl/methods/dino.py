"""DINO: self-distillation with no labels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.collectives import all_reduce_mean
from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision, normalize
from .target_networks import TargetNetwork, cosine_momentum


@dataclass
class DINOConfig(MethodConfig):
    """Hyper-parameters of [`DINO`]; the defaults are solo-learn's for CIFAR."""

    hidden_dim: int = hyper(2048, "width of the projector's two hidden layers", at_least=1)
    bottleneck_dim: int = hyper(256, "width of the embedding", at_least=1)
    prototypes: int = hyper(4096, "output dimensions of the head", at_least=2)
    student_temperature: float = hyper(0.1, "softmax temperature of the student", above=0)
    teacher_temperature: float = hyper(0.07, "softmax temperature of the teacher", above=0)
    warmup_teacher_temperature: float = hyper(0.04, "the teacher's temperature at the first step", above=0)
    warmup_teacher_epochs: float = hyper(0.0, "epochs of linear warm-up of the teacher's temperature", at_least=0)
    center_momentum: float = hyper(0.9, "momentum of the centre", at_least=0, at_most=1)
    freeze_last_layer_epochs: float = hyper(1.0, "epochs before the last layer is trained", at_least=0)
    momentum: float = hyper(0.9995, "target momentum τ at the first step", at_least=0, at_most=1)
    final_momentum: float = hyper(1.0, "target momentum τ at the last step", at_least=0, at_most=1)


class DINOHead(nn.Module):
    """An MLP, L2 normalization, and scores against prototypes of unit length.

    Source: DINO, Caron et al. 2021, appendix C.

    Args:
        num_features (`int`): Width D of the representation.
        config ([`DINOConfig`]): Widths of the layers.
    """

    def __init__(self, num_features: int, config: DINOConfig):
        super().__init__()
        hidden, dim = config.hidden_dim, config.bottleneck_dim
        self.mlp = mlp(num_features, hidden, hidden, dim, norm=False, activation=nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # Weight normalization with a fixed scale of 1, as in the paper: only the rows' directions are learned.
        self.last_layer = nn.Linear(dim, config.prototypes, bias=False)

    def forward(self, representation: Tensor) -> Tensor:
        """Return the scores `(B, K)` of representations `(B, D)`."""
        return self.scores(self.mlp(representation))

    def scores(self, embedding: Tensor) -> Tensor:
        """Return the cosines `(B, K)` of embeddings `(B, d)` with the prototypes."""
        return F.linear(normalize(embedding), normalize(self.last_layer.weight))


@register_method
class DINO(SSLMethod[DINOConfig]):
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
    family = "distillation"
    source = "arXiv 2104.14294"
    heads = "projector 2048→2048→256 (GELU), 4096 prototypes"
    recipe = TrainingRecipe("lars", 0.3, 1e-6, views="cifar-asym", warmup_epochs=10, warmup_start_lr=3e-5)
    batch_coupled = False
    takes_local_views = True
    has_target = True

    center: Tensor

    def __init__(self, encoder: Encoder, config: DINOConfig):
        super().__init__(encoder, config)
        self.head = DINOHead(encoder.num_features, config)
        self.target = TargetNetwork(encoder, self.head)
        self.register_buffer("center", torch.zeros(config.prototypes))

    @property
    def teacher_temperature(self) -> float:
        """Return the teacher's temperature T_t at this step: linear over the warm-up epochs, then constant."""
        config = self.config
        if self.progress.epoch >= config.warmup_teacher_epochs:
            return config.teacher_temperature
        share = self.progress.epoch / config.warmup_teacher_epochs
        first = config.warmup_teacher_temperature
        return first + share * (config.teacher_temperature - first)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views, the first two of which are global."""
        representations = [encoder(view) for view in views]
        embeddings = [self.head.mlp(h) for h in representations]
        student = [self.head.scores(z) for z in embeddings]
        teacher = [self.target(view) for view in views[:2]]
        self.stage("teacher", torch.stack([g.mean(dim=0) for g in teacher]).mean(dim=0))
        return self.output(self.loss(teacher, student), representations, embeddings)

    @full_precision
    def loss(self, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        """Return the cross-entropy between teacher and student scores `(B, K)` over all pairs of different views."""
        targets = [F.softmax((g - self.center) / self.teacher_temperature, dim=1) for g in teacher]
        logs = [F.log_softmax(g / self.config.student_temperature, dim=1) for g in student]
        pairs = [(t, s) for t in range(len(targets)) for s in range(len(logs)) if s != t]
        total = sum((targets[t] * logs[s]).sum(dim=1).mean() for t, s in pairs)
        assert isinstance(total, Tensor)  # two global views make at least two pairs
        return -total / len(pairs)

    def before_optimizer_step(self) -> None:
        """Drop the gradient of the last layer during the first `freeze_last_layer_epochs`."""
        if self.progress.epoch < self.config.freeze_last_layer_epochs:
            self.head.last_layer.weight.grad = None

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the teacher and the centre."""
        tau = cosine_momentum(self.config.momentum, self.config.final_momentum, self.progress.fraction)
        self.target.follow(tau, encoder, self.head)
        mean = all_reduce_mean(torch.stack(staged["teacher"]).mean(dim=0))
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.config.center_momentum)
