"""Measure the weights that a run starts from, kept in its folder to compare the end with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..data import ImageDataset, ImageSource
from ..data.listing import HELD_OUT, split_kind
from ..encoders import Encoder
from ..evaluation import Features, Result, extract_features, read_results, write_results
from ..evaluation.drift import linear_cka, mean_cosine
from ..files import replace_file, replacing_folder
from ..hub.encoder_folder import spectra_rows, training_spectra
from ..spectra import SpectralReport
from ..spectra.report import ARRAYS, SCALARS

# Folder of a run, and its files.
START = "start"
RESULTS, PENALTY, FEATURES = "results.json", "penalty.json", "representations.safetensors"
# The fewest images of which representations can be compared.
FEWEST = 2


@dataclass(frozen=True)
class Beginning:
    """Measurements before step 1 of a run that starts from given weights.

    Args:
        results (`list[Result]`): kNN accuracies; empty without labels.
        penalty (`float`, *optional*): Σ OR(W) before γ; `None` without a penalty.
        features ([`Features`], *optional*): Representations of held-out images; `None` for a stream.
        spectra ([`SpectralReport`]): Spectra of weights and features.
    """

    results: list[Result]
    penalty: float | None
    features: Features | None
    spectra: SpectralReport


def measure_start(
    folder: Path, encoder: Encoder, source: ImageSource, *, results: list[Result], penalty: float | None
) -> Beginning:
    """Measure the encoder before step 1, and write that into the folder of the run, for its end and for `resume`.

    Args:
        folder (`Path`): Folder of the run.
        encoder ([`Encoder`]): The encoder with the weights that the run starts from.
        source ([`ImageSource`]): The images that the run trains on.
        results (`list[Result]`): kNN accuracies, which have been measured already.
        penalty (`float`, *optional*): Σ OR(W) before γ.
    """
    images = held_out_images(source, encoder.image_size)
    features = None if images is None else extract_features(encoder, images)
    beginning = Beginning(results, penalty, features, training_spectra(encoder, source))
    with replacing_folder(folder / START, (RESULTS, PENALTY, FEATURES, SCALARS, ARRAYS)) as unfinished:
        write_results(unfinished / RESULTS, results)
        replace_file(unfinished / PENALTY, json.dumps(penalty))
        if features is not None:
            save_file({"representations": features.representations, "labels": features.labels}, unfinished / FEATURES)
        beginning.spectra.save(unfinished)
    return beginning


def read_start(folder: Path) -> Beginning | None:
    """Return what [`measure_start`] wrote into the folder of a run, `None` if it is not there."""
    start = folder / START
    if not (start / RESULTS).is_file():
        return None
    tensors = load_file(start / FEATURES) if (start / FEATURES).is_file() else None
    return Beginning(
        read_results(start / RESULTS),
        json.loads((start / PENALTY).read_text(encoding="utf-8")),
        None if tensors is None else Features(tensors["representations"], tensors["labels"]),
        SpectralReport.load(start),
    )


def drift_results(encoder: Encoder, source: ImageSource, beginning: Beginning) -> list[Result]:
    """Return linear CKA and mean cosine between the representations of the start and those of an encoder now.

    Args:
        encoder ([`Encoder`]): The trained encoder.
        source ([`ImageSource`]): The images that the run trained on.
        beginning ([`Beginning`]): The measurements before step 1.
    """
    images = held_out_images(source, encoder.image_size)
    if images is None or beginning.features is None:
        return []
    start, end = beginning.features.representations, extract_features(encoder, images).representations
    if len(start) != len(end) or len(end) < FEWEST or not torch.isfinite(end).all():
        return []
    about: dict[str, Any] = {"images": len(end), "step": "end"}
    values = {"linear_cka": linear_cka(start, end), "mean_cosine": mean_cosine(start, end)}
    return [
        Result("drift", images.source.name, images.source.split, name, value, about) for name, value in values.items()
    ]


def held_out_images(source: ImageSource, image_size: int, most: int = 1024) -> ImageDataset | None:
    """Return evenly spaced images of a held-out split, or of the training images without one; `None` for a stream."""
    if source.num_rows is None:
        return None
    held_out = (
        split for split in source.splits if split_kind(split) in HELD_OUT and split not in source.split.split("+")
    )
    split = next(held_out, None)
    chosen = source if split is None else source.with_split(split)
    assert chosen.num_rows is not None
    return ImageDataset(chosen, image_size=image_size, indices=spectra_rows(chosen.num_rows, most), unreadable="omit")
