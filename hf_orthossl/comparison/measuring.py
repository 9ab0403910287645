"""What is measured of an encoder of a comparison: accuracies, label-free measures, and the ranks of its weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import ImageDataset, ImageSource, Recipe, Views, collate, get_recipe, without_unreadable
from ..encoders import Encoder
from ..evaluation import LabelledFeatures, knn_results, linear_results
from ..evaluation.features import normalized_batches
from ..hub.encoder_folder import spectra_rows
from ..regularization import OrthogonalityRegularizer
from ..spectra import FeatureSpectrum, SpectralReport, spectral_report
from ..spectra.stages import PATCH_TOKENS, REPRESENTATION
from .images import ComparedImages

# Images whose features are measured without labels, as in the paper; of those, images and views of each for LiDAR.
SPECTRA_IMAGES = 4096
LIDAR_IMAGES, LIDAR_VIEWS = 512, 5
# Label-free measure → attribute of a spectrum.
LABEL_FREE = {"effective_rank": "effective_rank", "rankme": "rankme", "lidar": "lidar", "alpha_req": "alpha"}
KNN_TEMPERATURE = 0.1


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
    """Return the top-1 of kNN (k = 200) and of a logistic regression whose penalty is chosen without the test images.

    Args:
        encoder ([`Encoder`]): The frozen encoder.
        train ([`ImageSource`]): The labelled images that vote and that the probe learns from.
        test ([`ImageSource`]): The labelled images that are classified.
    """
    features = LabelledFeatures.extract(encoder, train, test, cache_images="auto")
    knn = knn_results(features, temperatures=[KNN_TEMPERATURE])[0]
    return {"knn": knn.value, "linear": linear_results(features, protocol="lbfgs")[0].value}


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
        return knn_results(features, temperatures=[KNN_TEMPERATURE])[0].value
    report = label_free_report(encoder, images.held_out, views, name="candidate", lidar=by == "lidar")
    value = _measures(report.features[REPRESENTATION])[by]
    if value is None:
        return float("-inf")
    return -abs(value - 1) if by == "alpha_req" else value


def label_free_report(
    encoder: Encoder, source: ImageSource, views: str | Recipe, *, name: str, lidar: bool
) -> SpectralReport:
    """Return the spectra of an encoder on up to 4,096 images, with LiDAR of 512 of them in five views each if asked."""
    rows = spectra_rows(int(source.num_rows or 0), SPECTRA_IMAGES)
    dataset = ImageDataset(source, image_size=encoder.image_size, indices=rows, unreadable="omit", cache_images="auto")
    return spectral_report(
        encoder,
        normalized_batches(encoder, dataset),
        views=_lidar_views(encoder, source, views) if lidar else None,
        metadata={"model": name, "dataset": source.name, "split": source.split},
    )


def _lidar_views(encoder: Encoder, source: ImageSource, views: str | Recipe) -> Iterator[Tensor]:
    """Yield batches `(n, v, C, H, W)` of the recipe's first view, drawn v times for each image."""
    recipe = get_recipe(views)
    recipe = Recipe(recipe.name, recipe.views[:1] * LIDAR_VIEWS, recipe.source)
    make = Views(recipe, encoder.image_size, encoder.mean, encoder.std)
    rows = spectra_rows(int(source.num_rows or 0), LIDAR_IMAGES)
    dataset = ImageDataset(source, views=recipe, image_size=encoder.image_size, indices=rows, unreadable="omit")
    device = next(encoder.parameters()).device
    for number, items in enumerate(DataLoader(dataset, batch_size=64, collate_fn=collate)):
        batch = without_unreadable(items)
        if len(batch["labels"]):
            whole = batch.get("crops", batch.get("pixel_values"))
            images = [part.to(device) for part in whole] if isinstance(whole, list) else whole.to(device)
            yield torch.stack(make(images, seed=number), dim=1)


def _measures(spectrum: FeatureSpectrum) -> dict[str, Any]:
    values = {name: getattr(spectrum, attribute) for name, attribute in LABEL_FREE.items()}
    return values | {"dim": spectrum.dim}
