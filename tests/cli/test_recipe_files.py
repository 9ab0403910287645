"""`scripts/recipes`: every file builds its model and trains with the views and the optimizer it names."""

import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from small_models import required
from timm.optim import Lars
from transformers import set_seed

from hf_orthossl.cli.parsing import parse
from hf_orthossl.configuration import SSLConfig
from hf_orthossl.data import get_recipe, load_source
from hf_orthossl.methods import METHODS, get_method
from hf_orthossl.modeling import SSLModel
from hf_orthossl.options import read_config
from hf_orthossl.training import OrthoSSLTrainer, OrthoSSLTrainingArguments
from hf_orthossl.training.building import build_model
from hf_orthossl.training.options import OPTION_CLASSES

FOLDER = Path(__file__).parents[2] / "scripts" / "recipes"
FILES = sorted(FOLDER.glob("*/*.yaml"))
# What the Hub's data sets call their columns, and images of a size to cut the recipe's views from.
COLUMNS = {"cifar10": ("img", "label"), "cifar100": ("img", "fine_label"), "imagenet": ("image", "label")}
PIXELS = {"cifar10": 32, "cifar100": 32, "imagenet": 98}
OPTIMIZERS = {"lars": Lars, "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw_torch": torch.optim.AdamW}
SMALL = {
    "hidden_dim": 16,
    "output_dim": 8,
    "bottleneck_dim": 8,
    "predictor_dim": 16,
    "prototypes": 12,
    "queue_size": 32,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "predictor_depth": 1,
    "predictor_heads": 2,
    "mask_unit": 0,
    "patch_bottleneck_dim": 8,
    "patch_prototypes": 12,
}
NETWORK = "--backbone resnet10t --backbone_config channels=[8,8,16,16]"
TRANSFORMER = "--backbone test_vit --backbone_config patch_size=8 depth=2"
TINY = (
    "--per_device_train_batch_size 16 --max_steps 2 "
    "--dataloader_num_workers 0 --save_strategy no --disable_tqdm True --use_cpu"
)

every_file = pytest.mark.parametrize("file", FILES, ids=[f"{file.parent.name}-{file.stem}" for file in FILES])


def parsed(file, *flags):
    """Data, model and training arguments of a recipe, as the command reads them."""
    argv = ["--config", str(file), "--use_cpu", *flags]
    (data, model, training), _ = parse("orthossl pretrain", "", list(OPTION_CLASSES), argv)
    return data, model, OrthoSSLTrainingArguments(**vars(training))


def noise_images(family):
    """A data set with the columns and labels of the one a recipe names."""
    image, label = COLUMNS[family]
    side = PIXELS[family]
    pixels = np.random.default_rng(0).integers(0, 256, (32, side, side, 3), dtype=np.uint8)
    features = {image: datasets.Image(), label: datasets.ClassLabel(num_classes=4)}
    columns = {image: list(pixels), label: [index % 4 for index in range(32)]}
    if family == "cifar100":
        features["coarse_label"], columns["coarse_label"] = datasets.ClassLabel(num_classes=2), [0, 1] * 16
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_every_method_has_a_recipe_for_every_data_set():
    assert {file.parent.name for file in FILES} == set(COLUMNS)
    for family in COLUMNS:
        assert {file.stem for file in FILES if file.parent.name == family} == set(METHODS), family


@every_file
def test_a_recipe_says_where_it_is_from_and_what_was_published(file):
    lines = file.read_text().splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert 2 <= len(comment) <= 4
    text = " ".join(line.removeprefix("# ") for line in comment)
    assert "arXiv" in text
    assert any(source in text for source in ("solo-learn", "LightlySSL", "paper"))
    assert (
        "Published: " in text and any(kind in text for kind in ("ResNet-", "ViT-", "Swin-")) and "epochs" in text
    ) or "None published" in text


@every_file
def test_a_recipe_as_it_stands_builds_its_model(file):
    data, chosen, args = parsed(file)
    assert chosen.method == file.stem
    assert args.output_dir == f"runs/{file.parent.name}/{file.stem}"
    assert data.location == {"imagenet": "ILSVRC/imagenet-1k"}.get(file.parent.name, f"uoft-cs/{file.parent.name}")
    config = SSLConfig(
        backbone=chosen.backbone,
        image_size=chosen.image_size,
        method=chosen.method,
        method_config=chosen.method_config | required(chosen.method),
        regularizer=chosen.regularizer,
        gamma=chosen.gamma,
    )
    with torch.device("meta"):  # full width without its memory or time
        model = SSLModel(config)
    widths = {"resnet18_cifar": 512, "resnet50": 2048, "vit_tiny_patch16_224": 192, "vit_base_patch16_224": 768}
    widths |= {"vit_small_patch16_224": 384, "vit_large_patch14_reg4_dinov2": 1024}
    widths |= {"swin_tiny_patch4_window7_224": 768, "swin_base_patch4_window7_224": 1024}
    assert model.encoder.num_features == widths[chosen.backbone]
    assert (config.regularizer, config.gamma) == ("so", 1e-6)
    model.method.check_batch(args.images_per_step, get_recipe(args.views).num_views)


@every_file
def test_a_recipe_trains_with_its_views_and_its_optimizer(file, tmp_path):
    family = file.parent.name
    small = [f"{key}={value}" for key, value in SMALL.items() if key in read_config(file)["method_config"]]
    # Both steps have to move the weights, and the first of a warm-up does not.
    network = TRANSFORMER if METHODS[file.stem].needs_patches else NETWORK
    recipe = get_recipe(read_config(file)["views"])
    side = 64 if family == "imagenet" else 32
    if 98 in recipe.sizes(side):  # patches of 14 px in the source
        network, side = network.replace("patch_size=8", "patch_size=7"), 70
    flags = [*network.split(), *TINY.split(), "--output_dir", str(tmp_path), "--warmup_steps", "0"]
    small += [f"{key}={value}" for key, value in required(file.stem).items()]
    flags += ["--method_config", *small] if small else []
    flags += ["--image_size", str(side)]
    data, chosen, args = parsed(file, *flags)
    set_seed(args.seed)
    source = load_source(
        noise_images(family), split=data.split, image_column=data.image_column, label_column=data.label_column
    )
    model = build_model(chosen, source, args.views)
    before = [parameter.detach().clone() for parameter in model.encoder.parameters()]
    trainer = OrthoSSLTrainer(model=model, args=args, train_dataset=source)
    given = []
    model.method.register_forward_pre_hook(lambda method, inputs: given.append([v.shape[-1] for v in inputs[1]]))
    result = trainer.train()

    assert result.global_step == 2
    assert math.isfinite(result.training_loss)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    moved = [not torch.equal(old, new) for old, new in zip(before, model.encoder.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2

    wanted = read_config(file)
    sizes = list(recipe.sizes(side))
    # Before these two steps, the rehearsal took one batch.
    assert given[-2:] == [sizes, sizes]
    assert trainer.step.views.recipe == recipe
    optimizer = trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)
    assert type(optimizer) is OPTIMIZERS[wanted["optim"]]
    assert optimizer.param_groups[0]["initial_lr"] == float(wanted["learning_rate"])
    assert optimizer.param_groups[0]["weight_decay"] == float(wanted["weight_decay"])


@pytest.mark.parametrize("family", ["cifar10", "cifar100"])
@pytest.mark.parametrize("name", list(METHODS))
def test_cifar_recipes_normalize_as_their_sources(family, name):
    file = FOLDER / family / f"{name}.yaml"
    _, chosen, _ = parsed(file)
    config = SSLConfig(backbone="resnet18_cifar", normalization=chosen.normalization)
    means = {"cifar10": 0.4914, "cifar100": 0.5071}
    expected = 0.485 if "LightlySSL" in file.read_text(encoding="utf-8") else means[family]
    assert SSLModel(config).encoder.mean[0] == expected


@pytest.mark.parametrize("family", ["cifar10", "cifar100"])
@pytest.mark.parametrize("name", list(METHODS))
def test_the_cifar_recipes_are_the_methods_defaults(family, name):
    file = FOLDER / family / f"{name}.yaml"
    _, chosen, args = parsed(file)
    recipe = get_method(name).recipe
    scale = args.per_device_train_batch_size / recipe.lr_batch_size if recipe.lr_batch_size else 1
    assert args.learning_rate == pytest.approx(recipe.learning_rate * scale)
    assert (args.optim, args.weight_decay, args.views) == (recipe.optim, recipe.weight_decay, recipe.views)
    warmup = (0 if args.warmup_steps == 0 else args.warmup_epochs, args.warmup_start_lr or 0.0)
    assert warmup == (recipe.warmup_epochs, recipe.warmup_start_lr)
    config_class = get_method(name).config_class
    if get_method(name).family == "masked":  # its defaults are those for ImageNet, with the same masks
        given, defaults = config_class.from_dict(chosen.method_config).to_dict(), config_class().to_dict()
        differing = {name for name in given if given[name] != defaults[name]}
        assert all(name.startswith(("decoder_", "predictor_")) for name in differing), differing
        return
    assert config_class.from_dict(chosen.method_config) == config_class()
