"""Every method with and without SO on a fixed small budget: kNN accuracy, effective rank, seconds per 100 steps."""

import argparse
import time

import torch
from short_runs import features_rank, short_run

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, ImageSource, get_recipe, load_source
from hf_orthossl.evaluation import KNNMonitor
from hf_orthossl.methods import METHODS

# The recipes are meant for 200 to 1,000 epochs. In a hundred steps their queues would still hold mostly random vectors
# and their target networks hardly move, so both are shortened in the same way for every method that has one.
SHORT = {"queue_size": 1024, "momentum": 0.99, "freeze_last_layer_epochs": 0.0}
SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--dataset", default="digits", help="digits, or a data set with train and test splits")
    parser.add_argument("--images", type=int, default=5000, help="training images used at most")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods to run")
    parser.add_argument("--backbone", default="resnet10t", help="timm name of the encoder")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--gamma", type=float, default=1e-4, help="weight of SO")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and views")


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row per method and arm; print each as soon as it is measured."""
    train = load_source(args.dataset, split=f"train[:{args.images}]")
    test = load_source(args.dataset, split="test")
    monitor = KNNMonitor(train, test, SIZE, images=args.images, seed=args.seed, progress=False)
    print(f"{'method':<14}{'SO':<6}{'kNN before':>12}{'kNN after':>12}{'eff. rank':>12}{'s / 100 steps':>16}")
    # All methods start from the same encoder: it is built from the same seed, before the method's heads.
    before = monitor.measure(_model(args.methods[0], None, args).encoder, step=0)[0].value
    rows = []
    for name in args.methods:
        for regularizer in (None, "so"):
            row = {"knn_before": before, **_measure(name, regularizer, train, monitor, args)}
            rows.append(row)
            print(
                f"{name:<14}{regularizer or '–':<6}{row['knn_before']:>12.3f}{row['knn_after']:>12.3f}"
                f"{row['effective_rank']:>12.1f}{row['seconds_per_100_steps']:>16.1f}",
                flush=True,
            )
    return rows


def _measure(
    name: str, regularizer: str | None, train: ImageSource, monitor: KNNMonitor, args: argparse.Namespace
) -> dict:
    model = _model(name, regularizer, args)
    views = "digits" if args.dataset == "digits" else METHODS[name].recipe.views
    dataset = ImageDataset(train, views=get_recipe(views), image_size=SIZE, seed=args.seed)
    start = time.perf_counter()
    short_run(model, dataset, views, args)
    seconds = time.perf_counter() - start
    bank, queries = monitor.features(model.encoder)
    return {
        "dataset": args.dataset,
        "method": name,
        "regularizer": regularizer,
        "knn_after": monitor.results(bank, queries, step="end")[0].value,
        "effective_rank": features_rank(bank.representations),
        "seconds_per_100_steps": 100 * seconds / args.steps,
    }


def _model(name: str, regularizer: str | None, args: argparse.Namespace) -> SSLModel:
    torch.manual_seed(args.seed)
    known = METHODS[name].config_class().to_dict()
    config = SSLConfig(
        backbone=args.backbone,
        image_size=SIZE,
        method=name,
        method_config={key: value for key, value in SHORT.items() if key in known},
        regularizer=regularizer,
        gamma=args.gamma,
    )
    return SSLModel(config).to(args.device)
