"""Draw the built-in data set of detection and segmentation: shapes on a textured background, without a download."""

import functools
import io

import datasets
import numpy as np
from PIL import Image

SIDE = 128
CLASSES = ("circle", "square", "triangle")
_CORNERS = {"square": 4, "triangle": 3}
_PLACES_TRIED = (3, 8)
_RADII = (12, 26)
_TILT = np.pi / 12
_SPLITS = {"train": 300, "test": 100}


@functools.cache
def shapes() -> datasets.DatasetDict:
    """Return 128×128 RGB images of circles, squares and triangles of any colour, up to seven in each.

    Each box encloses the pixels of its shape exactly, and boxes do not overlap. There are 300 `train` and 100 `test`
    images, the same on every machine, with the columns of detection data sets on the Hub: `image_id`, `image`, `width`,
    `height` and `objects` with `id`, `area`, `bbox` (COCO's x, y, width, height in pixels) and `category`. The column
    `mask` has an image of each pixel's class: 0 for the background, 1 + the category for a shape.
    """
    boxes = {
        "id": datasets.List(datasets.Value("int64")),
        "area": datasets.List(datasets.Value("int64")),
        "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "category": datasets.List(datasets.ClassLabel(names=list(CLASSES))),
    }
    features = datasets.Features(
        {
            "image_id": datasets.Value("int64"),
            "image": datasets.Image(),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": boxes,
            "mask": datasets.Image(),
        }
    )
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list(
                [_row(number, np.random.default_rng((part, number))) for number in range(count)],
                features=features,
                split=split,
            )
            for part, (split, count) in enumerate(_SPLITS.items())
        }
    )


def _row(number: int, rng: np.random.Generator) -> dict:
    pixels = _ground(rng)
    enclosed = np.zeros((SIDE, SIDE), bool)
    classes = np.zeros((SIDE, SIDE), np.uint8)
    boxes, categories = [], []
    for _ in range(rng.integers(*_PLACES_TRIED)):
        category = int(rng.integers(len(CLASSES)))
        mask = _mask(CLASSES[category], rng)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        if enclosed[box].any():  # each place is tried once, so crowded images have fewer shapes
            continue
        enclosed[box] = True
        classes[mask] = 1 + category
        # Far from the mean of the background in every channel, so that contrast never vanishes.
        colour = (pixels[mask].mean(0) + rng.uniform(70, 185, 3)) % 255
        pixels[mask] = colour + 0.25 * (pixels[mask] - pixels[mask].mean(0))
        boxes.append([columns[0], rows[0], len(columns), len(rows)])
        categories.append(category)
    return {
        "image_id": number,
        "image": _png(pixels.clip(0, 255).round().astype(np.uint8), f"shapes-{number:04d}.png"),
        "width": SIDE,
        "height": SIDE,
        "objects": {
            "id": list(range(len(boxes))),
            "area": [width * height for _, _, width, height in boxes],
            "bbox": boxes,
            "category": categories,
        },
        "mask": _png(classes, f"shapes-{number:04d}-mask.png"),
    }


def _png(pixels: np.ndarray, name: str) -> dict:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return {"bytes": file.getvalue(), "path": name}


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Return a background of stripes and noise of several scales, `(SIDE, SIDE, 3)`, around the middle of [0, 255]."""
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
    stripes = np.sin((across * np.cos(angle) + down * np.sin(angle)) * 2 * np.pi / period)
    ground = rng.uniform(60, 195, 3) + stripes[..., None] * rng.uniform(-25, 25, 3)
    for scale in (1, 4, 16):
        coarse = rng.normal(0, 9, (SIDE // scale, SIDE // scale, 3))
        ground += coarse.repeat(scale, 0).repeat(scale, 1)
    return ground


def _mask(shape: str, rng: np.random.Generator) -> np.ndarray:
    """Return the pixels of one shape within the image, boolean `(SIDE, SIDE)`."""
    radius = rng.uniform(*_RADII)
    centre = rng.uniform(radius + 1, SIDE - radius - 1, 2)
    offsets = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1) - centre
    if shape == "circle":
        return (offsets**2).sum(-1) <= radius**2
    # A regular polygon is the intersection of the half-planes of its edges.
    sides = _CORNERS[shape]
    angles = np.pi / 2 + rng.uniform(-_TILT, _TILT) + np.arange(sides) * 2 * np.pi / sides
    normals = np.stack([np.cos(angles), np.sin(angles)])
    return (offsets @ normals).max(-1) <= radius * np.cos(np.pi / sides)
