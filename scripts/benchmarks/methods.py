"""Every method without and with a penalty on a small budget: kNN, linear probe, effective ranks, seconds a step."""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from short_runs import features_rank, short_run

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, ImageSource, Recipe, get_recipe, load_source
from hf_orthossl.encoders.embedding import normalized_batches
from hf_orthossl.evaluation import KNNMonitor, accuracy, lbfgs_probe
from hf_orthossl.methods import METHODS
from hf_orthossl.spectra import spectral_report

# The recipes are meant for 200 to 1,000 epochs. In a few hundred steps their queues would still hold mostly random
# vectors and their target networks hardly move, so both are shortened in the same way for every method that has one.
SHORT = {
    "queue_size": 1024,
    "momentum": 0.99,
    "freeze_last_layer_epochs": 0.0,
    "warmup_teacher_epochs": 0.0,
}
SIZE = 32
# Images whose patch tokens are measured.
TOKENS = 256
MEASURES = ("knn", "linear", "effective_rank", "patch_rank", "seconds_a_step")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--dataset", default="digits", help="digits, or a data set with train and test splits")
    parser.add_argument("--images", type=int, default=5000, help="training images used at most")
    parser.add_argument("--methods", nargs="+", help="methods to run; by default all that the backbone allows")
    parser.add_argument("--backbone", default="resnet10t", help="timm name of the encoder")
    parser.add_argument("--backbone_config", type=json.loads, default={}, help="its arguments, as JSON")
    parser.add_argument("--method_config", type=json.loads, default={}, help="hyper-parameters for all that have them")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--gamma", type=float, default=1e-4, help="weight of the penalty")
    parser.add_argument("--penalties", nargs="+", default=["none", "so"], help="penalties to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of weights, batches and views")
    parser.add_argument("--local_views", action="store_true", help="use the local crops of the recipes too")


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row per seed, method and arm; print each as soon as it is measured, and the means at the end."""
    train = load_source(args.dataset, split=f"train[:{args.images}]")
    test = load_source(args.dataset, split="test")
    rows = []
    for seed in args.seeds:
        monitor = KNNMonitor(train, test, SIZE, images=args.images, seed=seed, progress=False)
        # All methods start from the same encoder: it is built from the same seed, before the method's heads.
        untrained = _model("simclr", "none", seed, args)
        rows.append({"method": "untrained", "regularizer": "none", "seed": seed, **measure(untrained, monitor)})
        _print_row(rows[-1])
        for name in args.methods or _possible(untrained):
            for regularizer in args.penalties:
                row = {"method": name, "regularizer": regularizer, "seed": seed}
                rows.append(row | _train_and_measure(name, regularizer, seed, train, monitor, args))
                _print_row(rows[-1])
    print(f"\n{_table(rows)}")
    return rows


def _possible(model: SSLModel) -> Iterator[str]:
    """Yield the methods that the encoder of a model allows, without those that need more than images."""
    for name, method in METHODS.items():
        try:
            _ = model.encoder.patches if method.needs_patches else None
        except ValueError:
            continue
        if "teacher" not in method.config_class().to_dict():
            yield name


def _train_and_measure(
    name: str, regularizer: str, seed: int, train: ImageSource, monitor: KNNMonitor, args: argparse.Namespace
) -> dict[str, Any]:
    model = _model(name, regularizer, seed, args)
    views = _views(name, args)
    dataset = ImageDataset(train, views=views, image_size=SIZE, seed=seed)
    args.seed = seed
    start = time.perf_counter()
    short_run(model, dataset, views, args)
    seconds = time.perf_counter() - start
    return {**measure(model, monitor), "seconds_a_step": seconds / args.steps}


def measure(model: SSLModel, monitor: KNNMonitor) -> dict[str, Any]:
    """Return what a model's encoder has learned."""
    bank, queries = monitor.features(model.encoder)
    classes = int(bank.labels.max()) + 1
    probe = lbfgs_probe(bank.representations, bank.labels, classes)
    names = [str(number) for number in range(classes)]
    images = torch.utils.data.Subset(monitor.queries, range(min(TOKENS, len(monitor.queries))))
    with torch.no_grad():
        features = spectral_report(model.encoder, normalized_batches(model.encoder, images)).features
    patches = features.get("patch_tokens")
    return {
        "knn": monitor.results(bank, queries, step="end")[0].value,
        "linear": accuracy(probe(queries.representations), queries.labels, names).top1,
        "effective_rank": features_rank(bank.representations),
        "patch_rank": None if patches is None else patches.effective_rank,
    }


def _views(name: str, args: argparse.Namespace) -> Recipe:
    """Return the views of a method: its recipe's, or those for digits, as many as it needs."""
    method = METHODS[name]
    recipe = get_recipe("digits" if args.dataset == "digits" else method.recipe.views)
    if args.local_views:
        return recipe
    return Recipe(recipe.name, recipe.views[: method.views_needed], recipe.source)


def _model(name: str, regularizer: str, seed: int, args: argparse.Namespace) -> SSLModel:
    torch.manual_seed(seed)
    known = METHODS[name].config_class().to_dict()
    config = SSLConfig(
        backbone=args.backbone,
        image_size=SIZE,
        backbone_config=args.backbone_config,
        method=name,
        method_config={key: value for key, value in (SHORT | args.method_config).items() if key in known},
        regularizer=regularizer,
        gamma=args.gamma,
    )
    return SSLModel(config).to(args.device)


def _print_row(row: dict[str, Any]) -> None:
    values = "".join(f"{key} {row[key]:.4g}  " for key in MEASURES if row.get(key) is not None)
    print(f"seed {row['seed']}  {row['method']:<12}{row['regularizer']:<5}{values}", flush=True)


def _table(rows: list[dict[str, Any]]) -> str:
    """Return means over seeds as a Markdown table, with half the range of the seeds where there are several."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["regularizer"]), []).append(row)
    lines = ["| method | penalty | kNN | linear | effective rank | of patch tokens | s / step |", "| --- " * 7 + "|"]
    for (method, regularizer), members in groups.items():
        cells = [mean_over_seeds([row.get(key) for row in members]) for key in MEASURES]
        lines.append(f"| `{method}` | {regularizer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_over_seeds(values: list[float | None]) -> str:
    """Return the mean of one number of each seed, with half their range where there are several, as text."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return ""
    mean = statistics.mean(numbers)
    digits = 3 if mean < 10 else 1
    spread = f" ± {(max(numbers) - min(numbers)) / 2:.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean:.{digits}f}{spread}"
