"""Teach a student its teacher's distribution over prototypes: the part that DINO, iBOT and DINOv2 share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.collectives import all_reduce_mean
from ..encoders import Encoder
from .base import SSLMethod, SSLOutput
from .heads import DINOHead
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision
from .target_networks import TargetNetwork, cosine_momentum


@dataclass
class SelfDistillationConfig(MethodConfig):
    """Hyper-parameters of self-distillation; the defaults are solo-learn's of DINO for CIFAR."""

    hidden_dim: int = hyper(2048, "width of the projector's two hidden layers", at_least=1)
    bottleneck_dim: int = hyper(256, "width of the embedding", at_least=1)
    prototypes: int = hyper(4096, "output dimensions of the head", at_least=2)
    norm_last_layer: bool = hyper(True, "keep prototypes at unit length, or learn their lengths")
    student_temperature: float = hyper(0.1, "softmax temperature of the student", above=0)
    teacher_temperature: float = hyper(0.07, "softmax temperature of the teacher", above=0)
    warmup_teacher_temperature: float = hyper(0.04, "the teacher's temperature at the first step", above=0)
    warmup_teacher_epochs: float = hyper(0.0, "epochs of linear warm-up of the teacher's temperature", at_least=0)
    freeze_last_layer_epochs: float = hyper(1.0, "epochs before the last layer is trained", at_least=0)
    momentum: float = hyper(0.9995, "target momentum τ at the first step", at_least=0, at_most=1)
    final_momentum: float = hyper(1.0, "target momentum τ at the last step", at_least=0, at_most=1)


DistillationT = TypeVar("DistillationT", bound=SelfDistillationConfig)


class SelfDistillation(SSLMethod[DistillationT]):
    """A student whose views predict the teacher's distribution over prototypes for the other global view.

    Source: DINO, Caron et al. 2021.
    """

    family = "distillation"
    takes_local_views = True
    has_target = True

    target: TargetNetwork

    @property
    def teacher_temperature(self) -> float:
        """Return the teacher's temperature T_t at this step: linear over the warm-up epochs, then constant."""
        return self.warmed_up(self.config.warmup_teacher_temperature, self.config.teacher_temperature)

    def warmed_up(self, first: float, last: float, start: float = 0.0) -> float:
        """Return a number that goes from `first` to `last` over the warm-up epochs, which begin at epoch `start`."""
        epoch = max(self.progress.epoch - start, 0)
        if epoch >= self.config.warmup_teacher_epochs:
            return last
        return first + epoch / self.config.warmup_teacher_epochs * (last - first)

    @full_precision
    def view_loss(self, targets: list[Tensor], student: list[Tensor]) -> Tensor:
        """Return the cross-entropy over all pairs of different views.

        Args:
            targets (`list[Tensor]`): The teacher's probabilities `(B, K)` for each global view.
            student (`list[Tensor]`): The student's scores `(B, K)` for each view, global views first.
        """
        logs = [F.log_softmax(g / self.config.student_temperature, dim=1) for g in student]
        pairs = [(t, s) for t in range(len(targets)) for s in range(len(logs)) if s != t]
        total = sum((targets[t] * logs[s]).sum(dim=1).mean() for t, s in pairs)
        assert isinstance(total, Tensor)  # two global views make at least two pairs
        return -total / len(pairs)

    def before_optimizer_step(self) -> None:
        """Drop the gradient of last layers during the first `freeze_last_layer_epochs`."""
        if self.progress.epoch < self.config.freeze_last_layer_epochs:
            for module in self.modules():
                if isinstance(module, DINOHead):
                    module.freeze_last_layer()

    def follow(self, *online: nn.Module) -> None:
        """Move the teacher one step towards the student's modules, with the momentum of this step."""
        tau = cosine_momentum(self.config.momentum, self.config.final_momentum, self.progress.fraction)
        self.target.follow(tau, *online)


@full_precision
def centred_softmax(scores: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Return softmax((g − c)/T) of scores g `(n, K)`: DINO's centred and sharpened distribution of the teacher."""
    return F.softmax((scores - center) / temperature, dim=1)


@torch.no_grad()
def move_center(center: Tensor, means: list[Tensor], momentum: float) -> None:
    """Move a centre c ← m·c + (1 − m)·mean, where the mean is over the micro-batches of all processes.

    Args:
        center (`Tensor` of shape `(K,)`): The centre, changed in place.
        means (`list[Tensor]`): The mean `(K,)` of each micro-batch of this process; all have as many scores.
        momentum (`float`): m in [0, 1].
    """
    mean = all_reduce_mean(torch.stack(means).mean(dim=0))
    center.lerp_(mean.to(center.dtype), 1 - momentum)


@dataclass
class PatchDistillationConfig(SelfDistillationConfig):
    """Hyper-parameters that iBOT and DINOv2 share."""

    class_weight: float = hyper(1.0, "weight of the loss of class tokens", at_least=0)
    patch_weight: float = hyper(1.0, "weight of the loss of masked patches", at_least=0)
    mask_probability: float = hyper(0.5, "probability that a global view is masked", at_least=0, at_most=1)
    mask_aspect: float = hyper(0.3, "least height / width of a masked block; the largest is 1 / x", above=0, at_most=1)


PatchDistillationT = TypeVar("PatchDistillationT", bound=PatchDistillationConfig)


class MaskedPatches(NamedTuple):
    """Say which patches of a batch of views are masked.

    Args:
        mask (`Tensor` of shape `(B, N)`): `True` where a patch is masked.
        rows (`Tensor` of shape `(M,)`): The indices in B·N of the masked patches.
        counts (`Tensor` of shape `(M,)`): For each of them, how many patches of its view are masked.
    """

    mask: Tensor
    rows: Tensor
    counts: Tensor


class PatchDistillation(SelfDistillation[PatchDistillationT], ABC):
    """Self-distillation of class tokens over views, and of the masked patches of each global view.

    The student sees global views with some patches replaced by a learned mask token, and local views whole; the
    teacher, which has no dropout, sees whole global views. The "class token" is the encoder's representation: that of
    an encoder that averages its patches is their average. Register tokens take part in attention only.

    Source: iBOT, Zhou et al. 2022, eq. 2–3.
    """

    needs_patches = True

    def __init__(self, encoder: Encoder, config: PatchDistillationT):
        super().__init__(encoder, config)
        self.patches = encoder.patches
        self.mask_token = nn.Parameter(torch.zeros(self.patches.width))
        self.projectors = nn.ModuleList(self.build_heads(encoder.num_features, self.patches.width))
        self.target = TargetNetwork(encoder, *self.projectors, deterministic=True)

    @abstractmethod
    def build_heads(self, num_features: int, width: int) -> list[DINOHead]:
        """Return the head of class tokens and that of patches, or one for both.

        Args:
            num_features (`int`): Channels of the representation.
            width (`int`): Channels of a patch token.
        """

    @abstractmethod
    def draw_mask(self, generator: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
        """Return which patches `(rows, columns)` of a view are masked, given that the view is."""

    @abstractmethod
    def class_targets(self, scores: list[Tensor]) -> list[Tensor]:
        """Return the teacher's probabilities `(B, K)` of each global view, given its scores `(B, K)`."""

    @abstractmethod
    def patch_targets(self, head: DINOHead, patches: list[Tensor], masks: list[MaskedPatches]) -> Tensor:
        """Return the teacher's probabilities of all masked patches, view after view.

        Args:
            head ([`DINOHead`]): The teacher's head.
            patches (`list[Tensor]`): The teacher's patch tokens `(B·N, D)` of each global view.
            masks (`list[MaskedPatches]`): The M masked patches of each.

        Returns:
            `Tensor` of shape `(Σ M, K)`.
        """

    def forward(self, encoder: Any, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views, the first two of which are global."""
        grids = [self.patches.grid(view.shape[-1]) for view in views]
        masks = self.draw_masks(views[:2], grids[0])
        tokens = [
            encoder.tokens(view, mask=masked.mask, mask_token=self.mask_token)
            for view, masked in zip(views[:2], masks, strict=True)
        ]
        representations = [encoder.pool(each) for each in tokens] + [encoder(view) for view in views[2:]]
        class_head, patch_head = self._heads
        embeddings = [class_head.mlp(h) for h in representations]
        student = [class_head.scores(z) for z in embeddings]
        hidden = torch.cat([self._patch_tokens(each)[m.rows] for each, m in zip(tokens, masks, strict=True)])
        class_targets, patch_targets = self._teach(views[:2], masks)
        parts = {
            "class_loss": self.view_loss(class_targets, student),
            "patch_loss": self.patch_loss(patch_targets, patch_head(hidden), masks),
        }
        loss = self.config.class_weight * parts["class_loss"] + self.config.patch_weight * parts["patch_loss"]
        output = self.output(loss, representations, embeddings)
        output.parts.update({name: part.detach() for name, part in parts.items()})
        return output

    @full_precision
    def patch_loss(self, targets: Tensor, student: Tensor, masks: list[MaskedPatches]) -> Tensor:
        """Return the cross-entropy of masked patches: their mean in each view, averaged over all views.

        A view without masked patches counts as 0, as in the authors' code.

        Args:
            targets (`Tensor` of shape `(Σ M, K)`): The teacher's probabilities, view after view.
            student (`Tensor` of shape `(Σ M, K)`): The student's scores.
            masks (`list[MaskedPatches]`): The M masked patches of each view.
        """
        logs = F.log_softmax(student / self.config.student_temperature, dim=1)
        each = (targets * logs).sum(dim=1) / torch.cat([masked.counts for masked in masks])
        return -each.sum() / sum(len(masked.mask) for masked in masks)

    def draw_masks(self, views: list[Tensor], grid: tuple[int, int]) -> list[MaskedPatches]:
        """Return which patches of each view `(B, C, H, W)` are masked; an image's masks depend on no other image.

        Raises:
            ValueError: A view is a single row or column of patches, which blocks cannot mask in part.
        """
        if min(grid) < 2 and self.config.mask_probability:
            side = views[0].shape[-1]
            raise ValueError(
                f"a global view of {side} px has {grid[0]} × {grid[1]} patches of {self.patches.patch} px, too few to "
                f"mask some of them: pass --backbone_config patch_size={max(side // 4, 1)}, or a larger --image_size"
            )
        drawn = np.zeros((len(views), len(views[0]), *grid), dtype=bool)
        for image, generator in enumerate(self.generators(len(views[0]))):
            for view in range(len(views)):
                if generator.random() < self.config.mask_probability:
                    drawn[view, image] = self.draw_mask(generator, grid)
        # Indices are found on the CPU, because a GPU would have to wait for their number.
        masks = torch.from_numpy(drawn).flatten(2)
        parts = [(mask, mask.flatten().nonzero()[:, 0], mask.sum(dim=1)[mask.nonzero()[:, 0]]) for mask in masks]
        return [MaskedPatches(*(part.to(views[0].device) for part in each)) for each in parts]

    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the teacher."""
        self.follow(encoder, *self.projectors)

    @property
    def _heads(self) -> tuple[DINOHead, DINOHead]:
        """Return the student's heads of class tokens and of patches, which may be one."""
        return cast(DINOHead, self.projectors[0]), cast(DINOHead, self.projectors[-1])

    @torch.no_grad()
    def _teach(self, views: list[Tensor], masks: list[MaskedPatches]) -> tuple[list[Tensor], Tensor]:
        """Return the teacher's probabilities for global views, and for their masked patches."""
        encoder, *heads = cast(list[Any], [*self.target.stack])
        tokens = [encoder.tokens(view) for view in views]
        scores = [heads[0](encoder.pool(each)) for each in tokens]
        return self.class_targets(scores), self.patch_targets(heads[-1], [*map(self._patch_tokens, tokens)], masks)

    def _patch_tokens(self, tokens: Tensor) -> Tensor:
        """Return the tokens `(B·N, D)` of patches, of tokens `(B, prefix + N, D)`."""
        return tokens[:, self.patches.prefix :].flatten(0, 1)
