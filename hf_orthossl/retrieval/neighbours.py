"""Find the nearest images of a data set under an encoder, exactly and in blocks, its duplicates and its outliers."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..data import ImageDataset, ImageSource
from ..data.unreadable import left_out_note
from ..distributed.collectives import on_main
from ..encoders import Encoder
from ..encoders.channels import match_channels
from ..encoders.embedding import VectorReader, embed_source
from ..evaluation.features import FeatureCache, are_equal
from ..evaluation.knn import nearest_neighbours
from .duplicates import Group, find_duplicates
from .pictures import Picture, check_queries, pictures_of, query_source


@dataclass
class Neighbour(Picture):
    """A neighbour of an image, and their cosine similarity."""

    similarity: float = 0.0


@dataclass
class Query(Picture):
    """An image whose neighbours were looked for, and these, the most similar first."""

    neighbours: list[Neighbour] = field(default_factory=list)


@dataclass
class Outlier(Picture):
    """An image far from all others: its mean cosine distance, 1 − similarity, to its k nearest ones."""

    distance: float = 0.0


@dataclass
class Neighbours:
    """Hold what the representations of a data set say about its images.

    Args:
        about (`dict`): What was measured: model, data set, split, number of images, k.
        queries (`list[Query]`): The queries, or a fixed sample of the images, each among the others.
        duplicates (`list[Group]`): Groups of images that are the same, exact ones first.
        outliers (`list[Outlier]`): The images farthest from their k nearest ones, the farthest first.
        notes (`list[str]`): Sentences on what a reader must know.
        collapsed (`bool`): Whether all representations are equal, so that none of the above has a meaning; all three
            lists are empty then.
    """

    about: dict[str, Any]
    queries: list[Query] = field(default_factory=list)
    duplicates: list[Group] = field(default_factory=list)
    outliers: list[Outlier] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    collapsed: bool = False

    @property
    def agreement(self) -> float | None:
        """Return the share of neighbours that have the class of their query; `None` if no classes are known."""
        pairs = [(query.label, near.label) for query in self.queries for near in query.neighbours]
        known = [one == other for one, other in pairs if one is not None and other is not None]
        return sum(known) / len(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """Return the whole as JSON values."""
        return asdict(self)


def nearest_others(
    representations: Tensor, k: int, *, chunk: int = 4096, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the k most similar other images of each image, by exact search in blocks.

    Args:
        representations (`Tensor` of shape `(N, D)`): The representations of at least 2 images.
        k (`int`): Number of neighbours; all others if there are fewer.
        chunk (`int`, defaults to 4096): Number of images compared with as many others at a time.
        shared (`bool`, defaults to `False`): See [`nearest_neighbours`].

    Returns:
        `tuple[Tensor, Tensor]`: Cosine similarities and positions, both `(N, min(k, N − 1))`, most similar first.
    """
    similarity, index = nearest_neighbours(representations, representations, k=k + 1, chunk=chunk, shared=shared)
    itself = index == torch.arange(len(index), device=index.device)[:, None]
    # An image with more equals than k need not be among its own nearest: one of them takes its place.
    itself[:, -1] |= ~itself.any(dim=1)
    others = (len(index), index.shape[1] - 1)
    return similarity[~itself].view(others), index[~itself].view(others)


def find_neighbours(
    encoder: Encoder,
    source: ImageSource,
    *,
    model: str | None = None,
    queries: Sequence[str | os.PathLike] = (),
    k: int = 8,
    shown: int = 8,
    cache: FeatureCache | None = None,
    **extraction: Any,
) -> Neighbours:
    """Find nearest images by the cosine similarity of representations, and with them duplicates and outliers.

    Every process of a run calls this function; they share out images and search, and all receive the result.

    Args:
        encoder ([`Encoder`]): The encoder.
        source ([`ImageSource`]): The data set, which is searched.
        model (`str`, *optional*): What the user calls the encoder, for the record.
        queries (sequence of paths, *optional*): Images whose neighbours to find; by default, a fixed sample of the data
            set, each among all others.
        k (`int`, defaults to 8): Number of neighbours.
        shown (`int`, defaults to 8): Number of sampled images without `queries`.
        cache ([`FeatureCache`], *optional*): Where representations are kept.
        extraction: Further arguments of [`extract_features`].

    Raises:
        ValueError: A query is no image, the data set has fewer than 2 images, or a representation is not finite.
        TooManyUnreadable: More images of the data set cannot be read than it allows.

    Example:
        >>> found = find_neighbours(load_encoder("runs/a", pretrained=True), load_source("images"), k=5)
        >>> found.queries[0].neighbours[0].path
    """
    if k < 1 or shown < 1:
        raise ValueError(f"k is {k} and shown is {shown}: both must be 1 or more")
    match_channels(encoder, source)
    # Before the data set is embedded, so that a query that is no image costs nothing.
    asked = on_main(lambda: check_queries(queries, source))
    own = embed_source(VectorReader(encoder), query_source(asked, source)).vectors if asked else None
    dataset = ImageDataset(source, image_size=encoder.image_size, unreadable="omit")
    features = (cache or FeatureCache(enabled=False)).features(encoder, dataset, shared=True, **extraction)
    bank, left_out = features.representations, {image.index for image in features.unreadable}
    rows = [row for row in range(len(dataset)) if row not in left_out]
    if len(rows) < 2:
        raise ValueError(f"dataset {source.name} has {len(rows)} image: pass a data set of at least 2 images")
    if not all(bool(part.isfinite().all()) for part in (bank, *([] if own is None else [own]))):
        raise ValueError(f"backbone {encoder.name!r} gives representations that are not finite: it may have diverged")
    k = min(k, len(rows) - 1)
    about = {"package": f"hf_orthossl {__version__}", "model": model or encoder.name, "dataset": source.name}
    found = Neighbours(about | {"split": source.split, "images": len(rows), "k": k})
    found.notes += left_out_note(features.unreadable, len(dataset), source.split)
    if are_equal(bank):
        found.collapsed = True
        found.notes.append(
            f"The representations of all {len(rows):,} images are equal: the encoder has collapsed, and no image is "
            "nearer than another. Look at it with orthossl spectra."
        )
        return found
    bank = bank.to(next(encoder.parameters()).device)
    similarity, index = (part.cpu() for part in nearest_others(bank, k, shared=True))
    if own is None:
        places = [round(place * (len(rows) - 1) / max(shown - 1, 1)) for place in range(min(shown, len(rows)))]
        best, nearest = similarity[places], index[places]
        pictures = pictures_of(source, [rows[place] for place in places])
    else:
        best, nearest = (part.cpu() for part in nearest_neighbours(bank, own.to(bank.device), k=k))
        pictures = [Picture(None, path) for path in asked]
    for picture, values, positions in zip(pictures, best.tolist(), nearest.tolist(), strict=True):
        near = pictures_of(source, [rows[position] for position in positions])
        neighbours = [Neighbour(**asdict(one), similarity=value) for one, value in zip(near, values, strict=True)]
        found.queries.append(Query(**asdict(picture), neighbours=neighbours))
    distance = 1 - similarity.double().mean(dim=1)
    farthest = distance.argsort(descending=True, stable=True)[: max(2 * shown, 20)]
    far = pictures_of(source, [rows[place] for place in farthest.tolist()])
    found.outliers = [
        Outlier(**asdict(one), distance=value) for one, value in zip(far, distance[farthest].tolist(), strict=True)
    ]
    # Only the main process decodes images again.
    found.duplicates = on_main(lambda: find_duplicates(source, rows, similarity, index))
    return found
