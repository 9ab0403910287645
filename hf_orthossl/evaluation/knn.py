"""k-nearest-neighbour classification of frozen representations, once or repeatedly during training."""

import dataclasses
import logging

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import ImageDataset, ImageSource
from ..data.unreadable import left_out_note
from ..distributed.collectives import all_gather_rows, rank, shard_range, world_size
from ..encoders import Encoder
from ..messages import warn_above_bars
from .features import Features, are_equal, extract_features
from .results import Result, unreadable_counts

logger = logging.getLogger(__name__)

# The protocol of DINO, Caron et al. 2021. It is the default everywhere, so that one model has one number.
NEIGHBOURS = 20
TEMPERATURE = 0.07


def knn_scores(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    k: int = NEIGHBOURS,
    temperature: float | None = TEMPERATURE,
    chunk: int = 4096,
    shared: bool = False,
) -> Tensor:
    """Return class scores of queries by a vote of their k nearest neighbours under cosine similarity.

    Each neighbour adds exp(s/T) to the score of its class, or 1 without a temperature.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section
    3.4.

    Args:
        bank (`Tensor` of shape `(N, D)`): Labelled representations.
        labels (`Tensor` of shape `(N,)`): Their classes.
        queries (`Tensor` of shape `(M, D)`): Representations to classify.
        num_classes (`int`): Number of classes C.
        k (`int`, defaults to 20): Number of neighbours that vote; the whole bank if it is smaller.
        temperature (`float`, *optional*, defaults to 0.07): Temperature T > 0 of the weights; `None` gives all
            neighbours equal weights.
        chunk (`int`, defaults to 4096): Number of queries and of bank entries compared at a time. Memory is O(chunk²),
            so that a bank of the size of ImageNet fits.
        shared (`bool`, defaults to `False`): See [`nearest_neighbours`].

    Returns:
        `Tensor` of shape `(M, C)`: Scores; the highest is the predicted class. If all representations are equal, so
        that no entry is nearer than another, the whole bank votes.

    Raises:
        ValueError: If k < 1 or T ≤ 0.
    """
    if are_equal(bank, queries):
        return class_counts(labels, num_classes, len(queries))
    similarity, index = nearest_neighbours(bank, queries, k=k, chunk=chunk, shared=shared)
    return neighbour_votes(similarity, labels[index], num_classes=num_classes, temperature=temperature)


def class_counts(labels: Tensor, num_classes: int, queries: int) -> Tensor:
    """Return the scores `(queries, C)` of a vote of all images of a bank, the same for each query.

    Args:
        labels (`Tensor` of shape `(N,)`): Classes of the bank.
        num_classes (`int`): Number of classes C.
        queries (`int`): Number of queries.
    """
    return torch.bincount(labels, minlength=num_classes).float().expand(queries, -1)


def nearest_neighbours(
    bank: Tensor, queries: Tensor, *, k: int = NEIGHBOURS, chunk: int = 4096, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Find the k entries of a bank that are most similar to each query.

    Args:
        bank (`Tensor` of shape `(N, D)`): Representations to choose from.
        queries (`Tensor` of shape `(M, D)`): Representations whose neighbours to find.
        k (`int`, defaults to 20): Number of neighbours; the whole bank if it is smaller.
        chunk (`int`, defaults to 4096): See [`knn_scores`].
        shared (`bool`, defaults to `False`): Divide the queries among the processes of the run. All of them must call
            this function with the same bank and queries, and all receive all neighbours.

    Returns:
        `tuple[Tensor, Tensor]`: Cosine similarities and positions in the bank, both `(M, min(k, N))`, most similar
        first.

    Raises:
        ValueError: If k < 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1, as in 20")
    if shared and world_size() > 1:
        own = shard_range(len(queries))
        part = nearest_neighbours(bank, queries[own.start : own.stop], k=k, chunk=chunk)
        similarity, index = (all_gather_rows(rows).to(bank.device) for rows in part)
        return similarity, index
    bank = F.normalize(bank, dim=1)
    neighbours: list[tuple[Tensor, Tensor]] = []
    for block in F.normalize(queries, dim=1).split(chunk):
        best, index = block.new_empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.long, device=bank.device)
        # Merge the best k so far with the best k of the next part.
        for start in range(0, len(bank), chunk):
            entries = bank[start : start + chunk]
            similarity, position = (block @ entries.T).topk(min(k, len(entries)), dim=1)
            best, index = torch.cat([best, similarity], dim=1), torch.cat([index, position + start], dim=1)
            best, chosen = best.topk(min(k, best.shape[1]), dim=1)
            index = index.gather(1, chosen)
        neighbours.append((best, index))
    return torch.cat([best for best, _ in neighbours]), torch.cat([index for _, index in neighbours])


def neighbour_votes(
    similarity: Tensor, classes: Tensor, *, num_classes: int, temperature: float | None = TEMPERATURE
) -> Tensor:
    """Return class scores `(M, C)` by a vote of neighbours, see [`knn_scores`].

    Args:
        similarity (`Tensor` of shape `(M, k)`): Cosine similarities of the neighbours.
        classes (`Tensor` of shape `(M, k)`): Their classes.
        num_classes (`int`): Number of classes C.
        temperature (`float`, *optional*, defaults to 0.07): Temperature T > 0 of the weights; `None` gives all
            neighbours equal weights.

    Raises:
        ValueError: If T ≤ 0.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}: it must be above 0, as in 0.07")
    weights = torch.ones_like(similarity) if temperature is None else (similarity / temperature).exp()
    return weights.new_zeros(len(similarity), num_classes).scatter_add_(1, classes, weights)


def knn_accuracy(
    bank: Features,
    queries: Features,
    *,
    num_classes: int | None = None,
    k: int = NEIGHBOURS,
    temperature: float | None = TEMPERATURE,
) -> dict[str, float]:
    """Return top-1 and top-5 accuracy of [`knn_scores`], in [0, 1].

    Args:
        bank ([`Features`]): Representations that vote; those without a label (−1) are excluded.
        queries ([`Features`]): Representations to classify; those without a label (−1) are excluded.
        num_classes (`int`, *optional*): Number of classes; those that occur by default.
        k (`int`, defaults to 20): See [`knn_scores`].
        temperature (`float`, *optional*, defaults to 0.07): See [`knn_scores`].

    Raises:
        ValueError: If bank or queries have no labels.
    """
    known, asked = bank.labels >= 0, queries.labels >= 0
    if not known.any() or not asked.any():
        raise ValueError("kNN needs labels in both splits: pass --label_column, or omit the evaluation")
    bank_labels, query_labels = bank.labels[known], queries.labels[asked]
    if num_classes is None:
        present, places = torch.cat([bank_labels, query_labels]).unique(return_inverse=True)
        num_classes = len(present)
        bank_labels, query_labels = places.split([len(bank_labels), len(query_labels)])
    scores = knn_scores(
        bank.representations[known],
        bank_labels,
        queries.representations[asked],
        num_classes=num_classes,
        k=k,
        temperature=temperature,
    )
    ranked = scores.topk(min(5, num_classes), dim=1).indices
    hits = ranked == query_labels[:, None]
    return {"top1": hits[:, 0].double().mean().item(), "top5": hits.any(dim=1).double().mean().item()}


class KNNMonitor:
    """Measure kNN accuracy on the same images throughout training.

    Args:
        source ([`ImageSource`]): Labelled images; the bank is drawn from them.
        held_out ([`ImageSource`], *optional*): Source of the queries; without it, a fifth of the bank's images are the
            queries instead.
        image_size (`int`): Side of the encoder's input in pixels.
        images (`int`, defaults to 2048): Maximum number of images in the bank; the number of queries is half of it.
        k (`int`, defaults to 20): Number of neighbours that vote.
        temperature (`float`, defaults to 0.07): Temperature of their votes.
        seed (`int`, defaults to 0): Seed that selects the images.
        progress (`bool`, defaults to `True`): Show a progress bar.
    """

    def __init__(
        self,
        source: ImageSource,
        held_out: ImageSource | None,
        image_size: int,
        *,
        images: int = 2048,
        k: int = NEIGHBOURS,
        temperature: float = TEMPERATURE,
        seed: int = 0,
        progress: bool = True,
    ):
        self.progress = progress
        self._said = self._warned = False
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(source.num_rows)[:images]
        fifth = len(chosen) // 5
        self.queries_from = source if held_out is None else held_out.as_in(source)
        if held_out is None:
            queries, chosen = chosen[:fifth], chosen[fifth:]
        else:
            queries = rng.permutation(held_out.num_rows)[: max(images // 2, 1)]
        measured = {"image_size": image_size, "unreadable": "omit"}
        self.bank = ImageDataset(source, indices=chosen.tolist(), **measured)
        self.queries = ImageDataset(self.queries_from, indices=queries.tolist(), **measured)
        self.k, self.temperature = k, temperature
        self.settings = {"k": k, "temperature": temperature, "bank": len(chosen), "queries": len(queries)}

    def _missing(self, bank: Tensor, queries: Tensor) -> str | None:
        """Return what the labels of bank and queries lack for an accuracy, or `None`."""
        if not (bank >= 0).any() or not (queries >= 0).any():
            return "too few images have a label to classify some by the others"
        classes = torch.cat([bank, queries]).clamp(min=-1).unique()
        return "all images have the same class" if int((classes >= 0).sum()) < 2 else None

    def features(self, encoder: Encoder, *, shared: bool = False) -> tuple[Features, Features]:
        """Return the features of bank and queries, with classes matched by name if both have names.

        Args:
            encoder ([`Encoder`]): The encoder.
            shared (`bool`, defaults to `False`): Divide the images among the processes of the run. All of them must
                call this method, and all receive all features.
        """
        bank, queries = (
            extract_features(encoder, dataset, shared=shared, progress=f"kNN {name}" if self.progress else None)
            for dataset, name in ((self.bank, "bank"), (self.queries, "queries"))
        )
        if not self._said and rank() == 0:
            for features, dataset in ((bank, self.bank), (queries, self.queries)):
                for note in left_out_note(features.unreadable, len(dataset), dataset.source.split):
                    warn_above_bars(logger, f"kNN: {note}")
        self._said = True
        known, named = self.bank.source.class_names, self.queries_from.class_names
        if known and named and known != named:
            places = torch.tensor([known.index(name) if name in known else -1 for name in named])
            labels = torch.where(queries.labels < 0, -1, places[queries.labels.clamp(min=0)])
            queries = dataclasses.replace(queries, labels=labels)
        return bank, queries

    def measure(self, encoder: Encoder, step: int | str, *, shared: bool = False) -> list[Result]:
        """Return top-1 and top-5 accuracy with the training step; for `shared` see `features`."""
        return self.results(*self.features(encoder, shared=shared), step)

    def results(self, bank: Features, queries: Features, step: int | str) -> list[Result]:
        """Return top-1 and top-5 accuracy of features that are already extracted.

        Nothing is measured, and a warning says so once, if the images have fewer than two classes: every accuracy
        would be 1.
        """
        reason = self._missing(bank.labels, queries.labels)
        if reason is not None:
            if step in (0, "end") and not self._warned:
                warn_above_bars(logger, f"kNN is not measured: {reason}")
            self._warned = True
            return []
        accuracy = knn_accuracy(bank, queries, k=self.k, temperature=self.temperature)
        about = {**self.settings, "bank": len(bank.labels), "queries": len(queries.labels), "step": step}
        about |= self.bank.source.pixels.settings() | unreadable_counts(len(bank.unreadable), len(queries.unreadable))
        name, split = self.queries_from.name, self.queries_from.split
        return [Result("knn", name, split, metric, value, about) for metric, value in accuracy.items()]
