"""iBOT: self-distillation of class tokens over views, and of masked patches within a view."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders import Encoder
from .base import TrainingRecipe, register_method
from .heads import DINOHead
from .hyperparameters import hyper
from .masking import block_mask, scattered_mask
from .self_distillation import (
    MaskedPatches,
    PatchDistillation,
    PatchDistillationConfig,
    centred_softmax,
    move_center,
)


@dataclass
class IBOTConfig(PatchDistillationConfig):
    """Hyper-parameters of [`IBOT`]; the defaults are the authors' for ViT-S/16 on ImageNet."""

    prototypes: int = hyper(8192, "output dimensions of each head", at_least=2)
    norm_last_layer: bool = hyper(False, "keep prototypes at unit length, or learn their lengths")
    shared_head: bool = hyper(True, "use one head for class tokens and patches")
    warmup_teacher_epochs: float = hyper(30.0, "epochs of linear warm-up of the teacher's temperatures", at_least=0)
    patch_teacher_temperature: float = hyper(0.07, "softmax temperature of the teacher for patches", above=0)
    warmup_patch_teacher_temperature: float = hyper(0.04, "the same at the first step", above=0)
    center_momentum: float = hyper(0.9, "momentum of the centre of class tokens", at_least=0, at_most=1)
    patch_center_momentum: float = hyper(0.9, "momentum of the centre of patches", at_least=0, at_most=1)
    momentum: float = hyper(0.996, "target momentum τ at the first step", at_least=0, at_most=1)
    mask_ratio: float = hyper(0.3, "mean share of the patches of a masked view that is masked", above=0, at_most=1)
    mask_ratio_variation: float = hyper(0.2, "half the width of the range of that share", at_least=0, at_most=1)
    mask_shape: str = hyper("block", "masked patches form blocks, or are scattered", one_of=("block", "scattered"))
    mask_start_epoch: float = hyper(0.0, "epoch from which views are masked", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio, variation = self.mask_ratio, self.mask_ratio_variation
        if variation > ratio or ratio + variation >= 1:
            raise ValueError(
                f"mask_ratio is {ratio} and mask_ratio_variation is {variation}: shares from mask_ratio − variation to "
                f"mask_ratio + variation must lie in [0, 1), pass mask_ratio_variation={min(ratio, 1 - ratio) / 2:g}"
            )


@register_method
class IBOT(PatchDistillation[IBOTConfig]):
    """DINO on class tokens, with masked patches that predict what the teacher sees there.

    L = λ₁·L_class + λ₂·L_patch. L_class is DINO's loss over all views, whose global ones are masked for the student.
    L_patch is the mean over global views of the mean over masked patches of −Σ_k P_t(k)·log P_s(k), where P_t is the
    teacher's distribution of the same patch of the whole view. Class tokens and patches have a centre each, that of
    patches over all of them, as in the paper's algorithm 1. Both losses are per sample.

    Source: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022, eq. 2–3, algorithm 1 and
    appendix B, arXiv 2111.07832.
    """

    name = "ibot"
    title = "iBOT"
    source = "arXiv 2111.07832"
    heads = "shared projector 2048→2048→256 (GELU), 8192 prototypes"
    summary = "vision transformers, where patches matter too: DINO with masked patches"
    recipe = TrainingRecipe("adamw_torch", 5e-4, 0.04, views="cifar-asym", warmup_epochs=10)
    batch_coupled = False

    center: Tensor
    patch_center: Tensor

    def __init__(self, encoder: Encoder, config: IBOTConfig):
        super().__init__(encoder, config)
        self.register_buffer("center", torch.zeros(config.prototypes))
        self.register_buffer("patch_center", torch.zeros(config.prototypes))

    def build_heads(self, num_features: int, width: int) -> list[DINOHead]:
        """Return one head for both, or two.

        Raises:
            ValueError: One head is asked for, and representation and patches differ in width.
        """
        config = self.config
        if config.shared_head and num_features != width:
            raise ValueError(
                f"shared_head is True, but the representation has {num_features} channels and a patch token {width}: "
                "pass --method_config shared_head=false"
            )
        widths = config.hidden_dim, config.bottleneck_dim, config.prototypes
        inputs = [num_features] if config.shared_head else [num_features, width]
        return [DINOHead(channels, *widths, config.norm_last_layer) for channels in inputs]

    @property
    def patch_teacher_temperature(self) -> float:
        """Return the teacher's temperature for patches at this step; its warm-up begins when masking does."""
        config = self.config
        first, last = config.warmup_patch_teacher_temperature, config.patch_teacher_temperature
        return self.warmed_up(first, last, start=config.mask_start_epoch)

    def draw_mask(self, generator: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
        """Return a mask of a share of the patches that is uniform in `mask_ratio` ± `mask_ratio_variation`."""
        config = self.config
        if self.progress.epoch < config.mask_start_epoch:
            return np.zeros(grid, dtype=bool)
        share = config.mask_ratio + config.mask_ratio_variation * (2 * generator.random() - 1)
        budget = share * grid[0] * grid[1]
        if config.mask_shape == "scattered":
            return scattered_mask(generator, grid, budget)
        return block_mask(generator, grid, budget, smallest=(min(grid) // 3) ** 2, aspect=config.mask_aspect)

    def class_targets(self, scores: list[Tensor]) -> list[Tensor]:
        """Return the teacher's centred and sharpened distributions of class tokens, and note their mean scores."""
        self.stage("class", torch.stack([g.mean(dim=0) for g in scores]).mean(dim=0))
        return [centred_softmax(g, self.center, self.teacher_temperature) for g in scores]

    def patch_targets(self, head: DINOHead, patches: list[Tensor], masks: list[MaskedPatches]) -> Tensor:
        """Return the teacher's distributions of masked patches, and note the mean score of all patches."""
        embeddings = [head.mlp(tokens) for tokens in patches]
        self.stage("patches", torch.stack([head.mean_score(z) for z in embeddings]).mean(dim=0))
        scores = head.scores(torch.cat([z[masked.rows] for z, masked in zip(embeddings, masks, strict=True)]))
        return centred_softmax(scores, self.patch_center, self.patch_teacher_temperature)

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the teacher and both centres."""
        super().advance(encoder, staged)
        move_center(self.center, staged["class"], self.config.center_momentum)
        move_center(self.patch_center, staged["patches"], self.config.patch_center_momentum)
