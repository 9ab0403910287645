"""The last feature map of any backbone, and how parts of its images are masked before they enter it."""

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..messages import first_line
from ..spectra.layers import evaluation_mode
from .patch_tokens import hooked, replace_patches
from .probing import unused_parameters

if TYPE_CHECKING:
    from .spatial import SpatialFeatures


@dataclass(frozen=True)
class MapLayout:
    """Say what a mask token replaces, and what one position of the last feature map sees.

    Args:
        cell (`int`): The side in pixels of what one mask token replaces: of a patch, or 1 for a pixel.
        token_width (`int`): The numbers of a mask token: channels of the embedding of a patch, or of a pixel.
        stride (`int`): The distance in pixels of neighbouring positions of the map.
        width (`int`): The number of channels D of the map.
        stem (`str`, *optional*): The module of the backbone whose output the tokens replace; `None` for pixels.
        channels_last (`bool`): Whether that output, if it is a map, has its channels last.
        other_parameters (`tuple[str, ...]`): The parameters of the backbone on which the map does not depend.
    """

    cell: int
    token_width: int
    stride: int
    width: int
    stem: str | None = None
    channels_last: bool = False
    other_parameters: tuple[str, ...] = ()


def find_map(encoder: "SpatialFeatures") -> MapLayout:
    """Return the layout of an encoder's last feature map, after a check that what is masked is not seen.

    A mask token takes the place of the embeddings of patches where the first layer cuts the image into patches (a
    convolution whose kernel is its stride, with the norm after it: ViT, Swin, ConvNeXt), else that of pixels.

    Args:
        encoder ([`SpatialFeatures`]): The encoder.

    Raises:
        ValueError: It has no map whose positions divide its images.
    """
    try:
        with evaluation_mode(encoder):
            return _checked_layout(encoder)
    except Exception as error:  # networks fail in many ways
        raise ValueError(
            f"backbone {encoder.name!r} has no feature map to predict pixels from ({first_line(error)}): pass a "
            "convolutional network or a vision transformer, such as --backbone swin_tiny_patch4_window7_224"
        ) from error


def _checked_layout(encoder: "SpatialFeatures") -> MapLayout:
    side, weights = encoder.image_size, next(encoder.backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, encoder.channels, side, side, generator=generator, device="cpu")
    images = images.to(weights.device, weights.dtype)
    stem, convolution = patch_stem(encoder.backbone, encoder.channels)
    cell = 1 if convolution is None else convolution.stride[0]
    with torch.enable_grad():
        output = as_map(encoder.last_output(images), side // cell)
    width, rows, columns = output.shape[1:]
    if rows != columns or side % rows:
        raise ValueError(f"its last map has {rows}×{columns} positions for {side}×{side} pixels")
    others = tuple(unused_parameters(encoder.backbone, output))
    in_pixels = MapLayout(1, encoder.channels, side // rows, width, other_parameters=others)
    if convolution is None:
        return in_pixels
    hidden = torch.zeros(side // cell, side // cell, dtype=torch.bool, device=weights.device)
    hidden[::2] = True
    pixels = hidden.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    token = weights.new_zeros(convolution.out_channels)
    for channels_last in (False, True):
        layout = MapLayout(cell, len(token), side // rows, width, stem, channels_last, others)
        if weights.is_meta:  # shapes without values
            return layout
        # A map of as many channels as rows has no order by its shape: what is masked must not be seen.
        with contextlib.suppress(RuntimeError), torch.no_grad():
            first, second = (
                masked_map(encoder, layout, each, hidden.expand(2, -1, -1), token)
                for each in (images, torch.where(pixels, images.flip(0), images))
            )
            if torch.allclose(first, second, rtol=1e-3, atol=1e-4):
                return layout
    return in_pixels


def masked_map(
    encoder: "SpatialFeatures", layout: MapLayout, images: Tensor, mask: Tensor | None, mask_token: Tensor | None
) -> Tensor:
    """Return the last feature map `(B, D, h, w)` of images with masked cells, see [`Encoder.feature_map`]."""
    cells = images.shape[-1] // layout.cell
    if mask is None or mask_token is None:
        return as_map(encoder.last_output(images), cells)
    if layout.stem is None:
        images = torch.where(mask[:, None], mask_token.to(images.dtype)[:, None, None], images)
        return as_map(encoder.last_output(images), cells)

    def change(output: Any) -> Any:
        if isinstance(output, tuple):  # with the size of the map, in Swin of transformers
            return change(output[0]), *output[1:]
        return replace_patches(output, mask.flatten(1), mask_token, layout.channels_last)

    with hooked(encoder.backbone.get_submodule(layout.stem), change):
        return as_map(encoder.last_output(images), cells)


def as_map(output: Tensor, cells: int) -> Tensor:
    """Return tokens or a map as a map with its channels first.

    Args:
        output (`Tensor`): A map `(B, D, h, w)`, or tokens `(B, prefix + h·w, D)` of a square in raster order.
        cells (`int`): The number of cells along a side of the image, of which a square of tokens has as many, or fewer
            by a power of two.

    Returns:
        `Tensor` of shape `(B, D, h, w)`.

    Raises:
        ValueError: The output is neither.
    """
    if output.ndim == 4:
        return output
    if output.ndim != 3:
        raise ValueError(f"its last output has the shape {tuple(output.shape)}")
    side, tokens = cells, output.shape[1]
    while side * side > tokens:
        side //= 2
    if not side:
        raise ValueError(f"its last output has {tokens} tokens")
    return output[:, tokens - side * side :].transpose(1, 2).unflatten(2, (side, side))


def patch_stem(backbone: nn.Module, channels: int) -> tuple[str | None, nn.Conv2d | None]:
    """Return the name of the module that embeds patches, and its convolution; `None` if the first layer is another.

    The module is the convolution or, with norms after it, the outermost that has nothing else.

    Args:
        backbone (`nn.Module`): The backbone.
        channels (`int`): The number of channels of its images.
    """
    convolutions = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    name = next((name for name, m in convolutions.items() if m.in_channels == channels), None)
    if name is None:
        return None, None
    convolution = convolutions[name]
    sides = {*convolution.kernel_size, *convolution.stride}
    if len(sides) > 1 or sides == {1} or convolution.padding != (0, 0):
        return None, None
    while "." in name and _only_norms_beside(backbone.get_submodule(name.rpartition(".")[0]), convolution):
        name = name.rpartition(".")[0]
    return name, convolution


def _only_norms_beside(module: nn.Module, convolution: nn.Conv2d) -> bool:
    """Return whether a module consists of a convolution, norms and dropout, and has no other parameters."""
    beside = [m for m in module.modules() if m is not convolution]
    parts = [m for m in beside if not [*m.children()] or any(True for _ in m.parameters(recurse=False))]
    return all(isinstance(m, nn.Identity | nn.Dropout) or "norm" in type(m).__name__.lower() for m in parts)
