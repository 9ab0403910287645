"""Encoder folders without weights, as a card is rendered from."""

import json
from pathlib import Path

import torch

from hf_orthossl.evaluation import Result, write_results
from hf_orthossl.hub.encoder_record import EncoderRecord
from hf_orthossl.spectra import FeatureSpectrum, SpectralReport, StreamingCovariance, WeightSpectrum

RESULTS = [
    Result("knn", "uoft-cs/cifar10", "test", "top1", 0.25, {"k": 20, "step": 0}),
    Result("knn", "uoft-cs/cifar10", "test", "top1", 0.75, {"k": 20, "step": "end"}),
]


def record_of(**changes) -> EncoderRecord:
    values = {
        "backbone": "resnet18",
        "num_features": 6,
        "image_size": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "pooling": "pooler_output",
        "method": "simclr",
        "method_config": {"temperature": 0.5},
        "regularizer": "so",
        "gamma": 1e-6,
        "dataset": "uoft-cs/cifar10",
        "split": "train",
        "num_images": 50000,
        "version": "0.1.0",
    }
    return EncoderRecord(**values | changes)


def covariance_of(features: torch.Tensor) -> FeatureSpectrum:
    covariance = StreamingCovariance(features.shape[1])
    covariance.update(features)
    return FeatureSpectrum.from_covariance(covariance)


def report_of(features: torch.Tensor | None = None, weights: dict[str, torch.Tensor] | None = None) -> SpectralReport:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator) if features is None else features
    weights = weights or {"fc.weight": torch.randn(8, 6, generator=generator)}
    return SpectralReport(
        weights={name: WeightSpectrum.from_matrix(matrix, "Linear") for name, matrix in weights.items()},
        features={"representation": covariance_of(features)},
        metadata={"model": "resnet18", "split": "train"},
    )


def encoder_folder(
    folder: Path,
    record: EncoderRecord | dict | None = None,
    results: list[Result] = RESULTS,
    report: SpectralReport | None = None,
    **config,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    block = record if isinstance(record, dict) else (record or record_of()).to_dict()
    content = {"architecture": "resnet18", "orthossl": block} | config
    (folder / "config.json").write_text(json.dumps(content))
    write_results(folder / "results.json", results)
    (report or report_of()).save(folder)
    return folder
