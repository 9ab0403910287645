"""Distillation of an encoder's representations into another, without labels."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.gather import all_gather
from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision
from .teachers import Teacher

TARGETS = ("pooled", "relational")


@dataclass
class DistillConfig(MethodConfig):
    """Hyper-parameters of [`Distill`]."""

    teacher: str = hyper("", "the teacher: a timm name, Hub id, encoder folder or run folder, with its weights")
    target: str = hyper("pooled", "what to match: representations, or relations within the batch", one_of=TARGETS)
    hidden_dim: int = hyper(2048, "width of the projector's hidden layer", at_least=1)
    cosine_share: float = hyper(1.0, "share of the cosine distance; the rest is smooth L1", at_least=0, at_most=1)
    relation: str = hyper("distance", "relations of target=relational", one_of=("distance", "similarity"))


@register_method
class Distill(SSLMethod[DistillConfig]):
    """Match the representations of a frozen teacher, which sees the same views.

    With target "pooled", a projector maps the student's representation to the teacher's width, and
    L = a·(1 − cos(p, t)) + (1 − a)·smooth L1(p, t), averaged over images and views, with a = `cosine_share`: the
    summary loss of AM-RADIO, and its two-layer adaptor.

    With target "relational" there is no projector: the relations between the images of the batch of all processes are
    matched, in the student's representation to those in the teacher's. "distance" is RKD-D, the smooth L1 of Euclidean
    distances divided by their mean over the batch, over all pairs of different images. "similarity" is the mean
    square of the difference of both Gram matrices, whose rows are scaled to unit length.

    Every view is trained on by itself, and there may be any number of them. The teacher is in evaluation mode and is
    never updated or saved, see [`Teacher`].

    Source: pooled, Ranzinger et al., "AM-RADIO", CVPR 2024, §3.4, arXiv 2312.06709; distance, Park et al., "Relational
    Knowledge Distillation", CVPR 2019, eq. 3–5, arXiv 1904.05068; similarity, Tung & Mori, "Similarity-Preserving
    Knowledge Distillation", ICCV 2019, eq. 2–4, arXiv 1907.09682.
    """

    name = "distill"
    title = "Distillation"
    family = "distillation"
    source = "arXiv 2312.06709"
    heads = "projector 2048 (LayerNorm, GELU) → teacher's width"
    recipe = TrainingRecipe("adamw_torch", 1e-3, 0.02, views="cifar-asym", warmup_epochs=10)
    views_needed = 1
    takes_local_views = True

    def __init__(self, encoder: Encoder, config: DistillConfig):
        super().__init__(encoder, config)
        self.teacher = Teacher(config.teacher, encoder)
        self.projector = nn.Identity()
        if config.target == "pooled":
            self.projector = adaptor(encoder.num_features, config.hidden_dim, self.teacher.num_features)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views."""
        representations = [encoder(view) for view in views]
        targets = [self.teacher(self.teacher.see(view, encoder)) for view in views]
        embeddings = [self.projector(h) for h in representations]
        losses = [self.loss(embedding, target) for embedding, target in zip(embeddings, targets, strict=True)]
        return self.output(torch.stack(losses).mean(), representations[0], embeddings[0])

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one view.

        Args:
            student (`Tensor` of shape `(B, d)`): Projected representations, or representations if `target` is
                "relational".
            teacher (`Tensor` of shape `(B, D)`): The teacher's representations.
        """
        if self.config.target == "pooled":
            return matching(student, teacher, self.config.cosine_share)
        relation = distance_relation if self.config.relation == "distance" else similarity_relation
        return relation(all_gather(student), all_gather(teacher))

    def facts(self) -> dict[str, str]:
        """Return the teacher, for the record and the card of a run."""
        return {"teacher": self.teacher.describe()}

    def check_folder(self, folder: Path) -> None:
        """Refuse to train in the folder of the teacher, whose files the run would replace by the student's."""
        if self.teacher.is_in(folder):
            raise ValueError(
                f"teacher {self.config.teacher!r} is in {folder}, where the student is to be written: pass another "
                "--output_dir, or another teacher"
            )


def adaptor(width: int, hidden: int, output: int) -> nn.Sequential:
    """Build two linear layers with layer norm and GELU between them, which act on the last dimension.

    Source: AM-RADIO, Ranzinger et al. 2024, §3.3.

    Args:
        width (`int`): Width of the student's features.
        hidden (`int`): Width of the hidden layer.
        output (`int`): Width of the teacher's features.
    """
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, output))


@full_precision
def matching(student: Tensor, teacher: Tensor, cosine_share: float) -> Tensor:
    """Return a·(1 − cos(s, t)) + (1 − a)·smooth L1(s, t), averaged over all vectors.

    Source: AM-RADIO, Ranzinger et al. 2024, eq. 2–4.

    Args:
        student (`Tensor` of shape `(…, D)`): The student's vectors.
        teacher (`Tensor` of shape `(…, D)`): The teacher's vectors.
        cosine_share (`float`): a in [0, 1].
    """
    distance = 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    if cosine_share == 1:
        return distance
    return cosine_share * distance + (1 - cosine_share) * F.smooth_l1_loss(student, teacher)


@full_precision
def distance_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the smooth L1 of the distances within the batch, each divided by their mean, over all pairs.

    Source: RKD-D, Park et al. 2019, eq. 3–5; the mean over pairs takes the place of the sum, as in the authors' code.

    Args:
        student (`Tensor` of shape `(B, d)`): The student's vectors, of all processes; B ≥ 2.
        teacher (`Tensor` of shape `(B, D)`): The teacher's.
    """
    first, second = torch.triu_indices(len(student), len(student), 1, device=student.device)
    pairs = []
    for vectors in (student, teacher):
        # Not by products, in which the digits of the distance of near vectors cancel.
        distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")[first, second]
        pairs.append(distances / distances.mean().clamp_min(1e-12))
    return F.smooth_l1_loss(*pairs)


@full_precision
def similarity_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the Gram matrices `(B, B)`, whose rows have unit length.

    Source: Tung & Mori 2019, eq. 2–4.

    Args:
        student (`Tensor` of shape `(B, d)`): The student's vectors, of all processes.
        teacher (`Tensor` of shape `(B, D)`): The teacher's.
    """
    return F.mse_loss(*(F.normalize(vectors @ vectors.T, dim=1) for vectors in (student, teacher)))
