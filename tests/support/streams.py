"""Parquet files of tiny numbered images, to be read as a stream."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def write_files(folder: Path, counts: list[int], broken: tuple[int, ...] = (), sizes=(8, 8)) -> Path:
    """Files with so many images each; labels are the numbers of the images, `broken` ones hold junk."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, row = np.random.default_rng(0), 0
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    encoded = []
    for side in sizes:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
        encoded.append(file.getvalue())
    for number, count in enumerate(counts):
        rows = list(range(row, row := row + count))
        images = [{"bytes": b"junk" if i in broken else encoded[i % len(sizes)], "path": f"{i}.png"} for i in rows]
        table = datasets.Dataset.from_dict({"image": images, "label": rows}, features=features)
        table.to_parquet(folder / f"train-{number:05d}.parquet")
    return folder
