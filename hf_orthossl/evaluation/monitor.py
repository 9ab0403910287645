"""kNN accuracy of an encoder on a small labelled subset, cheap enough to take before and after training."""

import numpy as np
import torch
from torch import nn

from ..data import ImageDataset, ImageSource
from .features import Features, extract_features
from .knn import knn_accuracy
from .results import Result


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
