"""I-JEPA: prediction of the representations of image blocks from a context block."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import Encoder
from ..encoders.position_tables import sincos_positions
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import check_transformer, transformer_blocks
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision
from .masking import Blocks, block_size, select
from .target_networks import TargetNetwork

# Placements of the blocks from which the size of a step's contexts follows, as the smallest of a batch of so many.
REFERENCES = 64


@dataclass
class IJEPAConfig(MethodConfig):
    """Hyper-parameters of [`IJEPA`]; the defaults are the paper's, with the predictor of ViT-B/16."""

    target_blocks: int = hyper(4, "target blocks per image", at_least=1)
    target_scale_min: float = hyper(0.15, "least share of all patches in a target block", above=0, at_most=1)
    target_scale_max: float = hyper(0.2, "largest share of all patches in a target block", above=0, at_most=1)
    target_aspect_min: float = hyper(0.75, "least height / width of a target block", above=0)
    target_aspect_max: float = hyper(1.5, "largest height / width of a target block", above=0)
    context_scale_min: float = hyper(0.85, "least share of all patches in the context block", above=0, at_most=1)
    context_scale_max: float = hyper(1.0, "largest share of all patches in the context block", above=0, at_most=1)
    min_context: float = hyper(0.05, "least share of all patches that the targets leave to the context", at_least=0)
    predictor_dim: int = hyper(384, "width of the predictor's tokens", at_least=4)
    predictor_depth: int = hyper(6, "number of the predictor's transformer blocks", at_least=1)
    predictor_heads: int = hyper(12, "attention heads of each of the predictor's blocks", at_least=1)
    fixed_positions: bool = hyper(True, "give a backbone without weights fixed sines and cosines as positions")
    momentum: float = hyper(0.996, "target momentum τ at the first step", at_least=0, at_most=1)
    final_momentum: float = hyper(1.0, "target momentum τ at the last step", at_least=0, at_most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_scale", "target_aspect", "context_scale"):
            least, largest = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if least > largest:
                raise ValueError(f"{name}_min is {least}: it must be at most {name}_max, which is {largest}")
        check_transformer("predictor", self.predictor_dim, self.predictor_heads, default="384 and 12")


class IJEPAPredictor(nn.Module):
    """A narrow vision transformer over the context and the mask tokens of one target block.

    Positions are fixed sines and cosines; class token and registers have none.

    Source: Assran et al. 2023, section 3, and the weights at the start as in the authors' code.

    Args:
        width (`int`): Width D of the encoder's tokens.
        config ([`IJEPAConfig`]): Sizes of the predictor.
    """

    def __init__(self, width: int, config: IJEPAConfig):
        super().__init__()
        dim = config.predictor_dim
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.blocks = transformer_blocks(dim, config.predictor_depth, config.predictor_heads)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for name, parameter in self.blocks.named_parameters():
                # Of the blocks' last layers, whose outputs are added up.
                if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                    parameter.div_(math.sqrt(2 * (int(name.partition(".")[0]) + 1)))

    def forward(self, tokens: Tensor, keep: Tensor, targets: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the predicted tokens `(B, T, M, D)` of the patches of each target block.

        Args:
            tokens (`Tensor` of shape `(B, prefix + K, D)`): The encoder's tokens of the context.
            keep (`Tensor` of shape `(B, K)`): Indices of the patches of the context.
            targets (`Tensor` of shape `(B, T, M)`): Indices of the patches of T target blocks.
            grid (`tuple[int, int]`): Rows and columns of patches.
        """
        embedded = self.embed(tokens)
        images, blocks, patches = targets.shape
        prefix = tokens.shape[1] - keep.shape[1]
        positions = sincos_positions(*grid, embedded.shape[2], device=embedded.device).to(embedded.dtype)
        context = torch.cat([embedded[:, :prefix], embedded[:, prefix:] + positions[keep]], dim=1)
        # Each target block is predicted by itself.
        context = context.repeat_interleave(blocks, dim=0)
        masked = self.mask_token.to(embedded.dtype) + positions[targets.flatten(0, 1)]
        decoded = self.blocks(torch.cat([context, masked], dim=1))[:, -patches:]
        return self.predict(self.norm(decoded)).unflatten(0, (images, blocks))


@register_method
class IJEPA(SSLMethod[IJEPAConfig]):
    """Predict the target network's tokens of several blocks of an image from the tokens of the rest of it.

    The encoder sees a large context block without the patches of the target blocks. For each target block, the
    predictor sees the context's tokens and a mask token at each patch of the block. L = mean of smooth L1(prediction,
    target) over images, blocks, patches and channels; targets are the target network's tokens of the whole image, each
    normalized to mean 0 and variance 1. τ rises linearly, as in the authors' code. The loss is per sample.

    All target blocks of a step have one size, and all contexts one number of patches, so that images can be batched:
    the number that the smallest of 64 random placements of the step's blocks leaves. Images whose blocks leave fewer
    are placed again, and those with more lose some at random. (The authors' code takes the smallest of the batch, and
    leaves out the last rows.) So masks depend on seed, step and the place of an image in the step only. Scale and
    aspect ratio are independent, as in the paper, where the authors' code draws one random number for both.

    Positions of an encoder that starts from random weights are fixed sines and cosines, as in the authors' code
    (`fixed_positions`); one that starts from given weights keeps its own.

    Representation and embedding are the encoder's pooling of the context's tokens. Of encoders that pool the class
    token, the predictor sees it too, which is all that trains it: `global_pool="avg"` is nearer to the paper, whose
    encoder has none.

    Source: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", CVPR
    2023, arXiv 2301.08243.
    """

    name = "ijepa"
    title = "I-JEPA"
    family = "masked"
    source = "arXiv 2301.08243"
    summary = "ViTs on many images, without augmentations chosen by hand; a predictor narrower than the encoder"
    heads = "predictor of 6 blocks, 384 wide, 12 heads"
    recipe = TrainingRecipe("adamw_torch", 1.25e-4, 0.05, views="ijepa", warmup_epochs=40, warmup_start_lr=2.5e-5)
    batch_coupled = False
    has_target = True
    needs_patches = True
    views_needed = 1

    def __init__(self, encoder: Encoder, config: IJEPAConfig):
        super().__init__(encoder, config)
        self.layout = encoder.patches
        encoder.freeze_pooling()
        self.check_sizes([encoder.image_size])
        self.predictor = IJEPAPredictor(self.layout.width, config)
        self.target = TargetNetwork(encoder)

    def forward(self, encoder: Any, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first view."""
        images = views[0]
        grid = self.layout.grid(images.shape[-1])
        blocks, kept = self.blocks(grid)
        keep, targets = blocks.draw(self.generators(len(images)), kept, images.device)
        tokens = encoder.tokens(images, keep=keep)
        predictions = self.predictor(tokens, keep, targets, grid)
        with torch.no_grad():
            whole: Any = self.target.stack[0]
            wanted = select(whole.tokens(images)[:, self.layout.prefix :], targets.flatten(1))
        loss = self.loss(predictions.flatten(1, 2), wanted)
        representation = encoder.pool(tokens)
        return self.output(loss, [representation], [representation])

    @full_precision
    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of predicted tokens `(B, M, D)` with the target network's tokens of the same patches."""
        return F.smooth_l1_loss(predictions, F.layer_norm(targets, targets.shape[-1:]))

    def blocks(self, grid: tuple[int, int]) -> tuple[Blocks, int]:
        """Return the blocks of this step, and the number of patches of its contexts, the same on all processes.

        Args:
            grid (`tuple[int, int]`): Rows and columns of patches.

        Raises:
            ValueError: The target blocks leave too little of the context.
        """
        blocks, left = self._draw_sizes(np.random.default_rng((self.progress.seed, self.progress.step)), grid)
        if not len(left):
            raise ValueError(self._too_little(blocks))
        return blocks, int(left.min())

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Reject sizes of views in which the target blocks leave too little of the context."""
        for size in sizes:
            generator = np.random.default_rng(0)
            for _ in range(REFERENCES):
                blocks, left = self._draw_sizes(generator, self.layout.grid(size))
                # Images whose blocks leave too little are placed again, which should not be most of them.
                if len(left) < REFERENCES / 4:
                    raise ValueError(self._too_little(blocks))

    def _draw_sizes(self, generator: np.random.Generator, grid: tuple[int, int]) -> tuple[Blocks, np.ndarray]:
        """Draw sizes of blocks, and return how many patches are left to the context in places where it is enough."""
        config = self.config
        scale = config.target_scale_min, config.target_scale_max
        target = block_size(generator, grid, scale, (config.target_aspect_min, config.target_aspect_max))
        context = block_size(generator, grid, (config.context_scale_min, config.context_scale_max))
        blocks = Blocks(grid, target, context, config.target_blocks)
        left = blocks.place(generator.random((REFERENCES, 1 + blocks.targets, 2)))[0].sum(axis=(1, 2))
        return blocks, left[left >= self._least_context(grid)]

    def _least_context(self, grid: tuple[int, int]) -> int:
        """Return the least number of patches of a context, at least one."""
        return max(round(self.config.min_context * math.prod(grid)), 1)

    def _too_little(self, blocks: Blocks) -> str:
        """Return the error line of views that are too small for their blocks."""
        side, (rows, columns), (height, width) = blocks.grid[0] * self.layout.patch, blocks.grid, blocks.target
        return (
            f"a view of {side} px has {rows}×{columns} patches, and {blocks.targets} target blocks of {height}×{width} "
            f"patches mostly leave fewer than {self._least_context(blocks.grid)} to the context: pass a larger "
            "--image_size, smaller patches (--backbone_config patch_size=…), or less --method_config target_scale_max "
            "or min_context"
        )

    @torch.no_grad()
    def advance(self, encoder: nn.Module, staged: dict[str, list[Tensor]]) -> None:
        """Update the target network."""
        first, last = self.config.momentum, self.config.final_momentum
        self.target.follow(first + (last - first) * self.progress.fraction, encoder)
