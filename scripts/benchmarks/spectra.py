"""A full spectral report at 32 px: weights, the pass over the images against a plain forward pass, memory."""

import argparse

import torch

from hf_orthossl import load_encoder, spectral_report
from hf_orthossl.spectra import FeatureSpectrum, weight_spectra
from hf_orthossl.spectra.covariance import MAX_DIM
from hf_orthossl.spectra.layers import LayerReader, evaluation_mode
from hf_orthossl.spectra.probe import feature_covariances

from .measure import measure, peak_rss

SIZE = 32
PARTS = {
    "forward": "plain forward pass",
    "features": "feature pass",
    "eigenvalues": "eigenvalues of the features",
    "weights": "spectra of the weights",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--backbone", nargs="+", default=["resnet50"], help="names as in load_encoder")
    parser.add_argument("--images", type=int, default=4096, help="random images")
    parser.add_argument("--batch", type=int, default=256, help="images per forward pass")
    # A round is minutes, not milliseconds.
    parser.set_defaults(repeats=3)


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row per encoder; print each as soon as it is measured."""
    if args.images < 2 or args.batch < 1:
        raise ValueError(f"--images is {args.images} and --batch {args.batch}: at least 2 and 1 are needed")
    rows = []
    for name in args.backbone:
        rows.append(_measure(name, args))
        print(_text(rows[-1]), flush=True)
    return rows


def _measure(name: str, args: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    encoder = load_encoder(name, image_size=SIZE).to(args.device)
    images = torch.randn(args.images, 3, SIZE, SIZE, device=args.device)
    # First, as memory that earlier calls have freed may still count as the process's.
    peak = peak_rss(lambda: spectral_report(encoder, images, batch_size=args.batch), args.device)
    reader, found = LayerReader(encoder), {}

    def forward() -> None:
        for batch in images.split(args.batch):
            encoder(batch)

    def features() -> None:
        found.update(feature_covariances(reader, images, args.batch, "avg", MAX_DIM)[0])

    def eigenvalues() -> None:
        for covariance in {id(covariance): covariance for covariance in found.values()}.values():
            FeatureSpectrum.from_covariance(covariance)

    contenders = {
        "forward": forward,
        "features": features,
        "eigenvalues": eigenvalues,
        "weights": lambda: weight_spectra(encoder),
    }
    with evaluation_mode(encoder):
        times = measure(contenders, args.device, args.repeats, warmup=1)
    return {
        "encoder": name,
        "images": args.images,
        "batch": args.batch,
        "image_size": SIZE,
        "times": times,
        "peak_bytes": peak,
    }


def _text(row: dict) -> str:
    lines = [f"{row['encoder']}, {row['images']:,} images of {SIZE} px in batches of {row['batch']}"]
    for part, text in PARTS.items():
        time = row["times"][part]
        ratio = f"{time['ratio']:8.2f}× the forward pass" if part == "features" else ""
        lines.append(f"  {text:<28}{time['median_ms'] / 1e3:>8.2f} ± {time['iqr_ms'] / 2e3:.2f} s{ratio}")
    lines.append(f"  {'peak memory of a report':<28}{row['peak_bytes'] / 1e6:>8.0f} MB above the model and the images")
    return "\n".join(lines)
