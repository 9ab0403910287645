"""Show the views of a few images as a training step would see them, made by the code that makes those of a run."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import as_int
from ..spectra.figures import new_figure, save_figure
from .augment.recipes import Recipe, ViewSpec, get_recipe
from .augment.views import Views
from .dataset import ImageDataset, collate, without_unreadable
from .sources import ImageSource, load_source

# Side of the views of larger images, as of a run's.
LARGEST = 224
# Inches of a picture in the figure.
_CELL = 1.05
# Letters of a line above a column.
_LINE = 26


@dataclass(frozen=True)
class ViewSheet:
    """Images beside their views, as pixels.

    Args:
        recipe ([`Recipe`]): The recipe, as it is for these images.
        rows (`list[int]`): The rows of the source.
        originals (`Tensor` of shape `(N, C, S, S)`): The images, resized and cropped as an encoder sees them, uint8.
        views (`list[Tensor]`): For each view, those of all images `(N, C, s, s)`, uint8.
        titles (`list[str]`): For each view, its number, size and operations in words.
        changes (`str`, *optional*): How the recipe differs for images that are not of three channels.
    """

    recipe: Recipe
    rows: list[int]
    originals: Tensor
    views: list[Tensor]
    titles: list[str]
    changes: str | None


def make_view_sheet(
    source: ImageSource, views: Views, image_size: int, rows: Sequence[int], seed: int = 0
) -> ViewSheet:
    """Return a few images with the views that a training step makes of them.

    Args:
        source ([`ImageSource`]): The images.
        views ([`Views`]): The views of a run, or of a recipe.
        image_size (`int`): The side of the encoder's input, in pixels.
        rows (sequence of `int`): Rows of the source; images that cannot be read are left out.
        seed (`int`, defaults to 0): Determines the views.

    Raises:
        ValueError: The images are smaller than the views, or none of them can be read.
    """
    kept: dict[str, Any] = {"indices": rows, "image_size": image_size, "seed": seed, "unreadable": "omit"}
    places = range(len(rows))
    batch = without_unreadable(collate(ImageDataset(source, views=views.recipe, **kept).__getitems__(places)))
    whole = without_unreadable(collate(ImageDataset(source, **kept).__getitems__(places)))
    if not len(batch["labels"]):
        raise ValueError(f"none of {len(rows)} images of data set {source.name} can be read: look at the files")
    made = views(batch["crops"] if "crops" in batch else batch["pixel_values"], seed=seed)
    sizes = views.recipe.sizes(image_size)
    return ViewSheet(
        views.recipe,
        [int(index) for index in batch["index"]],
        whole["pixel_values"],
        [((view * views.std + views.mean) * 255).round().clamp(0, 255).to(torch.uint8) for view in made],
        [_title(number, spec, size) for number, (spec, size) in enumerate(zip(views.recipe.views, sizes, strict=True))],
        views.changes,
    )


def draw_views(
    data: Any,
    views: Recipe | str,
    path: str | PathLike,
    *,
    image_size: int | None = None,
    images: int = 6,
    seed: int = 42,
    split: str | None = None,
    **reading: Any,
) -> ViewSheet:
    """Draw a sheet of the views that a run on some images would see.

    Args:
        data (`Any`): The images, as [`load_source`] takes them.
        views ([`Recipe`] or `str`): The recipe, its name, or a YAML file with one.
        path (`str` or path): The file to write; its suffix determines the format.
        image_size (`int`, *optional*): The side of the encoder's input in pixels; by default that of the images, if all
            have the same and it is at most 224, else 224.
        images (`int`, defaults to 6): How many images are shown, evenly spread over the data set.
        seed (`int`, defaults to 42): Determines the views.
        split (`str`, *optional*): The split of the data set.
        reading: Further arguments of [`load_source`].

    Returns:
        [`ViewSheet`]: What was drawn.

    Raises:
        ValueError: The recipe is unknown, the images are a stream, or smaller than the views.
        OSError: The images cannot be read, or the file cannot be written.

    Example:
        >>> draw_views("path/to/images", "imagenet", "views.png", image_size=224)
    """
    recipe = get_recipe(views)
    images = as_int("images", images, at_least=1)
    source = load_source(data, split=split, **reading)
    if source.num_rows is None:
        raise ValueError(f"data set {source.name} is a stream: pass it without streaming, so that images can be chosen")
    image_size = image_size or default_size(source)
    rows = np.linspace(0, source.num_rows - 1, min(images, source.num_rows)).round().astype(int).tolist()
    # Normalized and back, which changes nothing: any mean and deviation do.
    neutral = [0.5] * source.num_channels
    sheet = make_view_sheet(source, Views(recipe, image_size, neutral, neutral), image_size, rows, seed)
    changed = f" ({sheet.changes})" if sheet.changes else ""
    plot_views(sheet, path, f"{recipe.name}{changed} at {image_size} px: {source.name}, {source.split}, seed {seed}")
    return sheet


def default_size(source: ImageSource) -> int:
    """Return the side of the views of a run that names none: that of the images, if all have it and up to 224."""
    known = source.image_size
    return min(known) if known is not None and min(known) <= LARGEST else LARGEST


def describe_view(spec: ViewSpec) -> list[str]:
    """Return the operations of a view in words, in the order in which they are applied, without those that are off."""
    low, high = (f"{100 * share:.0f}" for share in spec.scale)
    jittered = [name for name in ("brightness", "contrast", "saturation", "hue") if getattr(spec, name)]
    shares = {"flip": spec.flip, ", ".join(jittered): spec.jitter if jittered else 0.0}
    shares |= {"grey": spec.grayscale, "blur": spec.blur, "solarize": spec.solarize}
    return [f"crop {low}–{high} % of the area", *(f"{word} {100 * p:.0f} %" for word, p in shares.items() if p)]


def _title(number: int, spec: ViewSpec, size: int) -> str:
    return "\n".join([f"view {number + 1}, {size} px", *describe_view(spec)])


def as_rgb(pixels: Tensor) -> Tensor:
    """Return images of any number of channels as RGB `(N, H, W, 3)`, uint8, to be looked at.

    One channel is grey, of two the mean is; of three and more, the first three are red, green and blue.

    Args:
        pixels (`Tensor` of shape `(N, C, H, W)`): The images, uint8.
    """
    if pixels.shape[1] < 3:
        pixels = pixels.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return pixels[:, :3].permute(0, 2, 3, 1).contiguous()


def plot_views(sheet: ViewSheet, path: str | PathLike, title: str = "") -> Path:
    """Draw a sheet: a row for each image, the image itself in the first column and its views in the others.

    Args:
        sheet ([`ViewSheet`]): The images and their views.
        path (`str` or path): The file to write; its suffix determines the format.
        title (`str`): A line above the sheet.

    Returns:
        `Path`: The file.
    """
    columns = [sheet.originals, *sheet.views]
    titles = ["image", *("\n".join(textwrap.fill(line, _LINE) for line in t.split("\n")) for t in sheet.titles)]
    lines = max(text.count("\n") for text in titles) + 1
    width = max(_CELL, 0.058 * max(len(line) for text in titles for line in text.split("\n")))
    figure = new_figure(width * len(columns) + 0.2, _CELL * len(sheet.rows) + 0.13 * lines + 0.6)
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(len(sheet.rows), len(columns), squeeze=False)
    for place, (pictures, text) in enumerate(zip(columns, titles, strict=True)):
        for axes, picture in zip(grid[:, place], as_rgb(pictures).numpy(), strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        grid[0, place].set_title(text, fontsize=6.5, linespacing=1.3)
    for axes, row in zip(grid[:, 0], sheet.rows, strict=True):
        axes.set_ylabel(f"row {row}", fontsize=6.5)
    return save_figure(figure, path)
