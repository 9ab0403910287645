"""Satellite-like images: uint16 bands whose levels are those of the class, smooth in space."""

from pathlib import Path

import numpy as np
import tifffile

BANDS = 13


def image(rng: np.random.Generator, label: int, side: int, bands: int = BANDS) -> np.ndarray:
    """Return one image `(bands, side, side)` of a class."""
    level = np.linspace(1200, 3000, bands) * np.exp(0.3 * np.random.default_rng(100 + label).normal(size=bands))
    place = np.arange(side) / side
    waves = np.sin(2 * np.pi * (place[:, None] * rng.integers(1, 3) + place * rng.integers(1, 3) + rng.random()))
    texture = rng.normal(size=(bands, 1, 1)) * 0.15 * waves + 0.05 * rng.normal(size=(bands, side, side))
    return np.clip(level[:, None, None] * (1 + 0.25 * rng.normal() + texture), 1, 65535).astype(np.uint16)


def write(path: Path, values: np.ndarray, **options) -> None:
    """Write values `(bands, H, W)` as the bands of one page of a TIFF, or as `(H, W, bands)` of a NumPy file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values.transpose(1, 2, 0))
    else:
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate", **options)


def write_folders(folder: Path, per_class: int = 8, classes: int = 2, side: int = 16, suffix: str = ".tif") -> Path:
    """Write training and test images in folders of classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", per_class), ("test", per_class // 2)):
        for label in range(classes):
            for number in range(count):
                write(folder / split / f"class{label}" / f"{number}{suffix}", image(rng, label, side))
    return folder
