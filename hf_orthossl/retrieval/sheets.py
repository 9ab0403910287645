"""Draw sheets of pictures: queries with their neighbours, groups of duplicates, and outliers."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ..data import ImageSource
from ..spectra.figures import COLORS, new_figure, save_figure
from .neighbours import Neighbours
from .pictures import Picture, check_queries, query_source, thumbnails

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches: the side of a picture, the space beside it, a line of text below it, and the space after the first column.
_SIDE, _GAP, _LINE, _AFTER = 0.95, 0.09, 0.125, 0.22
# The queries of a sheet: image libraries take no pictures of 65,536 pixels and more.
_MOST_QUERIES = 40
# The side of a picture in pixels is at least that of the encoder's input, and at most this.
_PIXELS = 160
# Characters of a caption that fit below a picture.
_LETTERS = 14
# Columns of a sheet of outliers, the pictures of a group that are drawn, and the neighbours of a query.
_COLUMNS, _MEMBERS, _NEAREST = 8, 8, 16
# The frame of a neighbour of the query's class, and of another one: by line style too, for whoever sees no colours.
_Frame: TypeAlias = tuple[str, tuple[float, Sequence[float]] | Literal["-"]]
_SAME: _Frame = (COLORS[0], "-")
_OTHER: _Frame = (COLORS[1], (0, (2, 1)))


@dataclass
class Cell:
    """A picture of a sheet, with lines of text below it.

    Args:
        image (`np.ndarray`): Pixels `(S, S, 3)` or `(S, S)`, uint8.
        lines (`tuple[str, ...]`): The lines.
        frame (`tuple`, *optional*): Colour and line style of a frame.
    """

    image: np.ndarray
    lines: tuple[str, ...]
    frame: _Frame | None = None


def draw_neighbours(found: Neighbours, source: ImageSource, image_size: int, path: str | PathLike) -> Path:
    """Draw each query, at the left, and its neighbours, with similarity and class.

    Args:
        found ([`Neighbours`]): What was found.
        source ([`ImageSource`]): The data set.
        image_size (`int`): The side of the encoder's input.
        path (`str` or path): The file to write; its suffix chooses the format.
    """
    side, queries = _pixels(image_size), found.queries[:_MOST_QUERIES]
    elsewhere = [query.path for query in queries if query.row is None]
    if elsewhere:
        opened = query_source(check_queries(elsewhere, source), source)
        asked = thumbnails(opened, range(len(elsewhere)), side)
    else:
        asked = thumbnails(source, [query.row for query in queries if query.row is not None], side)
    decimals = _decimals([one.similarity for query in queries for one in query.neighbours])
    rows = []
    for query, image in zip(queries, asked, strict=True):
        neighbours = query.neighbours[:_NEAREST]
        near = thumbnails(source, [one.row for one in neighbours if one.row is not None], side)
        cells = [Cell(image, ("query", _name(query)))]
        for one, picture in zip(neighbours, near, strict=True):
            known = query.label is not None and one.label is not None
            frame = (_SAME if one.label == query.label else _OTHER) if known else None
            cells.append(Cell(picture, (f"{one.similarity:.{decimals}f}", _name(one)), frame))
        rows.append(cells)
    title = f"Nearest images by cosine similarity, most similar first: {_about(found)}"
    if len(queries) < len(found.queries):
        title += f"; the first {len(queries)} of {len(found.queries)} queries"
    return _draw(rows, title, path, _AFTER, found.agreement is not None)


def draw_duplicates(found: Neighbours, source: ImageSource, image_size: int, path: str | PathLike, shown: int) -> Path:
    """Draw the first groups of duplicates, one in each row; see [`draw_neighbours`]."""
    rows = []
    for group in found.duplicates[:shown]:
        members = group.images[:_MEMBERS]
        what = group.kind if group.kind == "exact" else f"near, {group.similarity:.3f}"
        what += f", 1 of {len(group.images)}" if len(group.images) > len(members) else ""
        images = thumbnails(source, [one.row for one in members if one.row is not None], _pixels(image_size))
        firsts = [what, *["same"] * (len(members) - 1)]
        cells = zip(members, images, firsts, strict=True)
        rows.append([Cell(image, (first, *_names(one))) for one, image, first in cells])
    count = len(found.duplicates)
    title = f"Duplicates, {len(rows)} of {count:,} groups" if count > len(rows) else f"Duplicates, {count:,} groups"
    return _draw(rows, f"{title}: {_about(found)}", path)


def draw_outliers(found: Neighbours, source: ImageSource, image_size: int, path: str | PathLike, shown: int) -> Path:
    """Draw the images that are farthest from all others; see [`draw_neighbours`]."""
    farthest = found.outliers[: 2 * shown]
    images = thumbnails(source, [one.row for one in farthest if one.row is not None], _pixels(image_size))
    cells = [Cell(image, (f"{one.distance:.3f}", *_names(one))) for one, image in zip(farthest, images, strict=True)]
    rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    title = f"Outliers, by mean cosine distance to the {found.about['k']} nearest images: {_about(found)}"
    return _draw(rows, title, path)


def _decimals(similarities: Sequence[float]) -> int:
    """Return the decimals that tell similarities near 1 from each other, 3 to 6."""
    rest = max(1 - min(similarities), 1e-6)
    return min(max(3, 2 - math.floor(math.log10(rest))), 6)


def _pixels(image_size: int) -> int:
    return min(image_size, _PIXELS)


def _about(found: Neighbours) -> str:
    about = found.about
    model, data = (_last_part(about[name]) for name in ("model", "dataset"))
    return f"{model}, {about['images']:,} images of {data} ({about['split']})"


def _last_part(name: str) -> str:
    """Return the end of a path or Hub id; the encoder of a run is named as the run."""
    parts = [part for part in name.split("/") if part not in ("", ".", "encoder")]
    return parts[-1] if parts else name


def _name(picture: Picture) -> str:
    """Return what to write below a picture: its class, or the name of its file."""
    return _names(picture)[-1]


def _names(picture: Picture) -> list[str]:
    """Return the name of a picture's file and, if it is known, its class, as far as they fit below it."""
    names = [Path(picture.path).name, *([] if picture.label is None else [picture.label])]
    return [text if len(text) <= _LETTERS else f"…{text[1 - _LETTERS :]}" for text in names]


def _draw(
    rows: Sequence[Sequence[Cell]], title: str, path: str | PathLike, after: float = 0.0, framed: bool = False
) -> Path:
    """Draw rows of cells below a title, with a space after the first column and, if asked, the key of the frames."""
    columns = max(4, *map(len, rows))
    width = columns * (_SIDE + _GAP) + after + _GAP
    lines = textwrap.wrap(title, round(width * 14.5), break_on_hyphens=False)
    top, bottom = 0.12 + 0.16 * len(lines), 0.3 if framed else 0.06
    row = _SIDE + _LINE * max(len(cell.lines) for cells in rows for cell in cells) + 2 * _GAP
    height = top + len(rows) * row + bottom
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    figure.text(_GAP / width, 1 - 0.08 / height, "\n".join(lines), fontsize=8, fontweight="bold", va="top")
    for number, cells in enumerate(rows):
        below = height - top - number * row - _SIDE
        for place, cell in enumerate(cells):
            left = _GAP + place * (_SIDE + _GAP) + (after if place else 0)
            _draw_cell(figure, cell, (left / width, below / height, _SIDE / width, _SIDE / height))
    if framed:
        _add_key(figure)
    return save_figure(figure, path)


def _draw_cell(figure: "Figure", cell: Cell, place: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(place)
    # Small images are enlarged without smoothing, so that their pixels are seen.
    enlarged = "nearest" if len(cell.image) < 100 else "antialiased"
    axes.imshow(cell.image, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation=enlarged)
    axes.set_xticks([])
    axes.set_yticks([])
    color, style = cell.frame or ("0.8", "-")
    for spine in axes.spines.values():
        # Projecting ends of dashes would fill the gaps between them.
        spine.set(color=color, linestyle=style, linewidth=1.8 if cell.frame else 0.6, capstyle="butt")
    axes.set_xlabel("\n".join(cell.lines), fontsize=7, labelpad=2, linespacing=1.15)


def _add_key(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, linestyle=style, linewidth=1.8, label=label)
        for (color, style), label in ((_SAME, "the query's class"), (_OTHER, "another class"))
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=7, frameon=False, borderaxespad=0.2)
