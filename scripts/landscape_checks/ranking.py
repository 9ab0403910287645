"""Beyond the theory: does the forecast for linear encoders rank augmentations as small nonlinear encoders do?"""

import argparse

import torch
from scipy.stats import spearmanr
from short_runs import features_rank, short_run

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, ImageSource, Recipe, Views, get_recipe, load_source
from hf_orthossl.evaluation import extract_features
from hf_orthossl.landscape import forecast

SIZE = 32
TEMPERATURE = 0.5
# Changes to the data set's recipe, fixed before any run.
VARIANTS = {
    "as it is": {},
    "no crop": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)},
    "gentle crop": {"scale": (0.75, 1.0)},
    "no colour": {"jitter": 0.0, "grayscale": 0.0},
    "strong colour": {"jitter": 1.0, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
    "blur": {"blur": 1.0, "blur_sigma": (0.5, 2.0)},
}
# Fixed before any result: the forecast's quantities and the measured ones, the primary one of each first.
PREDICTED, MEASURED = ("surviving", "sum_of_k"), ("representation", "embedding")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this check."""
    parser.add_argument("--dataset", default="digits", help="digits, or a data set with train and test splits")
    parser.add_argument("--images", type=int, default=5000, help="largest number of training images")
    parser.add_argument("--backbone", default="resnet10t", help="timm name of the encoder")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=128, help="images per step")


def run(args: argparse.Namespace) -> tuple[list[dict], str]:
    """Return a row per recipe, and their table with the rank correlations; print each row once it is measured."""
    train = load_source(args.dataset, split=f"train[:{args.images}]")
    test = ImageDataset(load_source(args.dataset, split=f"test[:{args.images}]"), image_size=SIZE)
    base = get_recipe("digits" if args.dataset == "digits" else "cifar-simclr")
    rows = []
    for name, changes in VARIANTS.items():
        recipe = base.with_(**changes)
        rows.append({"recipe": name, **_forecast(train, recipe, args), **_train(train, test, recipe, args)})
        print("  ".join(f"{key} {value:.2f}" if key != "recipe" else f"{value:<14}" for key, value in rows[-1].items()))
    return rows, _table(rows)


def _model(args: argparse.Namespace) -> SSLModel:
    torch.manual_seed(args.seed)
    config = {"temperature": TEMPERATURE}
    return SSLModel(
        SSLConfig(backbone=args.backbone, image_size=SIZE, method="simclr", method_config=config, regularizer=None)
    )


def _forecast(train: ImageSource, recipe: Recipe, args: argparse.Namespace) -> dict:
    """Forecast what SimCLR, with normalized features at its temperature, keeps of the pixels."""
    dataset = ImageDataset(train, image_size=SIZE)
    images = torch.stack([item["pixel_values"] for item in dataset.__getitems__(range(len(dataset)))])
    encoder = _model(args).encoder
    views = Views(recipe, SIZE, encoder.mean, encoder.std)
    result = forecast(images, views, loss="normalized", temperature=TEMPERATURE, same_kind=True, seed=args.seed)
    return {"surviving": result.surviving, "sum_of_k": sum(result.correlations)}


def _train(train: ImageSource, test: ImageDataset, recipe: Recipe, args: argparse.Namespace) -> dict:
    """Train, and return the effective ranks of representation and embedding of held-out images."""
    model = _model(args)
    short_run(model, ImageDataset(train, views=recipe, image_size=SIZE, seed=args.seed), recipe, args)
    representation = extract_features(model.encoder, test).representations
    with torch.no_grad():
        embedding = model.method.eval().projector(representation)
    return {"representation": features_rank(representation), "embedding": features_rank(embedding)}


def _table(rows: list[dict]) -> str:
    lines = ["| views | surviving | Σk | effective rank | of the embedding |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        numbers = " | ".join(f"{row[key]:.1f}" for key in ("sum_of_k", "representation", "embedding"))
        lines.append(f"| {row['recipe']} | {row['surviving']} | {numbers} |")
    lines.append("")
    for predicted in PREDICTED:
        for measured in MEASURED:
            correlation = spearmanr([row[predicted] for row in rows], [row[measured] for row in rows])
            lines.append(
                f"Spearman's ρ of {predicted} with the effective rank of the {measured}: {correlation.statistic:.2f} "
                f"(p {correlation.pvalue:.2f}, {len(rows)} recipes)  "
            )
    return "\n".join(lines)
