"""Distillation of an encoder's representations into another, without labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.gather import all_gather
from ..encoders import Encoder
from ..spectra.layers import evaluation_mode
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision
from .teachers import Teacher

TARGETS = ("pooled", "tokens", "relational")


@dataclass
class DistillConfig(MethodConfig):
    """Hyper-parameters of [`Distill`]."""

    teacher: str = hyper("", "the teacher: a timm name, Hub id, encoder folder or run folder, with its weights")
    target: str = hyper("pooled", "match representations, tokens too, or relations within the batch", one_of=TARGETS)
    hidden_dim: int = hyper(2048, "width of the projectors' hidden layer", at_least=1)
    cosine_share: float = hyper(
        1.0, "share of the cosine distance of representations; the rest is smooth L1", at_least=0, at_most=1
    )
    token_cosine_share: float = hyper(0.9, "the same share for tokens", at_least=0, at_most=1)
    relation: str = hyper("distance", "relations of target=relational", one_of=("distance", "similarity"))


@register_method
class Distill(SSLMethod[DistillConfig]):
    """Match the representations of a frozen teacher, which sees the same views.

    With target "pooled", a projector maps the student's representation to the teacher's width, and
    L = a·(1 − cos(p, t)) + (1 − a)·smooth L1(p, t), averaged over images and views, with a = `cosine_share`.

    With target "tokens", a second projector does so with each patch token of a ViT, or each position of the last stage
    of another network, and the same loss of tokens, with `token_cosine_share`, is added. If the grids of teacher and
    student differ, the finer one is resampled to the coarser one, by antialiased linear interpolation.

    With target "relational" there is no projector: the relations between the images of the batch of all processes are
    matched, in the student's representation to those in the teacher's. "distance" is RKD-D, the smooth L1 of Euclidean
    distances divided by their mean over the batch, over all pairs of different images. "similarity" is the mean
    square of the difference of both Gram matrices, whose rows are scaled to unit length.

    Every view is trained on by itself, and there may be any number of them. The teacher is in evaluation mode and is
    never updated or saved, see [`Teacher`].

    The loss is per sample, except for target "relational", of which n accumulated batches of m images are not one batch
    of n·m.

    Source: pooled and tokens, Ranzinger et al., "AM-RADIO", CVPR 2024, arXiv 2312.06709; distance, Park et al.,
    "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068; similarity, Tung & Mori,
    "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682.
    """

    name = "distill"
    title = "Distillation"
    family = "distillation"
    source = "arXiv 2312.06709"
    summary = "a good encoder exists, and a smaller or faster one is to do the same on your images"
    heads = "projector 2048 (LayerNorm, GELU) → teacher's width"
    recipe = TrainingRecipe("adamw_torch", 1e-3, 0.05, views="cifar-simclr", warmup_epochs=10)
    batch_coupled = False
    views_needed = 1
    takes_local_views = True

    projector: nn.Module | None
    token_projector: nn.Module | None

    def __init__(self, encoder: Encoder, config: DistillConfig):
        super().__init__(encoder, config)
        self.teacher = Teacher(config.teacher, encoder)
        self.projector = self.token_projector = None
        if config.target != "relational":
            self.projector = adaptor(encoder.num_features, config.hidden_dim, self.teacher.num_features)
        if config.target == "tokens":
            widths = feature_width(encoder), feature_width(self.teacher.encoder)
            self.token_projector = adaptor(widths[0], config.hidden_dim, widths[1])

    def forward(self, encoder: Any, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views."""
        losses, representations, embeddings = [], [], []
        for view in views:
            seen = self.teacher.see(view, encoder)
            if self.token_projector is None:
                representation, target = encoder(view), self.teacher(seen)
            else:
                representation, features = encoder.representation_and_map(view)
                target, wanted = self.teacher.representation_and_map(seen)
            embedding = representation if self.projector is None else self.projector(representation)
            loss = self.loss(embedding, target)
            if self.token_projector is not None:
                loss = loss + self.token_loss(self.token_projector(features.movedim(1, 3)), wanted.movedim(1, 3))
            losses.append(loss)
            representations.append(representation)
            embeddings.append(embedding)
        return self.output(torch.stack(losses).mean(), representations, embeddings)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the representations of one view.

        Args:
            student (`Tensor` of shape `(B, d)`): Projected representations, or representations if `target` is
                "relational".
            teacher (`Tensor` of shape `(B, D)`): The teacher's representations.
        """
        if self.config.target != "relational":
            return matching(student, teacher, self.config.cosine_share)
        relation = distance_relation if self.config.relation == "distance" else similarity_relation
        return relation(all_gather(student), all_gather(teacher))

    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the tokens of one view.

        Args:
            student (`Tensor` of shape `(B, h, w, D)`): Projected tokens in their places.
            teacher (`Tensor` of shape `(B, h', w', D)`): The teacher's tokens.
        """
        sides = [min(own, other) for own, other in zip(student.shape[1:3], teacher.shape[1:3], strict=True)]
        return matching(resampled(student, *sides), resampled(teacher, *sides), self.config.token_cosine_share)

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

    Source: AM-RADIO, Ranzinger et al. 2024.

    Args:
        width (`int`): Width of the student's features.
        hidden (`int`): Width of the hidden layer.
        output (`int`): Width of the teacher's features.
    """
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, output))


def feature_width(encoder: Encoder) -> int:
    """Return the number of channels of an encoder's feature map, from a blank image.

    Raises:
        ValueError: The encoder has no feature map.
    """
    weight, side = next(encoder.parameters()), encoder.image_size
    try:
        blank = torch.zeros(1, encoder.channels, side, side, dtype=weight.dtype, device=weight.device)
        with evaluation_mode(encoder):
            return encoder.representation_and_map(blank)[1].shape[1]
    except ValueError as error:
        raise ValueError(f"target is tokens, and {error}; or pass --method_config target=pooled") from None


@full_precision
def resampled(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Return tokens `(B, h, w, D)` on a grid of another size, by antialiased linear interpolation.

    It is written as products with matrices, because torch's own has a gradient on CUDA that is not deterministic.
    """
    for dim, size in ((1, rows), (2, columns)):
        if tokens.shape[dim] != size:
            identity = torch.eye(tokens.shape[dim], dtype=tokens.dtype, device=tokens.device)[None, :, None]
            weights = F.interpolate(identity, (1, size), mode="bilinear", antialias=True)[0, :, 0]
            tokens = torch.tensordot(tokens, weights, dims=([dim], [0])).movedim(-1, dim)
    return tokens


@full_precision
def matching(student: Tensor, teacher: Tensor, cosine_share: float) -> Tensor:
    """Return a·(1 − cos(s, t)) + (1 − a)·smooth L1(s, t), averaged over all vectors.

    Source: AM-RADIO, Ranzinger et al. 2024.

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

    Source: RKD-D, Park et al. 2019; the mean over pairs takes the place of the sum, as in the authors' code.

    Args:
        student (`Tensor` of shape `(B, d)`): The student's vectors, of all processes; B ≥ 2.
        teacher (`Tensor` of shape `(B, D)`): The teacher's.
    """
    first, second = torch.triu_indices(len(student), len(student), 1, device=student.device)

    def relative(vectors: Tensor) -> Tensor:
        # Not by products, in which the digits of the distance of near vectors cancel.
        distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")[first, second]
        return distances / distances.mean().clamp_min(1e-12)

    return F.smooth_l1_loss(relative(student), relative(teacher))


@full_precision
def similarity_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the Gram matrices `(B, B)`, whose rows have unit length.

    Source: Tung & Mori 2019.

    Args:
        student (`Tensor` of shape `(B, d)`): The student's vectors, of all processes.
        teacher (`Tensor` of shape `(B, D)`): The teacher's.
    """
    own, other = (F.normalize(vectors @ vectors.T, dim=1) for vectors in (student, teacher))
    return F.mse_loss(own, other)
