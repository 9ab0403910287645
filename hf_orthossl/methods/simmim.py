"""SimMIM: reconstruction of masked pixels by a backbone of any kind, with a head of one layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision
from .masking import below, scattered_mask

# The published unit in pixels, of images of 192 and 224 px, and the fewest units along a side there.
PUBLISHED_UNIT, FEWEST_UNITS = 32, 6


@dataclass
class SimMIMConfig(MethodConfig):
    """Hyper-parameters of [`SimMIM`]; the defaults are those of the authors' code for ImageNet."""

    mask_ratio: float = hyper(0.6, "share of the units that are masked", above=0, at_most=1)
    mask_unit: int = hyper(0, "side of a masked square in px; 0: 32, less if a view is small", at_least=0)


@register_method
class SimMIM(SSLMethod[SimMIMConfig]):
    """Predict the pixels of masked squares from the last feature map, by one layer.

    L = Σ|x − x̂| over masked pixels / their number. x is the normalized view, x̂ comes from the last feature map by a 1×1
    convolution and a pixel shuffle. ⌈mask_ratio·N⌉ of the N squares of `mask_unit` pixels are masked, drawn anew for
    each image. A learned token takes the place of the embeddings of masked patches where the first layer of the
    backbone cuts the image into patches (ViT, Swin, ConvNeXt). Other backbones (ResNet, EfficientNet) see a learned
    colour in place of the masked pixels, which is not in the paper. The loss is per sample. Parameters of the backbone
    after its last feature map are not trained; representation and embedding are the mean of the map over positions.

    Source: Xie, Zhang, Cao, Lin, Bao, Yao, Dai & Hu, "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022,
    arXiv 2111.09886.
    """

    name = "simmim"
    title = "SimMIM"
    family = "masked"
    source = "arXiv 2111.09886"
    summary = "masked pixels for hierarchical and convolutional backbones (Swin, ConvNeXt, ResNet), and ViTs"
    heads = "1×1 convolution and pixel shuffle"
    recipe = TrainingRecipe(
        "adamw_torch", 1e-4, 0.05, views="simmim", lr_batch_size=512, warmup_epochs=10, warmup_start_lr=2.5e-7
    )
    batch_coupled = False
    views_needed = 1

    def __init__(self, encoder: Encoder, config: SimMIMConfig):
        super().__init__(encoder, config)
        self.layout = encoder.map_layout
        encoder.freeze_after_map()
        self.check_sizes([encoder.image_size])
        self.mask_token = nn.Parameter(torch.empty(self.layout.token_width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        stride = self.layout.stride
        self.head = nn.Sequential(
            nn.Conv2d(self.layout.width, stride**2 * encoder.channels, 1), nn.PixelShuffle(stride)
        )

    def forward(self, encoder: Any, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first view."""
        images = views[0]
        unit = self.unit(images.shape[-1])
        units = self.masked_units(images, images.shape[-1] // unit)
        cells = _enlarged(units, unit // self.layout.cell)
        features = encoder.feature_map(images, mask=cells, mask_token=self.mask_token)
        loss = self.loss(self.head(features), images, _enlarged(units, unit))
        representation = features.mean(dim=(2, 3))
        return self.output(loss, [representation], [representation])

    @full_precision
    def loss(self, predictions: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Return the mean absolute error of predictions for images `(B, C, H, W)` over masked pixels `(B, H, W)`."""
        errors = (predictions - images).abs().mean(dim=1)
        return (errors * mask).sum() / mask.sum()

    def masked_units(self, images: Tensor, side: int) -> Tensor:
        """Return which of `side` × `side` units of each image are masked, as bool `(B, side, side)`."""
        count = math.ceil(side**2 * self.config.mask_ratio - 1e-9)
        masks = [scattered_mask(generator, (side, side), count) for generator in self.generators(len(images))]
        return torch.from_numpy(np.stack(masks)).to(images.device)

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Reject sizes of views that do not divide into units, or of which every unit is masked."""
        for size in sizes:
            self.unit(size)

    def unit(self, side: int) -> int:
        """Return the side of the masked squares of a view of `side` pixels.

        Raises:
            ValueError: Squares of `mask_unit` pixels do not divide the view or its patches, or all would be masked.
        """
        cell, stride, unit = self.layout.cell, self.layout.stride, self.config.mask_unit
        if side % stride or side % cell:
            raise ValueError(
                f"a view of {side} px does not divide into the {stride} px that one position of the last feature map "
                f"stands for: pass --image_size, or a size in --views, of {max(side // stride, 1) * stride}"
            )
        able = [size for size in range(cell, side, cell) if side % size == 0]
        if not able:
            raise ValueError(
                f"a view of {side} px is one patch, which cannot be masked in part: pass a larger --image_size or a "
                "smaller patch_size"
            )
        if not unit:
            fine = [size for size in able if size <= min(PUBLISHED_UNIT, side // FEWEST_UNITS)]
            unit = max(fine, default=able[0])
        if unit not in able:
            patches = f" and be a multiple of the backbone's patches of {cell} px" if cell > 1 else ""
            raise ValueError(
                f"mask_unit is {unit}: it must divide views of {side} px{patches}, pass --method_config mask_unit=… "
                f"with one of {', '.join(map(str, able))}, or 0"
            )
        units = (side // unit) ** 2
        if math.ceil(units * self.config.mask_ratio - 1e-9) == units:
            raise ValueError(
                f"mask_ratio is {self.config.mask_ratio:g}, which masks all of the {units} units of a view: pass "
                f"--method_config mask_ratio={below(1 - 1 / units)} or less"
            )
        return unit


def _enlarged(mask: Tensor, factor: int) -> Tensor:
    """Return a mask `(B, n, n)` with `factor` × `factor` elements for each."""
    return mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
