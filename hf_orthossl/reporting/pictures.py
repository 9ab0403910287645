"""Make the pictures of a report from a small sample of a run's images: its views, neighbours and a map."""

import base64
import io
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import ImageDataset, ImageSource, Views, get_recipe, load_source
from ..data.options import ImageOptions
from ..data.view_sheet import as_rgb, default_size, make_view_sheet
from ..encoders import Encoder, load_encoder
from ..evaluation.features import are_equal, extract_features
from ..evaluation.knn import nearest_neighbours
from ..hub.encoder_folder import spectra_rows
from ..spectra.figures import principal_components
from .run import Run

# Images of the map and the search, images whose neighbours are shown, how many, images whose views are shown.
IMAGES, QUERIES, NEIGHBOURS, VIEWED = 300, 6, 6, 4
# Views of an image that are shown; recipes with many crops have more.
MOST_VIEWS = 8
# Side of a picture on the page, in pixels: small images are enlarged, large ones reduced.
SIDE = 96


@dataclass
class Pictures:
    """Hold what a sample of a run's images shows.

    Args:
        source (`str`): Which images, in words.
        views (`list[list[str]]`): For each image, itself and its views as data URLs.
        view_titles (`list[list[str]]`): For each column, lines of its title.
        neighbours (`list[list[tuple[str, str]]]`): For each query, itself and its nearest images: data URL and caption.
        points (`list[tuple[float, float, int, str]]`): Places of the map: x, y, class from 0, and the class's name.
        axes (`tuple[str, str]`): Labels of the map's axes.
        missing (`list[str]`): What could not be shown, and why.
    """

    source: str = ""
    views: list[list[str]] = field(default_factory=list)
    view_titles: list[list[str]] = field(default_factory=list)
    neighbours: list[list[tuple[str, str]]] = field(default_factory=list)
    points: list[tuple[float, float, int, str]] = field(default_factory=list)
    axes: tuple[str, str] = ("", "")
    missing: list[str] = field(default_factory=list)


def draw_pictures(
    run: Run, images: int = IMAGES, *, encoder: Encoder | None = None, source: ImageSource | None = None
) -> Pictures:
    """Return the pictures of a run; what cannot be drawn is said.

    Args:
        run ([`Run`]): The run.
        images (`int`, defaults to 300): The images of the map, evenly spread over the data set; 0 for no pictures.
        encoder ([`Encoder`], *optional*): The trained encoder, which is otherwise loaded from the folder.
        source ([`ImageSource`], *optional*): The images, which are otherwise opened as the settings say.
    """
    pictures = Pictures()
    if not images:
        pictures.missing.append("No pictures were asked for.")
        return pictures
    try:
        source = source or _open(run)
    except (ValueError, OSError) as error:
        pictures.missing.append(f"The images cannot be opened here ({error}), so that there are no pictures.")
        return pictures
    if source.num_rows is None:
        pictures.missing.append("The images are a stream, which is not read again for pictures.")
        return pictures
    rows = spectra_rows(source.num_rows, images)
    pictures.source = f"{len(rows):,} images of {source.name}, {source.split}, evenly spread"
    try:
        encoder = encoder or (load_encoder(str(run.folder), pretrained=True) if run.record else None)
        _add_views(pictures, run, source, encoder, rows)
        if encoder is not None:
            _add_map(pictures, encoder, source, rows)
    except (ValueError, OSError, RuntimeError) as error:
        pictures.missing.append(f"Some pictures cannot be drawn: {error}.")
    return pictures


def _open(run: Run) -> ImageSource:
    """Return the images of a run, as its settings name them.

    Raises:
        ValueError: The settings do not say, or the images cannot be read.
        OSError: They cannot be reached.
    """
    if "dataset" not in run.settings:
        raise ValueError("the folder does not say which images the run trained on")
    known = {spec.name for spec in fields(ImageOptions)}
    options = ImageOptions(**{name: value for name, value in run.settings.items() if name in known})
    split = run.record.split if run.record else run.settings.get("split")
    reading: dict[str, Any] = options.reading()
    return load_source(options.location, split=split, streaming=bool(run.settings.get("streaming")), **reading)


def _add_views(pictures: Pictures, run: Run, source: ImageSource, encoder: Encoder | None, rows: list[int]) -> None:
    name = run.settings.get("views") or (run.record.training.get("views") if run.record else None)
    size = encoder.image_size if encoder else run.settings.get("image_size") or default_size(source)
    if name is None:
        pictures.missing.append("The folder does not say which views the run saw.")
        return
    blank = ([0.5] * source.num_channels, [0.5] * source.num_channels)
    mean, std = (encoder.mean, encoder.std) if encoder else blank
    views = Views(get_recipe(str(name)), size, mean, std)
    chosen = [rows[place] for place in np.linspace(0, len(rows) - 1, min(VIEWED, len(rows))).round().astype(int)]
    sheet = make_view_sheet(source, views, size, chosen, seed=int(run.settings.get("seed") or 0))
    columns = [_urls(sheet.originals), *(_urls(view) for view in sheet.views[:MOST_VIEWS])]
    pictures.views = [list(row) for row in zip(*columns, strict=True)]
    pictures.view_titles = [["image"], *(title.split("\n") for title in sheet.titles[:MOST_VIEWS])]


def _add_map(pictures: Pictures, encoder: Encoder, source: ImageSource, rows: list[int]) -> None:
    dataset = ImageDataset(source, image_size=encoder.image_size, indices=rows, unreadable="omit")
    features = extract_features(encoder, dataset)
    unreadable = {image.index for image in features.unreadable}
    kept = [row for row in rows if row not in unreadable]
    points, labels = features.representations, features.labels
    if len(points) < 2 or not torch.isfinite(points).all():
        pictures.missing.append("There are too few images for a map, or their representations are not finite.")
        return
    if are_equal(points):
        pictures.missing.append(
            "All representations are equal: there is no map to draw, and no image is nearer than another."
        )
        return
    places, pictures.axes = principal_components(points.double())
    names = source.class_names
    pictures.points = [
        (x, y, max(label, -1), _class(label, names))
        for (x, y), label in zip(places.tolist(), labels.tolist(), strict=True)
    ]
    # Of as many classes as possible.
    first = {int(label): place for place, label in reversed(list(enumerate(labels.tolist()))) if label >= 0}
    queries = sorted(first.values())[:QUERIES]
    spread = np.linspace(0, len(kept) - 1, min(QUERIES, len(kept))).round().astype(int).tolist()
    queries = [*dict.fromkeys([*queries, *spread])][: len(spread)]
    similarity, index = nearest_neighbours(points, points[queries], k=NEIGHBOURS + 1)
    for query, cosines, found in zip(queries, similarity.tolist(), index.tolist(), strict=True):
        others = [(place, cosine) for place, cosine in zip(found, cosines, strict=True) if place != query]
        shown = [query, *(place for place, _ in others[:NEIGHBOURS])]
        pixels = torch.stack([dataset_pixels(source, encoder.image_size, kept[place]) for place in shown])
        captions = [_class(int(labels[query]), names) or "query"]
        captions += [f"{_class(int(labels[p]), names)} {cosine:.2f}".strip() for p, cosine in others[:NEIGHBOURS]]
        pictures.neighbours.append(list(zip(_urls(pixels), captions, strict=True)))


def dataset_pixels(source: ImageSource, image_size: int, row: int) -> Tensor:
    """Return one image as an encoder sees it, `(C, S, S)` uint8."""
    return ImageDataset(source, image_size=image_size, indices=[row], unreadable="omit")[0]["pixel_values"]


def _class(label: int, names: list[str] | None) -> str:
    if label < 0:
        return ""
    return names[label] if names and label < len(names) else str(label)


def _urls(pixels: Tensor) -> list[str]:
    """Return images `(N, C, H, W)` as data URLs of PNG files."""
    urls = []
    for picture in as_rgb(pixels).numpy():
        image = Image.fromarray(picture)
        larger = max(SIDE // max(image.size), 1)
        image = (
            image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST)
            if larger > 1
            else image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            if max(image.size) > SIDE
            else image
        )
        written = io.BytesIO()
        image.save(written, format="PNG", optimize=True)
        urls.append(f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}")
    return urls
