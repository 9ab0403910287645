"""Draw test images with their true and their predicted classes side by side."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ...spectra.figures import new_figure, save_figure

_WIDTH = 3.0
# A legend of more classes would be larger than the pictures.
_NAMED = 20


def draw_segmentation(
    image: Image.Image, mask: Tensor, predicted: Tensor, names: Sequence[str], path: str | PathLike
) -> Path:
    """Draw one image beside its true and its predicted classes, a colour for each; pixels that do not count are white.

    Args:
        image (`PIL.Image.Image`): The image.
        mask (`Tensor` of shape `(H, W)`): Class index of each pixel, −1 where it does not count.
        predicted (`Tensor` of shape `(H, W)`): Predicted class indices.
        names (sequence of `str`): The name of each class.
        path (`str` or path): The file to write; its suffix determines the format.

    Returns:
        `Path`: The file.
    """
    import matplotlib

    # Its pale colours, the odd ones, come after the others.
    palette = matplotlib.colormaps["tab20"]([*range(0, 20, 2), *range(1, 20, 2)])[:, :3]
    colours = palette[np.arange(len(names)) % 20]
    shown = [np.asarray(image)]
    for classes in (mask.numpy(), predicted.numpy()):
        shown.append(np.where((classes >= 0)[..., None], colours[classes.clip(min=0)], 1.0))
    figure = new_figure(3 * _WIDTH, _WIDTH * image.height / image.width + 0.8)
    for axes, pixels, title in zip(figure.subplots(1, 3), shown, ("image", "true", "predicted"), strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    used = sorted({*mask.unique().tolist(), *predicted.unique().tolist()} - {-1})
    if len(used) <= _NAMED:
        from matplotlib.patches import Patch

        patches = [Patch(facecolor=tuple(colours[label]), label=names[label]) for label in used]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(used), 7), fontsize=9, frameon=False)
    return save_figure(figure, path)
