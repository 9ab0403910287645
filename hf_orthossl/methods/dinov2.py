"""DINOv2: iBOT with a head for patches, Sinkhorn-Knopp centring and the KoLeo term."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed.gather import all_gather
from .base import SSLOutput, TrainingRecipe, register_method
from .heads import DINOHead
from .hyperparameters import hyper
from .losses import koleo, sinkhorn
from .masking import block_mask
from .self_distillation import MaskedPatches, PatchDistillation, PatchDistillationConfig


@dataclass
class DINOv2Config(PatchDistillationConfig):
    """Hyper-parameters of [`DINOv2`]; the defaults are the authors' for ViT-L/14, with DINO's prototypes for CIFAR."""

    bottleneck_dim: int = hyper(384, "width of the embedding of class tokens", at_least=1)
    prototypes: int = hyper(4096, "output dimensions of the head of class tokens", at_least=2)
    patch_bottleneck_dim: int = hyper(256, "width of the embedding of patches", at_least=1)
    patch_prototypes: int = hyper(4096, "output dimensions of the head of patches", at_least=2)
    norm_last_layer: bool = hyper(False, "keep prototypes at unit length, or learn their lengths")
    warmup_teacher_epochs: float = hyper(30.0, "epochs of linear warm-up of the teacher's temperature", at_least=0)
    sinkhorn_iterations: int = hyper(3, "rounds of the Sinkhorn-Knopp algorithm", at_least=1)
    koleo_weight: float = hyper(0.1, "weight of the KoLeo term of each global view", at_least=0)
    momentum: float = hyper(0.994, "target momentum τ at the first step", at_least=0, at_most=1)
    mask_ratio_min: float = hyper(0.1, "least share of the patches of a masked view that is masked", at_least=0)
    mask_ratio_max: float = hyper(0.5, "largest share of them", above=0, at_most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.mask_ratio_min, self.mask_ratio_max
        if low > high or high >= 1:
            raise ValueError(
                f"mask_ratio_min is {low} and mask_ratio_max is {high}: they must lie in [0, 1), the lower one first, "
                "as in mask_ratio_min=0.1 mask_ratio_max=0.5"
            )


@register_method
class DINOv2(PatchDistillation[DINOv2Config]):
    """DINO on class tokens and iBOT on masked patches, each with its head, balanced targets and spread representations.

    L = λ₁·L_class + λ₂·L_patch + w·Σ KoLeo(h), over the representations h of both global views. The targets are the
    balanced assignments of [`sinkhorn`] with the teacher's temperature as ε: of the class tokens of both global views
    together, and of all their masked patches. Both, and KoLeo's nearest neighbours, are over all processes; the
    authors' code takes the neighbours from each process alone. It masks exactly half of the global views of a process,
    with shares of patches spread evenly over the range; here each view is masked by itself with that probability, and
    its share is uniform in the range, so that masks do not depend on the number of processes.

    Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, section 4, arXiv
    2304.07193.
    """

    name = "dinov2"
    title = "DINOv2"
    source = "arXiv 2304.07193"
    heads = "projectors 2048→2048→384 and 256 (GELU), 4096 prototypes each"
    summary = "vision transformers on large batches of much data, for features of images and patches; slower than iBOT"
    recipe = TrainingRecipe("adamw_torch", 5e-4, 0.04, views="cifar-asym", warmup_epochs=10)
    batch_coupled = True

    def build_heads(self, num_features: int, width: int) -> list[DINOHead]:
        """Return the head of class tokens and that of patches."""
        hidden, norm = self.config.hidden_dim, self.config.norm_last_layer
        return [
            DINOHead(num_features, hidden, self.config.bottleneck_dim, self.config.prototypes, norm),
            DINOHead(width, hidden, self.config.patch_bottleneck_dim, self.config.patch_prototypes, norm),
        ]

    def forward(self, encoder: Any, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views, the first two of which are global."""
        output = super().forward(encoder, views)
        if self.config.koleo_weight:
            spread = torch.stack([koleo(all_gather(h)) for h in output.representations[:2]]).sum()
            output.parts["koleo"] = spread.detach()
            output.loss = output.loss + self.config.koleo_weight * spread
        return output

    def draw_mask(self, generator: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
        """Return a mask of blocks, of a share of the patches that is uniform in the range."""
        low, high = self.config.mask_ratio_min, self.config.mask_ratio_max
        budget = int((low + (high - low) * generator.random()) * grid[0] * grid[1])
        return block_mask(generator, grid, budget, smallest=4, aspect=self.config.mask_aspect)

    def class_targets(self, scores: list[Tensor]) -> list[Tensor]:
        """Return the balanced assignments of the class tokens of all global views together."""
        return [*self._assign(torch.cat(scores)).chunk(len(scores))]

    def patch_targets(self, head: DINOHead, patches: list[Tensor], masks: list[MaskedPatches]) -> Tensor:
        """Return the balanced assignments of all masked patches together."""
        masked = torch.cat([tokens[mask.rows] for tokens, mask in zip(patches, masks, strict=True)])
        return self._assign(head(masked))

    def _assign(self, scores: Tensor) -> Tensor:
        """Return the balanced assignments `(n, K)` of the teacher's scores `(n, K)`."""
        return sinkhorn(scores, self.teacher_temperature, self.config.sinkhorn_iterations)
