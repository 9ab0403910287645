"""Train linear encoders on digits and compare predicted with measured eigenvalues of the representation."""

import argparse
import time

import torch
from torch import Tensor

from hf_orthossl.data import Recipe, get_recipe
from hf_orthossl.landscape import LinearLandscape

from .encoders import (
    DIM,
    digit_items,
    estimate,
    linear_model,
    measure_on_digits,
    measure_on_gaussian,
    pipeline,
    train_on_digits,
    train_on_gaussian,
)
from .figure import plot_cells

# Smallest crop, as a share of the area: half as strong as the recipe for digits, that recipe, twice as strong.
CROPS = {"weak": 0.75, "digits": 0.5, "strong": 0.25}
# An eigenvalue survives above this share of the largest: in training none is exactly 0.
ALIVE = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this check."""
    names = ["euclidean", "spectral", "normalized", "cosine"]
    parser.add_argument("--losses", nargs="+", choices=names, default=names[:3], help="losses to train with")
    parser.add_argument("--views", nargs="+", choices=list(CROPS), default=list(CROPS), help="augmentation strengths")
    parser.add_argument("--gamma", nargs="+", type=float, default=[0.0, 0.1], help="weights of the penalty SO")
    parser.add_argument(
        "--alpha",
        type=float,
        default=1.5,
        help="weight of the alignment; at 1.5 the directions with k below 1/3 collapse",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of normalized features")
    parser.add_argument("--images", type=int, default=1437, help="largest number of training digits")
    parser.add_argument("--batch", type=int, default=512, help="images per step")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    parser.add_argument(
        "--learning_rate", type=float, default=1e-2, help="learning rate of Adam, with a cosine decay to 0"
    )
    parser.add_argument(
        "--control", action=argparse.BooleanOptionalAction, default=True, help="also train on Gaussian views"
    )


def run(args: argparse.Namespace) -> tuple[list[dict], str]:
    """Return a row per loss, strength and γ, and their table; print each once it is measured, and draw the figure."""
    items, rows = digit_items(args.images), []
    for strength in args.views:
        digits = get_recipe("digits")
        recipe = digits.with_(scale=(CROPS[strength], 1.0))
        for loss in args.losses:
            for gamma in args.gamma:
                rows.append(
                    {"loss": loss, "views": strength, "gamma": gamma, **_cell(loss, recipe, gamma, items, args)}
                )
                print(_line(rows[-1]), flush=True)
                plot_cells(rows, args.output_dir / "training.png")
    return rows, _table(rows)


def _cell(loss: str, recipe: Recipe, gamma: float, items: list[dict], args: argparse.Namespace) -> dict:
    method, method_config, objective = _settings(loss, args)
    start = time.perf_counter()
    model = linear_model(method, method_config, gamma, args.seed)
    views = pipeline(model, recipe)
    covariances = estimate(items, views, seed=args.seed + 1)
    # Unbiased estimates of k lie outside [0, 1] by their noise, the more so with few images; they are clipped.
    landscape = LinearLandscape(covariances.B, covariances.Sigma, tol=1e-6, slack=0.1)
    minimum = landscape.minimum(**objective, gamma=gamma, dim=DIM, bias="centred")
    predicted = minimum.eigenvalues.sort(descending=True).values
    settings = {
        "optim": "adam",
        "learning_rate": args.learning_rate,
        "weight_decay": 0.0,
        "warmup_steps": 0.05,
        "per_device_train_batch_size": min(args.batch, len(items)),
        "max_steps": args.steps,
        "logging_steps": args.steps,
        "seed": args.seed,
    }
    train_on_digits(model, items, recipe, settings)
    found = {"digits": measure_on_digits(model, items, views, seed=args.seed + 2)}
    seconds = time.perf_counter() - start
    if args.control:
        model = linear_model(method, method_config, gamma, args.seed)
        train_on_gaussian(model, covariances, settings)
        found["gaussian"] = measure_on_gaussian(model, covariances)
    return {"seconds": seconds, "rank": landscape.rank, **compare(predicted, found, landscape.rank, loss)}


def _settings(loss: str, args: argparse.Namespace) -> tuple[str, dict, dict]:
    """Return the method, its hyper-parameters, and the settings of the same loss in the landscape."""
    if loss == "euclidean":
        config = {"similarity": "euclidean", "temperature": 1.0, "alignment": args.alpha}
        return "infonce", config, {"loss": "infonce", "alpha": args.alpha}
    if loss == "spectral":
        return "spectral", {"centred": True, "alignment": args.alpha}, {"loss": "spectral", "alpha": args.alpha}
    similarity = {"normalized": "standardized", "cosine": "cosine"}[loss]
    config = {"similarity": similarity, "temperature": args.temperature}
    return "infonce", config, {"loss": "normalized", "temperature": args.temperature}


def compare(predicted: Tensor, measured: dict[str, Tensor], rank: int, loss: str) -> dict:
    """Return R² of the predicted eigenvalues and the surviving dimensions, for each kind of data.

    Args:
        predicted (`Tensor`): `(D,)`, descending.
        measured (`dict[str, Tensor]`): `(D,)` each, descending, by kind of data.
        rank (`int`): Dimensions in which views vary; the eigenvalues past it are always 0, and omitted.
        loss (`str`): Normalized features have no scale: their eigenvalues are compared as shares of the sum.
    """

    def prepare(eigenvalues: Tensor) -> Tensor:
        return eigenvalues[:rank] / (eigenvalues.sum() if loss in ("normalized", "cosine") else 1)

    expected = prepare(predicted)
    row = {"predicted": expected.tolist(), "predicted_alive": _alive(expected)}
    for name, eigenvalues in measured.items():
        found = prepare(eigenvalues)
        residual = (found - expected).square().sum() / (found - found.mean()).square().sum()
        row[name] = {"measured": found.tolist(), "alive": _alive(found), "r2": float(1 - residual)}
    return row


def _alive(eigenvalues: Tensor) -> int:
    return int((eigenvalues > ALIVE * torch.clamp(eigenvalues[0], min=1e-6)).sum())


def _line(row: dict) -> str:
    parts = [f"{row['loss']:<11}{row['views']:<8}γ {row['gamma']:<6g}predicted {row['predicted_alive']:>3} alive"]
    parts += [f"{name} {row[name]['alive']:>3}, R² {row[name]['r2']:.4f}" for name in _kinds(row)]
    return " | ".join([*parts, f"{row['seconds']:.0f} s"])


def _kinds(row: dict) -> list[str]:
    return [name for name in ("digits", "gaussian") if name in row]


def _table(rows: list[dict]) -> str:
    kinds = _kinds(rows[0])
    head = ["loss", "views", "γ", "predicted"]
    for name in kinds:
        head += [f"alive, {name}", f"R², {name}"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["loss"], row["views"], f"{row['gamma']:g}", str(row["predicted_alive"])]
        for name in kinds:
            cells += [str(row[name]["alive"]), f"{row[name]['r2']:.4f}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
