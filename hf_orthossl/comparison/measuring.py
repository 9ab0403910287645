"""Measure an encoder of a comparison: accuracies, label-free measures, and the ranks of its weights."""

import math
from pathlib import Path
from typing import Any

import torch

from ..data import ImageDataset, ImageSource, Recipe, Views
from ..encoders import Encoder
from ..encoders.embedding import normalized_batches
from ..evaluation import LabelledFeatures, knn_results, linear_results
from ..hub.encoder_folder import spectra_rows
from ..regularization import OrthogonalityRegularizer
from ..spectra import FeatureSpectrum, SpectralReport, spectral_report
from ..spectra.stages import PATCH_TOKENS, REPRESENTATION
from ..training.callbacks.watching import RandomViews
from ..training.watching import MEASURES
from .images import ComparedImages

# Images whose features are measured without labels, as in the paper, and those of which LiDAR compares views.
SPECTRA_IMAGES, LIDAR_IMAGES = 4096, 512
# The protocol of Wu et al. 2018, by which all runs of model_cards/remedies were measured.
NEIGHBOURS, TEMPERATURE = 200, 0.1
# λ of the linear probe, on standardized features: not chosen for each encoder, which takes eight fits instead of one.
LINEAR_PENALTY = 1e-3


def measure_encoder(
    encoder: Encoder, images: ComparedImages, views: str | Recipe, folder: Path, *, name: str
) -> dict[str, Any]:
    """Measure an encoder on the test split, and write its spectra into a folder.

    Args:
        encoder ([`Encoder`]): The encoder, in evaluation mode.
        images ([`ComparedImages`]): The images of the comparison.
        views (`str` or [`Recipe`]): The augmentations of the run, which LiDAR compares views by.
        folder (`Path`): Receives the spectra, as [`~spectra.SpectralReport`] saves them.
        name (`str`): What the report calls the encoder.

    Returns:
        `dict`: JSON values: `knn` and `linear` (top-1 in [0, 1], with labels), `representation` and `patch_tokens` (the
        label-free measures, with the `dim`), `weights_relative_rank`, `weights_so` (Σ SO before γ), and `collapse`
        (sentences about what does not vary).
    """
    row: dict[str, Any] = {}
    if images.labelled:
        assert images.test is not None
        row |= accuracies(encoder, images.train, images.test)
    report = label_free_report(encoder, images.measured, views, name=name, lidar=True)
    report.save(folder)
    row |= {
        layer: _measures(report.features[layer]) for layer in (REPRESENTATION, PATCH_TOKENS) if layer in report.features
    }
    summary = report.summary()
    row["weights_relative_rank"] = summary.get("weights/relative_rank_mean")
    with torch.no_grad():
        row["weights_so"] = float(OrthogonalityRegularizer(encoder, "so")())
    row["collapse"] = report.complete_collapse()
    return row


def accuracies(encoder: Encoder, train: ImageSource, test: ImageSource) -> dict[str, float]:
    """Return the top-1 of kNN (k = 200) and of a logistic regression on standardized features, fitted to convergence.

    Args:
        encoder ([`Encoder`]): The frozen encoder.
        train ([`ImageSource`]): The labelled images that vote and that the probe learns from.
        test ([`ImageSource`]): The labelled images that are classified.
    """
    features = LabelledFeatures.extract(encoder, train, test, cache_images="auto")
    knn = knn_results(features, k=NEIGHBOURS, temperatures=[TEMPERATURE])[0]
    linear = linear_results(features, protocol="lbfgs", penalty=LINEAR_PENALTY)[0]
    return {"knn": knn.value, "linear": linear.value}


def score(encoder: Encoder, images: ComparedImages, views: str | Recipe, by: str) -> float:
    """Return by how much an encoder is to be preferred, on the held-out images; higher is better.

    Args:
        encoder ([`Encoder`]): An encoder that learned from `images.tuning`.
        images ([`ComparedImages`]): The images of the comparison.
        views (`str` or [`Recipe`]): The augmentations of the run.
        by (`str`): "knn", or a label-free measure. For α-ReQ, the nearer α is to 1 the better, as its authors propose.
    """
    assert images.tuning is not None
    assert images.held_out is not None
    if by == "knn":
        features = LabelledFeatures.extract(encoder, images.tuning, images.held_out, cache_images="auto")
        return knn_results(features, k=NEIGHBOURS, temperatures=[TEMPERATURE])[0].value
    report = label_free_report(encoder, images.held_out, views, name="candidate", lidar=by == "lidar")
    measure = MEASURES[by]
    value = measure.value(report.features[REPRESENTATION])
    return -math.inf if value is None else -measure.badness(value)


def label_free_report(
    encoder: Encoder, source: ImageSource, views: str | Recipe, *, name: str, lidar: bool
) -> SpectralReport:
    """Return the spectra of an encoder on up to 4,096 images, with LiDAR of random views of 512 of them if asked."""
    rows, some = (spectra_rows(int(source.num_rows or 0), images) for images in (SPECTRA_IMAGES, LIDAR_IMAGES))
    dataset = ImageDataset(source, image_size=encoder.image_size, indices=rows, unreadable="omit", cache_images="auto")
    made = Views(views, encoder.image_size, encoder.mean, encoder.std)
    return spectral_report(
        encoder,
        normalized_batches(encoder, dataset),
        views=RandomViews(encoder, source, made, some, seed=0) if lidar else None,
        metadata={"model": name, "dataset": source.name, "split": source.split},
    )


def _measures(spectrum: FeatureSpectrum) -> dict[str, Any]:
    return {name: measure.value(spectrum) for name, measure in MEASURES.items()} | {"dim": spectrum.dim}
