"""MAE: reconstruction of masked patches from the visible ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders import Encoder
from ..encoders.position_tables import sincos_positions
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .heads import check_transformer, transformer_blocks
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision
from .masking import below, patchify, random_masks, select


@dataclass
class MAEConfig(MethodConfig):
    """Hyper-parameters of [`MAE`]; the defaults are those of the authors' code for ImageNet."""

    mask_ratio: float = hyper(0.75, "share of the patches that are masked", above=0, at_most=1)
    decoder_dim: int = hyper(512, "width of the decoder's tokens", at_least=4)
    decoder_depth: int = hyper(8, "number of the decoder's transformer blocks", at_least=1)
    decoder_heads: int = hyper(16, "attention heads of each of the decoder's blocks", at_least=1)
    decoder_mlp_ratio: float = hyper(4.0, "width of the decoder's hidden layers / decoder_dim", above=0)
    norm_pix: bool = hyper(True, "whether the target is normalized patch by patch")
    fixed_positions: bool = hyper(True, "give a backbone without weights fixed sines and cosines as positions")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_transformer("decoder", self.decoder_dim, self.decoder_heads, default="512 and 16")


class MAEDecoder(nn.Module):
    """Transformer blocks over the visible patches and mask tokens in place of the others, then pixels.

    Positions are fixed sines and cosines; class token and registers have none.

    Source: He et al. 2022, section 3, and the weights at the start as in appendix A.1.

    Args:
        width (`int`): Width D of the encoder's tokens.
        pixels (`int`): Numbers to predict of each patch.
        config ([`MAEConfig`]): Sizes of the decoder.
    """

    def __init__(self, width: int, pixels: int, config: MAEConfig):
        super().__init__()
        dim = config.decoder_dim
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.blocks = transformer_blocks(dim, config.decoder_depth, config.decoder_heads, config.decoder_mlp_ratio)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, pixels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, keep: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the predicted pixels `(B, M, p·p·C)` of the masked patches.

        Args:
            tokens (`Tensor` of shape `(B, prefix + K, D)`): The encoder's tokens of the visible patches.
            keep (`Tensor` of shape `(B, K)`): Indices of the visible patches.
            masked (`Tensor` of shape `(B, M)`): Indices of the masked patches.
            grid (`tuple[int, int]`): Rows and columns of patches.
        """
        embedded = self.embed(tokens)
        images, width = len(tokens), embedded.shape[2]
        prefix = tokens.shape[1] - keep.shape[1]
        patches = self.mask_token.to(embedded.dtype).expand(images, grid[0] * grid[1], width)
        patches = patches.scatter(1, keep[:, :, None].expand(-1, -1, width), embedded[:, prefix:])
        patches = patches + sincos_positions(*grid, width, device=patches.device).to(patches.dtype)
        decoded = self.blocks(torch.cat([embedded[:, :prefix], patches], dim=1))
        return self.predict(self.norm(select(decoded[:, prefix:], masked)))


@register_method
class MAE(SSLMethod[MAEConfig]):
    """Reconstruct the pixels of masked patches from the visible ones, which alone go through the encoder.

    L = mean over masked patches of the mean squared difference between predicted and true pixels. The target is the
    normalized view; with `norm_pix`, each patch less its mean and divided by √(its unbiased variance + 10⁻⁶). Of N
    patches, ⌊N·(1 − mask_ratio)⌋ are visible, drawn anew for each image. The loss is per sample. Positions of
    an encoder that starts from random weights are fixed sines and cosines, as in the paper (`fixed_positions`; see
    [`SpatialFeatures.fix_positions`]); one that starts from given weights keeps its own. Representation and embedding
    are the encoder's pooling of the tokens of visible patches.

    Source: He, Chen, Xie, Li, Dollár & Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv
    2111.06377.
    """

    name = "mae"
    title = "MAE"
    family = "masked"
    source = "arXiv 2111.06377"
    summary = "ViTs on many images, to be fine-tuned; only visible patches are encoded: cheap for large encoders"
    heads = "decoder of 8 blocks, 512 wide, 16 heads"
    recipe = TrainingRecipe("adamw_torch", 1.5e-4, 0.05, views="mae", warmup_epochs=40)
    batch_coupled = False
    needs_patches = True
    views_needed = 1

    def __init__(self, encoder: Encoder, config: MAEConfig):
        super().__init__(encoder, config)
        self.layout = encoder.patches
        encoder.freeze_pooling()
        self.check_sizes([encoder.image_size])
        self.decoder = MAEDecoder(self.layout.width, self.layout.patch**2 * encoder.channels, config)

    def forward(self, encoder: Any, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first view."""
        images = views[0]
        grid = self.layout.grid(images.shape[-1])
        keep, masked = random_masks(
            self.generators(len(images)), grid[0] * grid[1], self.visible(grid[0] * grid[1]), images.device
        )
        tokens = encoder.tokens(images, keep=keep)
        predictions = self.decoder(tokens, keep, masked, grid)
        loss = self.loss(predictions, select(patchify(images, self.layout.patch), masked))
        representation = encoder.pool(tokens)
        return self.output(loss, [representation], [representation])

    @full_precision
    def loss(self, predictions: Tensor, patches: Tensor) -> Tensor:
        """Return the loss of predicted pixels `(B, M, p·p·C)` of masked patches with pixels of the same shape."""
        if self.config.norm_pix:
            variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            patches = (patches - mean) / (variance + 1e-6).sqrt()
        return (predictions - patches).square().mean()

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Reject sizes of views that do not divide into patches, or of which no patch or every patch is masked."""
        for size in sizes:
            self.visible(math.prod(self.layout.grid(size)))

    def visible(self, patches: int) -> int:
        """Return how many of an image's patches the encoder sees.

        Raises:
            ValueError: The share of masked patches leaves none.
        """
        # Products such as 10·(1 − 0.9) are below the whole number that is meant.
        visible = int(patches * (1 - self.config.mask_ratio) + 1e-9)
        if patches == 1:
            raise ValueError(
                "a view is one patch, which cannot be masked in part: pass a larger --image_size or smaller patch_size"
            )
        if not 0 < visible < patches:
            raise ValueError(
                f"mask_ratio is {self.config.mask_ratio:g}, which leaves {visible} of the {patches} patches of a view: "
                f"pass --method_config mask_ratio={below((patches - 1) / patches)} or less"
            )
        return visible
