"""k-nearest-neighbour classification of frozen representations, and a monitor of it during training."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import ImageDataset, ImageSource
from ..distributed.collectives import all_gather_rows, shard_range, world_size
from .features import Features, extract_features
from .results import Result


def knn_scores(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    k: int = 200,
    temperature: float | None = 0.1,
    chunk: int = 4096,
    shared: bool = False,
) -> Tensor:
    """Class scores of queries by a vote of their k nearest neighbours under cosine similarity.

    Each neighbour adds exp(s/T) to its class (Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", CVPR 2018, section 3.4), or 1 without a temperature.

    Args:
        bank (`Tensor` of shape `(N, D)`): Labelled representations.
        labels (`Tensor` of shape `(N,)`): Their classes.
        queries (`Tensor` of shape `(M, D)`): Representations to classify.
        num_classes (`int`): Number of classes C.
        k (`int`, defaults to 200): Neighbours that vote; the whole bank if it is smaller.
        temperature (`float`, *optional*, defaults to 0.1): T > 0 of the weights; `None` weighs all alike.
        chunk (`int`, defaults to 4096): Queries and bank entries compared at a time: memory is O(chunk²), so that an
            ImageNet-size bank fits.
        shared (`bool`, defaults to `False`): See [`nearest_neighbours`].

    Returns:
        `Tensor` of shape `(M, C)`: Scores, higher is likelier.

    Raises:
        ValueError: k < 1 or T ≤ 0.
    """
    similarity, index = nearest_neighbours(bank, queries, k=k, chunk=chunk, shared=shared)
    return neighbour_votes(similarity, labels[index], num_classes=num_classes, temperature=temperature)


def nearest_neighbours(
    bank: Tensor, queries: Tensor, *, k: int = 200, chunk: int = 4096, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """The k entries of a bank that are most similar to each query.

    Args:
        bank (`Tensor` of shape `(N, D)`), queries (`Tensor` of shape `(M, D)`): Representations.
        k (`int`, defaults to 200): Neighbours; the whole bank if it is smaller.
        chunk (`int`, defaults to 4096): See [`knn_scores`].
        shared (`bool`, defaults to `False`): Share the queries out over the processes of the run, all of which call
            with the same bank and queries and all of which get all neighbours.

    Returns:
        `tuple[Tensor, Tensor]`: Cosine similarities and positions in the bank, both `(M, min(k, N))`, most similar
        first.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}: at least 1 neighbour must vote, as in 200")
    if shared and world_size() > 1:
        own = shard_range(len(queries))
        found = nearest_neighbours(bank, queries[own.start : own.stop], k=k, chunk=chunk)
        similarity, index = (all_gather_rows(part).to(bank.device) for part in found)
        return similarity, index
    bank = F.normalize(bank, dim=1)
    found = []
    for block in F.normalize(queries, dim=1).split(chunk):
        best, index = block.new_empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.long, device=bank.device)
        # The best k of the best k so far and the best k of the next part are the best k of all.
        for start in range(0, len(bank), chunk):
            part = bank[start : start + chunk]
            similarity, position = (block @ part.T).topk(min(k, len(part)), dim=1)
            best, index = torch.cat([best, similarity], dim=1), torch.cat([index, position + start], dim=1)
            best, chosen = best.topk(min(k, best.shape[1]), dim=1)
            index = index.gather(1, chosen)
        found.append((best, index))
    return torch.cat([best for best, _ in found]), torch.cat([index for _, index in found])


def neighbour_votes(
    similarity: Tensor, classes: Tensor, *, num_classes: int, temperature: float | None = 0.1
) -> Tensor:
    """Class scores `(M, C)` by a vote of neighbours, see [`knn_scores`].

    Args:
        similarity (`Tensor` of shape `(M, k)`): Cosine similarities of the neighbours.
        classes (`Tensor` of shape `(M, k)`): Their classes.
        num_classes (`int`): C.
        temperature (`float`, *optional*, defaults to 0.1): T > 0 of the weights; `None` weighs all alike.

    Raises:
        ValueError: T ≤ 0.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}: it must be above 0, as in 0.1")
    weights = torch.ones_like(similarity) if temperature is None else (similarity / temperature).exp()
    return weights.new_zeros(len(similarity), num_classes).scatter_add_(1, classes, weights)


def knn_accuracy(
    bank: Features,
    queries: Features,
    *,
    num_classes: int | None = None,
    k: int = 200,
    temperature: float | None = 0.1,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy of [`knn_scores`], in [0, 1].

    Args:
        bank, queries ([`Features`]): Labelled representations; entries without a label (−1) are left out.
        num_classes (`int`, *optional*): Number of classes; the largest label plus one by default.
        k, temperature: See [`knn_scores`].

    Raises:
        ValueError: bank or queries have no labels.
    """
    known, asked = bank.labels >= 0, queries.labels >= 0
    if not known.any() or not asked.any():
        raise ValueError("kNN needs labels in both splits: pass --label_column, or leave the evaluation out")
    if num_classes is None:
        num_classes = int(max(bank.labels.max(), queries.labels.max())) + 1
    scores = knn_scores(
        bank.representations[known],
        bank.labels[known],
        queries.representations[asked],
        num_classes=num_classes,
        k=k,
        temperature=temperature,
    )
    ranked = scores.topk(min(5, num_classes), dim=1).indices
    hits = ranked == queries.labels[asked][:, None]
    return {"top1": hits[:, 0].double().mean().item(), "top5": hits.any(dim=1).double().mean().item()}


class KNNMonitor:
    """Measures kNN accuracy with the same images each time it is asked.

    Args:
        source ([`ImageSource`]): Labelled images; the bank is drawn from them.
        held_out ([`ImageSource`], *optional*): Where queries come from; without, a fifth of the bank's images are set
            aside as queries.
        image_size (`int`): Side of the encoder's input in pixels.
        images (`int`, defaults to 2048): Images in the bank at most; half as many queries.
        k (`int`, defaults to 20): Neighbours that vote. Small, as a few thousand images have few per class.
        temperature (`float`, defaults to 0.07): Temperature of their votes.
        seed (`int`, defaults to 0): Decides which images.
        progress (`bool`, defaults to `True`): Show a progress bar.
    """

    def __init__(
        self,
        source: ImageSource,
        held_out: ImageSource | None,
        image_size: int,
        *,
        images: int = 2048,
        k: int = 20,
        temperature: float = 0.07,
        seed: int = 0,
        progress: bool = True,
    ):
        self.progress = progress
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(source.num_rows)[:images]
        aside = len(chosen) // 5
        self.queries_from = held_out or source
        if held_out is None:
            queries, chosen = chosen[:aside], chosen[aside:]
        else:
            queries = rng.permutation(held_out.num_rows)[: max(images // 2, 1)]
        self.bank = ImageDataset(source, image_size=image_size, indices=chosen.tolist())
        self.queries = ImageDataset(self.queries_from, image_size=image_size, indices=queries.tolist())
        self.settings = {"k": k, "temperature": temperature, "bank": len(chosen), "queries": len(queries)}

    def features(self, encoder: nn.Module, *, shared: bool = False) -> tuple[Features, Features]:
        """Features of bank and queries; classes that both name are matched by name.

        With `shared`, the processes of the run share the images out, and all of them get all features.
        """
        bank, queries = (
            extract_features(encoder, dataset, shared=shared, progress=f"kNN {name}" if self.progress else None)
            for dataset, name in ((self.bank, "bank"), (self.queries, "queries"))
        )
        known, named = self.bank.source.class_names, self.queries_from.class_names
        if known and named and known != named:
            places = torch.tensor([known.index(name) if name in known else -1 for name in named])
            labels = torch.where(queries.labels < 0, -1, places[queries.labels.clamp(min=0)])
            queries = Features(queries.representations, labels)
        return bank, queries

    def measure(self, encoder: nn.Module, step: int | str, *, shared: bool = False) -> list[Result]:
        """Top-1 and top-5 accuracy now, labelled with the training step; `shared` as in `features`."""
        return self.results(*self.features(encoder, shared=shared), step)

    def results(self, bank: Features, queries: Features, step: int | str) -> list[Result]:
        """Top-1 and top-5 accuracy of features already extracted."""
        k, temperature = self.settings["k"], self.settings["temperature"]
        accuracy = knn_accuracy(bank, queries, k=k, temperature=temperature)
        about = {**self.settings, "step": step}
        name, split = self.queries_from.name, self.queries_from.split
        return [Result("knn", name, split, metric, value, about) for metric, value in accuracy.items()]
