"""Training with sketched and lazy SO compared with exact SO: final SO, kNN accuracy and effective rank."""

import argparse
import statistics
import time

import torch
from short_runs import features_rank, short_run

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, get_recipe, load_source
from hf_orthossl.evaluation import KNNMonitor
from hf_orthossl.regularization import OrthogonalityRegularizer

SIZE = 32
# All arms have the same γ and the same seeds: only the computation of SO differs.
ARMS = {
    "none": {"regularizer": None},
    "SO": {"regularizer": "so"},
    "sketched, k = 1": {"regularizer": "sketched_so", "regularizer_config": {"probes": 1}},
    "sketched, k = 4": {"regularizer": "sketched_so", "regularizer_config": {"probes": 4}},
    "sketched, k = 16": {"regularizer": "sketched_so", "regularizer_config": {"probes": 16}},
    "lazy, every 4": {"regularizer": "so", "penalty_every": 4},
    "lazy, every 16": {"regularizer": "so", "penalty_every": 16},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--backbone", default="resnet10t", help="timm name of the encoder, trained on digits")
    parser.add_argument("--method", default="simclr", help="a name from orthossl methods")
    parser.add_argument("--steps", type=int, default=64, help="optimizer steps, best a multiple of 16")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--gamma", type=float, default=1e-3, help="weight of SO")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each arm")


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row per arm and seed; print each arm's mean and range over seeds as soon as it is measured."""
    train, test = (load_source("digits", split=split) for split in ("train", "test"))
    monitor = KNNMonitor(train, test, SIZE, images=train.num_rows, seed=0, progress=False)
    dataset = ImageDataset(train, views=get_recipe("digits"), image_size=SIZE, seed=0)
    print(f"{'arm':<18}{'SO':>20}{'kNN':>20}{'eff. rank':>20}{'s / run':>10}")
    rows = []
    for name, settings in ARMS.items():
        measured = []
        for seed in range(args.seeds):
            args.seed = seed
            measured.append({"arm": name, "seed": seed, **_measure(settings, dataset, monitor, args)})
        rows += measured
        columns = [_spread([row[key] for row in measured]) for key in ("so", "knn", "effective_rank")]
        seconds = statistics.mean(row["seconds"] for row in measured)
        print(f"{name:<18}" + "".join(f"{column:>20}" for column in columns) + f"{seconds:>10.1f}", flush=True)
    return rows


def _measure(settings: dict, dataset: ImageDataset, monitor: KNNMonitor, args: argparse.Namespace) -> dict:
    torch.manual_seed(args.seed)
    config = SSLConfig(backbone=args.backbone, image_size=SIZE, method=args.method, gamma=args.gamma, **settings)
    model = SSLModel(config).to(args.device)
    before = OrthogonalityRegularizer(model.encoder)().item()
    start = time.perf_counter()
    short_run(model, dataset, "digits", args)
    seconds = time.perf_counter() - start
    bank, queries = monitor.features(model.encoder)
    return {
        "so_before": before,
        "so": OrthogonalityRegularizer(model.encoder)().item(),
        "knn": monitor.results(bank, queries, step="end")[0].value,
        "effective_rank": features_rank(bank.representations),
        "seconds": seconds,
    }


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4g} ({min(values):.4g}–{max(values):.4g})"
