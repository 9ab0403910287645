"""Find images that a data set has more than once: neighbours under an encoder whose pixels confirm it.

Similar representations alone do not tell a copy from another image of the same thing, and of a poor encoder they tell
little. So they only propose pairs. A pair is exact if all decoded pixels are equal, whatever the formats of the files,
and near if small versions of the two images differ by little beside their contrast, as after another compression, a
change of size or a light retouch. Mirrored, cropped and recoloured copies are not found.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..data import ImageSource, UnreadableImage
from ..data.augment.crop import resized
from ..data.columns import unformatted
from ..data.decoding import decode_channels
from .pictures import Picture, pictures_of

# The similarity from which a pair is looked at. Copies have more under any encoder that was looked at.
PROPOSED = 0.9
# The side of the small versions in pixels; how much they may differ (root mean square over all pixels, on the scale
# [0, 1]): a share of the contrast (standard deviation), and rounding. Measured on CIFAR-10: 300 images saved as JPEG of
# quality 75 differ by at most 0.056 of their contrast, other images by at least 0.5; different digits by 0.073.
SIDE, SHARE, BESIDE = 16, 0.07, 0.005


@dataclass
class Group:
    """Images of a data set that are the same.

    Args:
        kind (`str`): "exact" if all decoded pixels are equal, else "near".
        images (`list[Picture]`): The images.
        similarity (`float`): The least cosine similarity of two images that were compared.
        difference (`float`): The largest root mean square difference of their small versions, on the scale [0, 1].
    """

    kind: str
    images: list[Picture]
    similarity: float
    difference: float

    @property
    def disagrees(self) -> bool:
        """Return whether images of the group have different classes."""
        return len({image.label for image in self.images} - {None}) > 1


class _Look(NamedTuple):
    """Hold what of an image is compared: a hash of its decoded pixels, and its small version `(16, 16, C)`, uint8."""

    digest: bytes
    small: np.ndarray


def find_duplicates(source: ImageSource, rows: Sequence[int], similarity: Tensor, index: Tensor) -> list[Group]:
    """Return groups of images that are the same, exact ones first, then the most similar.

    Args:
        source ([`ImageSource`]): The images.
        rows (`Sequence[int]`): The row of each of N images.
        similarity (`Tensor` of shape `(N, k)`): The similarities of each image's nearest others.
        index (`Tensor` of shape `(N, k)`): The positions of these among the N.
    """
    proposed = (similarity >= PROPOSED).nonzero().tolist()
    pairs: dict[tuple[int, int], float] = {}
    for one, place in proposed:
        other = int(index[one, place])
        pairs[min(one, other), max(one, other)] = float(similarity[one, place])
    looks = _looks(source, [rows[one] for one in sorted({one for pair in pairs for one in pair})])
    confirmed: dict[tuple[int, int], tuple[float, float]] = {}
    for (one, other), value in pairs.items():
        first, second = looks.get(rows[one]), looks.get(rows[other])
        if first is None or second is None:
            continue
        difference, bound = _difference(first.small, second.small)
        if first.digest == second.digest or difference <= bound:
            confirmed[one, other] = (value, difference)
    groups = [_group(source, rows, members, confirmed, looks) for members in _connected(confirmed)]
    return sorted(groups, key=lambda group: (group.kind, -group.similarity, group.images[0].path))


def _looks(source: ImageSource, rows: Sequence[int]) -> dict[int, _Look]:
    """Return the looks of images, by row; those that cannot be read any more have none."""
    column, looks = source.image_column, {}
    data = unformatted(source.dataset.select_columns([column]), column)
    for row in rows:
        try:
            image = decode_channels(data[row][column], source.pixels, page=source.page(row), within=source.within)
        except UnreadableImage:
            continue
        pixels = np.ascontiguousarray(np.asarray(image))
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        looks[row] = _Look(digest, np.asarray(resized(image, SIDE, SIDE, Image.Resampling.BILINEAR)))
    return looks


def _difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the difference of two small versions, and the largest one at which they are the same image."""
    one, other = (small.astype(np.float64) / 255 for small in (first, second))
    contrast = min(one.std(), other.std())
    return float(np.sqrt(np.square(one - other).mean())), SHARE * float(contrast) + BESIDE


def _connected(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of numbers that pairs connect, each sorted."""
    parent: dict[int, int] = {}

    def root(one: int) -> int:
        while parent.setdefault(one, one) != one:
            parent[one] = one = parent[parent[one]]
        return one

    for one, other in pairs:
        parent[root(other)] = root(one)
    groups: dict[int, list[int]] = {}
    for one in sorted(parent):
        groups.setdefault(root(one), []).append(one)
    return list(groups.values())


def _group(
    source: ImageSource,
    rows: Sequence[int],
    members: list[int],
    confirmed: dict[tuple[int, int], tuple[float, float]],
    looks: dict[int, _Look],
) -> Group:
    inside = set(members)
    values = [value for pair, value in confirmed.items() if pair[0] in inside]
    exact = len({looks[rows[one]].digest for one in members}) == 1
    return Group(
        "exact" if exact else "near",
        pictures_of(source, [rows[one] for one in members]),
        min(value for value, _ in values),
        max(difference for _, difference in values),
    )
