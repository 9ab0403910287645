"""A teacher, a smaller student trained by itself, and the same student distilled: kNN and linear probe, by seed."""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from short_runs import short_run

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, ImageSource, get_recipe, load_source
from hf_orthossl.encoders.export import export_encoder
from hf_orthossl.evaluation import KNNMonitor
from hf_orthossl.methods import METHODS
from hf_orthossl.methods.distill import TARGETS

from .methods import SIZE, mean_over_seeds, measure

COLUMNS = {"knn": "kNN", "linear": "linear", "effective_rank": "effective rank", "seconds_a_step": "s / step"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--dataset", default="digits", help="digits, or a data set with train and test splits")
    parser.add_argument("--images", type=int, default=10_000, help="training images used at most")
    parser.add_argument("--teacher", default="resnet10t", help="timm name of the teacher")
    parser.add_argument("--teacher_config", type=json.loads, default={}, help="its arguments, as JSON")
    parser.add_argument("--teacher_steps", type=int, default=600, help="optimizer steps of the teacher")
    parser.add_argument("--student", default="resnet10t", help="timm name of the student")
    parser.add_argument(
        "--student_config", type=json.loads, default={"channels": [16, 32, 64, 128]}, help="its arguments, as JSON"
    )
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each student")
    parser.add_argument("--method", default="simclr", help="method of the teacher, and of the student by itself")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="targets of the distilled students")
    parser.add_argument("--regularizer", default="none", help="penalty of the students")
    parser.add_argument("--gamma", type=float, default=1e-4, help="weight of the penalty")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of weights, batches and views")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per seed and encoder; print each as soon as it is measured, and the means at the end.

    All students of a seed start from the same weights and see the same views, two of each image.
    """
    train = load_source(args.dataset, split=f"train[:{args.images}]")
    test = load_source(args.dataset, split="test")
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        args.seed = seed
        monitor = KNNMonitor(train, test, SIZE, images=args.images, seed=seed, progress=False)

        teacher = _model(args.teacher, args.teacher_config, args.method, {}, "none", args)
        rows.append(_row("teacher", teacher, args.teacher_steps, train, monitor, args))
        with tempfile.TemporaryDirectory() as folder:
            home = str(export_encoder(teacher.encoder, Path(folder) / "teacher"))
            arms: dict[str, tuple[str, dict[str, Any]]] = {"student alone": (args.method, {})}
            for target in args.targets:
                arms[f"student distilled, {target}"] = "distill", {"teacher": home, "target": target}
            untrained = _student(*arms["student alone"], args)
            rows.append(_row("student untrained", untrained, 0, train, monitor, args))
            for arm, (method, config) in arms.items():
                rows.append(_row(arm, _student(method, config, args), args.steps, train, monitor, args))
    print(f"\n{_table(rows)}")
    return rows


def _row(
    arm: str, model: SSLModel, steps: int, train: ImageSource, monitor: KNNMonitor, args: argparse.Namespace
) -> dict[str, Any]:
    """Train a model for some steps, measure and print it."""
    seconds = _train(model, train, steps, args) if steps else None
    row = {"arm": arm, "seed": args.seed, "seconds_a_step": seconds, **measure(model, monitor)}
    said = "".join(f"{title} {row[key]:.4g}  " for key, title in COLUMNS.items() if row[key] is not None)
    print(f"seed {args.seed}  {arm:<32}{said}", flush=True)
    return row


def _student(method: str, config: dict[str, Any], args: argparse.Namespace) -> SSLModel:
    return _model(args.student, args.student_config, method, config, args.regularizer, args)


def _model(
    backbone: str,
    backbone_config: dict[str, Any],
    method: str,
    method_config: dict[str, Any],
    regularizer: str,
    args: argparse.Namespace,
) -> SSLModel:
    torch.manual_seed(args.seed)
    config = SSLConfig(
        backbone=backbone,
        image_size=SIZE,
        backbone_config=backbone_config,
        method=method,
        method_config=method_config,
        regularizer=regularizer,
        gamma=args.gamma,
    )
    return SSLModel(config).to(args.device)


def _train(model: SSLModel, train: ImageSource, steps: int, args: argparse.Namespace) -> float:
    """Train a model in place, and return the seconds of a step."""
    views = get_recipe("digits" if args.dataset == "digits" else METHODS[args.method].recipe.views)
    dataset = ImageDataset(train, views=views, image_size=SIZE, seed=args.seed)
    start = time.perf_counter()
    short_run(model, dataset, views, argparse.Namespace(**vars(args) | {"steps": steps}))
    return (time.perf_counter() - start) / steps


def _table(rows: list[dict[str, Any]]) -> str:
    """Return the means over seeds as a Markdown table, with half the range of the seeds where there are several."""
    lines = [f"| encoder | {' | '.join(COLUMNS.values())} |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = [mean_over_seeds([row[key] for row in rows if row["arm"] == arm]) for key in COLUMNS]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)
