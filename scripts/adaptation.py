"""Measure what adapting an encoder to new images forgets of the old ones, without a penalty, with SO and with SO-init.

An encoder is pretrained on 10,000 images of CIFAR-10 and then adapted (`--adapt`) to 5,000 others, blurred and with
shifted colours. kNN and linear probes on both kinds of images, drift from the start, and ranks are written as one JSON
line per encoder; a run that was interrupted goes on with what is missing. `--render` writes the report alone.

OMP_NUM_THREADS=1 python scripts/adaptation.py path/to/cifar10 --work runs/adaptation
"""

import argparse
import io
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from hf_orthossl import load_encoder, pretrain
from hf_orthossl.data import ImageDataset, ImageSource, load_source
from hf_orthossl.encoders import Encoder
from hf_orthossl.evaluation import Features, accuracy, extract_features, knn_accuracy, lbfgs_probe
from hf_orthossl.evaluation.drift import linear_cka, mean_cosine
from hf_orthossl.files import append_lines, read_lines, replace_file
from hf_orthossl.regularization import OrthogonalityRegularizer
from hf_orthossl.spectra import effective_rank

OLD, NEW, TEST = 10_000, 5_000, 2_000
# Half as wide as a ResNet.
CHANNELS = [32, 64, 128, 256]
ARMS = {"none": "no penalty", "so": "SO", "so_init": "SO-init"}
REPORT = Path(__file__).parents[1] / "model_cards" / "adaptation"
# Column → entry of a row, digits.
COLUMNS = {
    "kNN, old": ("knn_old", 3),
    "linear, old": ("linear_old", 3),
    "kNN, new": ("knn_new", 3),
    "linear, new": ("linear_new", 3),
    "CKA, old": ("cka_old", 3),
    "cosine, old": ("cosine_old", 3),
    "rank, old": ("rank_old", 1),
    "rank, new": ("rank_new", 1),
    "Σ SO": ("so", 0),
    "Σ SO-init": ("so_init", 1),
}


def shifted(image: Image.Image) -> Image.Image:
    """Return an image of the new domain: blurred, with mixed and shifted colours."""
    blurred = np.asarray(image.convert("RGB").filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float64)
    mixed = blurred @ np.array([[0.55, 0.15, 0.1], [0.35, 0.6, 0.2], [0.1, 0.25, 0.7]]) * 0.8 + np.array([45, 5, -10])
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def write_new_domain(data: str, folder: Path) -> Path:
    """Write training and test images of the new domain as a folder of classes, once; return the folder."""
    if (folder / "complete").exists():
        return folder
    for split, rows in (("train", f"train[{OLD}:{OLD + NEW}]"), ("test", f"test[:{TEST}]")):
        source = load_source(data, split=rows)
        for number, row in enumerate(source.dataset):
            target = folder / split / f"{row[source.label_column]}" / f"{number:05}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shifted(Image.open(io.BytesIO(row[source.image_column]["bytes"]))).save(target)
    (folder / "complete").touch()
    return folder


def settings(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the options that all runs share."""
    return {
        "image_size": 32,
        "method": "simclr",
        "per_device_train_batch_size": 128,
        "seed": seed,
        "knn_images": 0,
        "spectra_steps": 0,
        "logging_steps": 20,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "disable_tqdm": True,
        "use_cpu": args.use_cpu,
    }


def trained(folder: Path, data: str | Path, **options: Any) -> Path:
    """Train a run, or what is missing of it; return the folder of its encoder."""
    if not (folder / "encoder" / "config.json").exists():
        resume = any(folder.glob("checkpoint-*"))
        run = {"resume": True} if resume else {"overwrite_output": folder.exists()}
        pretrain(data, output_dir=folder, **options | run)
    return folder / "encoder"


def features_of(encoder: Encoder, sources: dict[str, ImageSource]) -> dict[str, Features]:
    """Return the features of each source."""
    return {
        name: extract_features(encoder, ImageDataset(source, image_size=32, unreadable="omit"))
        for name, source in sources.items()
    }


def measure(features: dict[str, Features], start: dict[str, Features]) -> dict[str, float]:
    """Return the numbers of one encoder, given its features and those of its start."""
    row: dict[str, float] = {}
    for domain in ("old", "new"):
        bank, test = features[f"{domain}_train"], features[f"{domain}_test"]
        row[f"knn_{domain}"] = knn_accuracy(bank, test, k=20, temperature=0.07)["top1"]
        probe = lbfgs_probe(bank.representations, bank.labels, 10, penalty=1e-3)
        row[f"linear_{domain}"] = accuracy(probe(test.representations), test.labels, [*map(str, range(10))]).top1
        X, first = test.representations.double(), start[f"{domain}_test"].representations
        row[f"rank_{domain}"] = float(effective_rank(torch.linalg.svdvals(X - X.mean(0))))
        row[f"cka_{domain}"], row[f"cosine_{domain}"] = linear_cka(first, X), mean_cosine(first, X)
    return row


def penalties(start: Encoder, end: Encoder) -> dict[str, float]:
    """Return Σ SO of an adapted encoder, and Σ SO-init from its start, both before γ."""
    from_start = OrthogonalityRegularizer(start, "so_init")
    start.load_state_dict(end.state_dict())
    with torch.no_grad():
        return {"so": float(OrthogonalityRegularizer(end, "so")()), "so_init": float(from_start())}


def run(args: argparse.Namespace) -> None:
    """Train and measure whatever has no row yet."""
    rows_file = args.report / "rows.jsonl"
    done = {(row["seed"], row["arm"]) for row in map(json.loads, read_lines(rows_file))}
    new = write_new_domain(args.data, args.work / "new_domain")
    sources = {
        "old_train": load_source(args.data, split=f"train[:{OLD}]"),
        "old_test": load_source(args.data, split=f"test[:{TEST}]"),
        "new_train": load_source(new, split="train"),
        "new_test": load_source(new, split="test"),
    }
    for seed in range(args.seeds):
        if all((seed, arm) in done for arm in ("start", *ARMS)):
            continue
        shared = settings(args, seed)
        first = trained(
            args.work / f"seed{seed}" / "start",
            args.data,
            split=f"train[:{OLD}]",
            backbone="resnet10t",
            backbone_config={"channels": CHANNELS},
            regularizer="none",
            optim="adamw_torch",
            learning_rate=1e-3,
            weight_decay=1e-4,
            warmup_steps=0.1,
            num_train_epochs=args.epochs,
            **shared,
        )
        start = features_of(load_encoder(first, pretrained=True), sources)
        for arm in ("start", *ARMS):
            if (seed, arm) in done:
                continue
            features, end = start, first
            if arm != "start":
                folder = args.work / f"seed{seed}" / arm
                adapted = {"pretrained": first, "adapt": True, "regularizer": arm, "learning_rate": args.learning_rate}
                adapted |= {} if arm == "none" else {"gamma": args.gamma}
                end = trained(folder, new, split="train", num_train_epochs=args.adapt_epochs, **adapted, **shared)
                features = features_of(load_encoder(end, pretrained=True), sources)
            about = {"seed": seed, "arm": arm, "epochs": args.epochs, "adapt_epochs": args.adapt_epochs}
            about |= {"learning_rate": args.learning_rate, "gamma": args.gamma}
            weights = penalties(*(load_encoder(folder, pretrained=True) for folder in (first, end)))
            args.report.mkdir(parents=True, exist_ok=True)
            append_lines(rows_file, [json.dumps(about | measure(features, start) | weights)])


def render(folder: Path) -> str:
    """Return the report of the rows in a folder, as Markdown."""
    rows = [json.loads(line) for line in read_lines(folder / "rows.jsonl")]
    if not rows:
        raise ValueError(f"{folder / 'rows.jsonl'} has no rows: run the script without --render first")
    table = [["", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for arm, title in {"start": "before adapting", **ARMS}.items():
        mine = [row for row in rows if row["arm"] == arm]
        if mine:
            cells = [_cell([row[name] for row in mine], digits) for name, digits in COLUMNS.values()]
            table.append([f"{title} ({len(mine)})", *cells])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    first = rows[0]
    return f"""# Adapting an encoder: what it forgets

A resnet10t of half the usual width is pretrained with SimCLR on {OLD:,} images of CIFAR-10, without a penalty
({first["epochs"]:g} epochs), and then adapted with `--adapt`, at a peak rate of {first["learning_rate"]:g}, to {NEW:,}
other images, blurred and with shifted colours ({first["adapt_epochs"]:g} epochs), where both penalties have
γ = {first["gamma"]:g}. "Old" are {TEST:,} test images of
CIFAR-10, "new" the same, blurred and shifted; kNN (k = 20) and linear probes are fitted to the training images of
each kind. CKA and cosine compare the representations of old test images with those before adapting; ranks are
effective ranks of the representations, and Σ SO and Σ SO-init how far the weights are from orthonormal and from their
start, before γ. Mean ± standard deviation over the seeds, whose number is in brackets.

{lines}

Rows: [rows.jsonl](rows.jsonl), one for each encoder. Written by `scripts/adaptation.py`.
"""


def _cell(values: list[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main() -> None:
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="CIFAR-10, as load_source accepts it")
    parser.add_argument("--work", type=Path, default=Path("runs/adaptation"), help="folder of the runs")
    parser.add_argument("--report", type=Path, default=REPORT, help="folder of rows and README")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=8, help="of pretraining")
    parser.add_argument("--adapt_epochs", type=float, default=8)
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="peak rate of adapting")
    parser.add_argument("--gamma", type=float, default=3e-3, help="weight of both penalties while adapting")
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--render", action="store_true", help="only write the report of the rows that exist")
    args = parser.parse_args()
    if not args.render:
        if args.data is None:
            parser.error("the folder of CIFAR-10 is missing")
        run(args)
    replace_file(args.report / "README.md", render(args.report))


if __name__ == "__main__":
    main()
