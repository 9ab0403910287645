"""The embedded default data set: the handwritten digits of scikit-learn, which need no network."""

import functools
import io

import datasets
import numpy as np
from PIL import Image

SIDE = 32


@functools.cache
def digits() -> datasets.DatasetDict:
    """Return 1,797 handwritten digits of 8×8 pixels in 17 gray levels as 32×32 RGB images.

    The scans are enlarged by bicubic interpolation. The split is fixed and stratified by class: 1,437 `train` and 360
    `test` images.

    Source:
        Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, as distributed with scikit-learn.
    """
    # Imported only when needed, because it takes a second.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    train, test = train_test_split(np.arange(len(scans.target)), test_size=360, stratify=scans.target, random_state=0)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": _png(scans.images[row]), "path": f"digit-{row:04d}.png"} for row in rows],
                    "label": scans.target[rows],
                },
                features=features,
                split=split,
            )
            for split, rows in (("train", np.sort(train)), ("test", np.sort(test)))
        }
    )


def _png(scan: np.ndarray) -> bytes:
    image = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))
    file = io.BytesIO()
    # Stored without compression, because an epoch spends most of its time on decoding.
    image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB").save(file, "PNG", compress_level=0)
    return file.getvalue()
