"""Time and memory of a training step of every method beside SimCLR's, with the views of its ImageNet recipe."""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.data import get_recipe
from hf_orthossl.encoders import export_encoder, load_encoder
from hf_orthossl.files import replace_file
from hf_orthossl.methods import METHODS, Progress
from hf_orthossl.methods.costs import COSTS

from .measure import machine, measure, peak_memory

RECIPES = Path(__file__).parents[1] / "recipes" / "imagenet"
# A backbone that all methods can train, dynamic because local crops are smaller.
PATCH = 16
BACKBONE = {"backbone": "vit_small_patch16_224", "image_size": 224, "backbone_config": {"dynamic_img_size": True}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods to measure beside simclr")
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--write", action="store_true", help=f"write {COSTS.name}, which orthossl methods shows")
    # A round takes minutes.
    parser.set_defaults(repeats=2)


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row per method, and write them for `orthossl methods` if asked to."""
    names = list(dict.fromkeys(["simclr", *args.methods]))
    with tempfile.TemporaryDirectory() as folder:
        teacher = export_encoder(load_encoder("vit_small_patch16_224"), folder)
        steps = {name: _step(name, teacher, args) for name in names}
        # One at a time, because the memory of a method is that of its own step.
        memory = {name: peak_memory(step, args.device) for name, step in steps.items()}
        times = measure(steps, args.device, args.repeats, warmup=1)
    rows = [
        {
            "method": name,
            "views": views_text(name),
            "time": times[name]["ratio"],
            "memory": memory[name] / memory["simclr"],
            "milliseconds": times[name]["median_ms"],
            "megabytes": memory[name] / 1e6,
        }
        for name in names
    ]
    for row in rows:
        print(
            f"{row['method']:<14}{row['views']:<18}{row['time']:>6.2f}×{row['memory']:>8.2f}×"
            f"{row['milliseconds']:>10.0f} ms{row['megabytes']:>10.0f} MB"
        )
    if args.write:
        what = f"{BACKBONE['backbone']} at 224 px, {args.batch} images a step"
        costs = {row["method"]: {key: round(row[key], 2) for key in ("time", "memory")} for row in rows}
        content = {"measured": what, "machine": machine(args.device), "costs": costs}
        replace_file(COSTS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(f"written to {COSTS}")
    return rows


def views_text(name: str) -> str:
    """Return the views of a method's ImageNet recipe, such as "2×224, 6×96"."""
    sizes = _sizes(name)
    return ", ".join(f"{sizes.count(size)}×{size}" for size in dict.fromkeys(sizes))


def _settings(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def _sizes(name: str) -> tuple[int, ...]:
    # DINOv2's local crops, of 98 px, are for patches of 14.
    return tuple(size // PATCH * PATCH for size in get_recipe(_settings(name)["views"]).sizes(224))


def _step(name: str, teacher: Path, args: argparse.Namespace) -> Callable[[], None]:
    """Return a training step on views that are there already: loss, gradients, and the state that advances."""
    torch.manual_seed(0)
    method_config = {key: value for key, value in _settings(name)["method"].items() if key != "name"}
    if "teacher" in METHODS[name].config_class().to_dict():
        method_config["teacher"] = str(teacher)
    model = SSLModel(SSLConfig(**BACKBONE, method=name, method_config=method_config, regularizer=None))
    model.to(args.device).train()
    views = [torch.randn(args.batch, 3, size, size, device=args.device) for size in _sizes(name)]

    def step() -> None:
        model.begin_step(Progress(0, 100, 100))
        model(views).loss.backward()
        model.before_optimizer_step()
        model.zero_grad()
        model.end_step()

    return step
