"""Vectors of a data set written to a file: images per second beside a plain forward pass, and memory by size."""

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from hf_orthossl import load_encoder, load_source
from hf_orthossl.data import ImageDataset, ImageSource
from hf_orthossl.encoders import Encoder
from hf_orthossl.retrieval import embed_to_file
from hf_orthossl.spectra.layers import evaluation_mode

from .measure import measure, peak_rss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--backbone", default="resnet10t", help="name as in load_encoder, untrained")
    parser.add_argument("--dataset", default="digits", help="images, such as a folder with CIFAR-10")
    parser.add_argument("--split", default="train+test", help="their split")
    parser.add_argument("--images", type=int, nargs="+", default=[360, 1797], help="memory is measured with each")
    parser.add_argument("--image_size", type=int, default=32, help="side of the input")
    parser.add_argument("--batch", type=int, default=256, help="images per forward pass")
    # A round is minutes, not milliseconds.
    parser.set_defaults(repeats=3)


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for each number of images; print each as soon as it is measured. The first one is timed."""
    source = load_source(args.dataset, split=args.split)
    if min(args.images) < 1 or max(args.images) > (source.num_rows or 0):
        raise ValueError(
            f"--images is {args.images}: {args.dataset} has {source.num_rows:,} images, pass 1 or more of them"
        )
    rows = []
    for number, images in enumerate(args.images):
        # Each in a new process, as memory that earlier calls have freed may still count as the process's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            row = {"images": images, "peak_bytes": pool.submit(_peak, args, images).result()}
        if number == 0:
            row["times"] = _times(args, images)
        rows.append({"backbone": args.backbone, "batch": args.batch, "image_size": args.image_size, **row})
        print(_text(rows[-1]), flush=True)
    return rows


def _open(args: argparse.Namespace, images: int) -> tuple[Encoder, ImageSource]:
    torch.manual_seed(0)
    encoder = load_encoder(args.backbone, image_size=args.image_size).to(args.device)
    source = load_source(args.dataset, split=args.split)
    return encoder, source.subset(range(images), f"first {images}")


def _peak(args: argparse.Namespace, images: int) -> int:
    """Return the bytes that embedding takes at most, above encoder and opened data set."""
    encoder, source = _open(args, images)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "features.parquet"
        return peak_rss(lambda: embed_to_file(encoder, source, output, batch_size=args.batch), args.device)


def _times(args: argparse.Namespace, images: int) -> dict[str, dict[str, float]]:
    """Return the times of a forward pass over images that are decoded already, and of the file from the data set."""
    encoder, source = _open(args, images)
    dataset = ImageDataset(source, image_size=args.image_size)
    decoded = torch.stack([dataset[row]["pixel_values"] for row in range(images)])
    mean, std = (
        torch.tensor(values, device=args.device).view(-1, 1, 1) * 255 for values in (encoder.mean, encoder.std)
    )

    def forward() -> None:
        with evaluation_mode(encoder):
            for batch in decoded.split(args.batch):
                encoder((batch.to(args.device) - mean) / std).cpu()

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "features.parquet"

        def embed() -> None:
            embed_to_file(encoder, source, output, batch_size=args.batch)
            output.unlink()

        return measure({"forward": forward, "embed": embed}, args.device, args.repeats, warmup=1)


def _text(row: dict) -> str:
    lines = [f"{row['backbone']}, {row['images']:,} images of {row['image_size']} px in batches of {row['batch']}"]
    for name, text in (
        ("forward", "plain forward pass, decoded images"),
        ("embed", "embed, from the data set to Parquet"),
    ):
        if time := row.get("times", {}).get(name):
            speed = 1e3 * row["images"] / time["median_ms"]
            lines.append(f"  {text:<38}{speed:>8,.0f} images/s, {time['ratio']:.2f}× the time of the forward pass")
    lines.append(f"  {'peak memory':<38}{row['peak_bytes'] / 1e6:>8.0f} MB above encoder and data set")
    return "\n".join(lines)
