"""Show what an encoder makes of the places in images: components of patch features as colours, and attention."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..encoders import Encoder
from ..encoders.attention import attention_maps
from ..spectra.eigenvalues import covariance_eigenvalues, is_rounding
from ..spectra.figures import new_figure, save_figure
from ..spectra.layers import evaluation_mode
from ..spectra.measures import effective_rank

# The sheet's side of a picture, in inches.
_SIDE = 1.5
# Components outside of these percentiles have the brightest and the darkest colour.
_PERCENTILES = (0.01, 0.99)


@dataclass(frozen=True)
class PatchComponents:
    """The first three principal components of patch features, as colours.

    Args:
        colours (`np.ndarray` of shape `(N, h, w, 3)`): In [0, 1]; grey if all patches are the same.
        shares (tuple of `float`): The share of the variance in each of the three.
        rank (`float`): The effective rank of the covariance of all patches, 0 without variance.
        width (`int`): The number d of its directions.
    """

    colours: np.ndarray
    shares: tuple[float, ...]
    rank: float
    width: int


def patch_components(maps: Tensor) -> PatchComponents:
    """Return the principal components of the places of all images together.

    Source: figure 1 of DINOv2, Oquab et al. 2023, without its threshold.

    Args:
        maps (`Tensor` of shape `(N, d, h, w)`): Features of places.
    """
    images, width, rows, columns = maps.shape
    places = maps.permute(0, 2, 3, 1).reshape(-1, width).double().cpu()
    values = covariance_eigenvalues(places)
    total = float(values.sum())
    if is_rounding(total, float(places.mean(0).square().sum()), torch.finfo(torch.float32).eps):
        return PatchComponents(np.full((images, rows, columns, 3), 0.5), (0.0, 0.0, 0.0), 0.0, width)
    centred = places - places.mean(0)
    vectors = torch.linalg.svd(centred, full_matrices=False)[2][:3]
    # Of the two signs of a component, the one whose largest weight is positive.
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    shown = centred @ (vectors * largest.sign()).T
    low, high = (shown.quantile(share, dim=0) for share in _PERCENTILES)
    scaled = ((shown - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours = torch.full((len(shown), 3), 0.5, dtype=scaled.dtype)
    colours[:, : scaled.shape[1]] = scaled
    shares = tuple((values[:3] / total).tolist())
    rank = effective_rank(values.clamp(min=0).sqrt())
    return PatchComponents(colours.view(images, rows, columns, 3).numpy(), shares, rank, width)


@dataclass(frozen=True)
class PatchSheet:
    """Describe a sheet that was drawn.

    Args:
        path (`Path`): The file.
        components ([`PatchComponents`]): The components.
        heads (`int`): The heads of the last block, 0 without attention.
        note (`str`, *optional*): Why there is no attention.
    """

    path: Path
    components: PatchComponents
    heads: int
    note: str | None


def draw_patches(encoder: Encoder, images: Tensor, path: str | PathLike, *, heads: bool = False) -> PatchSheet:
    """Draw images beside the components of their patches and, for a vision transformer, its attention.

    Args:
        encoder ([`Encoder`]): The encoder; a convolutional network shows its last feature map.
        images (`Tensor` of shape `(N, C, S, S)`): Normalized images.
        path (`str` or path): The file to write; its suffix determines the format.
        heads (`bool`, defaults to `False`): Draw each head of the last block, instead of the mean over heads.

    Raises:
        ValueError: The encoder has neither patch tokens nor a feature map, or `heads` is given without attention.
    """
    with evaluation_mode(encoder):
        components = patch_components(encoder.feature_map(images))
    attention, note = None, None
    try:
        attention = attention_maps(encoder, images).cpu()
    except ValueError as error:
        if heads:
            raise
        note = str(error)
    columns = [("image", _pixels(encoder, images)), ("components 1–3", components.colours)]
    if attention is not None and heads:
        columns += [(f"head {head + 1}", attention[:, head].numpy()) for head in range(attention.shape[1])]
    elif attention is not None:
        columns.append((f"attention of {attention.shape[1]} heads", attention.mean(1).numpy()))
    figure = new_figure(_SIDE * len(columns) + 0.2, _SIDE * len(images) + 0.7)
    grid = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns):
        grid[0][column].set_title(title, fontsize=8)
        for row, picture in enumerate(pictures):
            grid[row][column].imshow(picture, interpolation="nearest", cmap="magma")
            grid[row][column].set_axis_off()
    figure.suptitle(describe_components(components), fontsize=8)
    number = 0 if attention is None else attention.shape[1]
    return PatchSheet(save_figure(figure, path), components, number, note)


def describe_components(components: PatchComponents) -> str:
    """Return how much of the variance the colours show, in one line."""
    if not components.rank:
        return "All patches have the same features: they have collapsed."
    share = 100 * sum(components.shares)
    return f"3 components: {share:.0f} % of the variance; effective rank {components.rank:.1f} of {components.width}"


def _pixels(encoder: Encoder, images: Tensor) -> np.ndarray:
    """Return images in colours `(N, S, S, 3)`, or the mean of other channels than three `(N, S, S)`."""
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (encoder.mean, encoder.std))
    pixels = (images * std + mean).clamp(0, 1).cpu()
    return (pixels.permute(0, 2, 3, 1) if images.shape[1] == 3 else pixels.mean(1)).numpy()
