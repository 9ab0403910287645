"""`orthossl forecast`: from a data set and a recipe to a forecast, its figures, and one line for every bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_orthossl.cli import main
from hf_orthossl.cli.forecast import OPERATIONS, ForecastArguments, full_sized, landscape_settings, without_one
from hf_orthossl.data import RECIPES, get_recipe
from hf_orthossl.landscape import Forecast
from hf_orthossl.methods import METHODS
from hf_orthossl.spectra import spectral_report

SMALL = "--images 120 --image_size 8"


def run(arguments, folder):
    main(["forecast", *arguments.split(), "--output_dir", str(folder)])
    return Forecast.load(folder / "forecast.json")


def refused(arguments, capsys, folder):
    with pytest.raises(SystemExit) as stop:
        main(["forecast", *arguments.split(), "--output_dir", str(folder)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("orthossl forecast: error:")
    assert "Traceback" not in "".join(lines)
    assert not folder.exists()
    return lines[-1]


def save_pictures(folder, count, side=8, make=None):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (side, side, 3)) if make is None else np.full((side, side, 3), make)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def test_what_a_forecast_leaves(tmp_path, capsys):
    folder = tmp_path / "forecast"
    found = run(SMALL, folder)
    assert {path.name for path in folder.iterdir()} == {"forecast.json", "forecast.png", "directions.png"}
    assert (found.num_images, found.views_per_image, found.dimension) == (120, 4, 192)
    assert found.settings["loss"] == "normalized"
    assert found.settings["temperature"] == 0.5
    assert {one.without for one in found.left_out} == {"crop", "colour jitter", "blur"}
    assert found.metadata["views"] == "digits"
    assert found.label_signal is not None
    assert [one.name for one in found.classes] == list("0123456789")
    assert sum(one.share for one in found.classes) == pytest.approx(1)
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("classes") and "of 10 keep the direction" in line for line in printed)
    assert printed[0].startswith("data     digits, train: 1,437 images")
    assert "views    digits at 8 px of 120 images, in pixels" in printed
    assert str(folder / "forecast.json") in printed[-2]
    assert str(folder / "directions.png") in printed[-1]
    for name in ("forecast.png", "directions.png"):
        with Image.open(folder / name) as figure:
            assert min(figure.size) > 300


def test_the_same_command_gives_the_same_forecast(tmp_path):
    options = f"{SMALL} --max_dim 6 --method spectral"
    first, again, other = (run(f"{options} --seed {seed}", tmp_path / str(i)) for i, seed in enumerate((3, 3, 4)))
    assert first == again
    assert first.correlations != other.correlations


def test_options_reach_the_landscape(tmp_path):
    options = "--method infonce --method_config similarity=euclidean --alpha 3 --temperature 0.7 --weight_decay 0.01"
    found = run(f"{SMALL} {options} --dim 5 --max_dim 9 --views cifar-asym --views_per_image 2", tmp_path / "f")
    expected = {"loss": "infonce", "alpha": 3, "temperature": 0.7, "weight_decay": 0.01, "gamma": 0, "dim": 5}
    assert found.settings == expected
    assert (found.directions, found.views_per_image) == (9, 2)
    assert {one.without for one in found.left_out} == {*OPERATIONS} - {"blur"}
    penalized = run(f"{SMALL} --method spectral --alpha 2 --gamma 0.1 --max_dim 4", tmp_path / "g")
    assert penalized.settings["gamma"] == 0.1


def test_in_an_encoders_features_and_after_a_run(tmp_path):
    from hf_orthossl.encoders import export_encoder, load_encoder

    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    export_encoder(encoder, tmp_path / "run" / "encoder")
    spectral_report(encoder, torch.rand(20, 3, 32, 32)).save(tmp_path / "run" / "encoder")
    run_folder = tmp_path / "run"
    found = run(f"--images 100 --encoder {run_folder} --after_run {run_folder}", tmp_path / "f")
    assert found.dimension == encoder.num_features
    assert found.measured[0] == 1
    assert len(found.measured) == encoder.num_features
    assert "features of" in found.metadata["unit"]


def test_pictures_without_labels_and_of_many_sizes(tmp_path):
    folder = save_pictures(tmp_path / "pictures", 24)
    for number in range(4):
        Image.new("RGB", (40, 30 + number), (number * 60, 90, 20)).save(folder / f"large{number}.png")
    found = run(f"--dataset {folder} --views cifar-simclr --image_size 6", tmp_path / "f")
    assert found.label_signal is None
    assert found.classes is None
    assert (found.num_images, found.dimension) == (28, 108)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_landscape(name):
    settings, notes = landscape_settings(ForecastArguments(method=name))
    family = METHODS[name].family
    assert settings["loss"] == ("normalized" if family in ("contrastive", "clustering") else "spectral")
    assert ("does not cover" in notes[0]) == (family != "contrastive")
    if settings["loss"] == "normalized":
        assert settings["temperature"] == METHODS[name].config_class().temperature


def test_theory_methods_are_themselves():
    for similarity, loss in (("cosine", "normalized"), ("standardized", "normalized"), ("euclidean", "infonce")):
        arguments = ForecastArguments(method="infonce", method_config={"similarity": similarity, "alignment": 2.0})
        settings, notes = landscape_settings(arguments)
        assert settings == {"loss": loss, "alpha": 2.0, "temperature": 0.5}
        assert "describes InfoNCE" in notes[0]
    assert landscape_settings(ForecastArguments(method="spectral", alpha=1.5))[0] == {"loss": "spectral", "alpha": 1.5}


def test_leaving_out():
    assert set(without_one(get_recipe("cifar-asym"))) == {"crop", "flip", "colour jitter", "grayscale", "solarize"}
    for name, recipe in without_one(get_recipe("imagenet")).items():
        for field, value in OPERATIONS[name].items():
            assert all(getattr(view, field) == value for view in recipe.views)
    recipe, notes = full_sized(RECIPES["cifar-multicrop"], 32)
    assert recipe.num_views == 2
    assert "2 of 32 px" in notes[0]
    assert full_sized(RECIPES["digits"], 32) == (RECIPES["digits"], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--views cifar-asymm", "did you mean 'cifar-asym'"),
        ("--method simclrr", "did you mean 'simclr'"),
        ("--encoder resnet18x", "resnet18"),
        ("--dataset digitz/", "digitz"),
        ("--alpha 0", "alpha must be .* above 0, got 0"),
        ("--temperature -1", "temperature must be .* above 0, got -1"),
        ("--temperature 0.5 --method byol", "has none"),
        ("--weight_decay 0.1", "weight_decay"),
        ("--gamma -1", "gamma"),
        ("--dim 193", "dim must be at most D = 192.*got 193"),
        ("--views_per_image 1", "views_per_image must be at least 2, got 1"),
        ("--views_per_image 3", "multiple of 2.*got 3"),
        ("--images 1", "images must be at least 4 for intervals, got 1"),
        ("--max_dim 0", "max_dim must be at least 1, got 0"),
        ("--after_run nowhere", "nowhere"),
        ("--imagess 5", "did you mean '--images'"),
        ("--method_config temperatur=1", "temperature"),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path):
    import re

    assert re.search(message, refused(f"{SMALL} {arguments}", capsys, tmp_path / "f"))


def test_bad_images(capsys, tmp_path):
    single = save_pictures(tmp_path / "single", 1)
    line = refused(f"--dataset {single} --views cifar-asym", capsys, tmp_path / "f")
    assert "has 1 images" in line
    gray = save_pictures(tmp_path / "gray", 12, make=128)
    assert "--image_size 8" in refused(f"--dataset {gray} --views cifar-asym --image_size 32", capsys, tmp_path / "f")
    large = save_pictures(tmp_path / "large", 6, side=64)
    line = refused(f"--dataset {large} --views cifar-asym --image_size 64", capsys, tmp_path / "f")
    assert "12,288" in line
    assert "image_size" in line
    assert "encoder" in line


def test_broken_encoder_ends_in_a_line_of_its_own(capsys, tmp_path):
    """No progress bar shares the line, as one would where an error comes in the middle of the work."""
    from hf_orthossl.encoders import export_encoder, load_encoder

    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    with torch.no_grad():
        next(encoder.backbone.layer4.parameters()).fill_(torch.nan)
    export_encoder(encoder, tmp_path / "encoder")
    assert "not finite" in refused(f"--images 20 --encoder {tmp_path / 'encoder'}", capsys, tmp_path / "f")


@pytest.mark.slow
def test_cifar10_in_time_and_memory(cifar10, tmp_path):
    """10,000 images × 4 views of 3,072 pixels; run it alone to see the time."""
    found = run(f"--dataset {cifar10} --views cifar-asym", tmp_path / "f")
    assert (found.num_images, found.dimension, found.directions) == (10000, 3072, 256)
    assert json.loads((tmp_path / "f" / "forecast.json").read_text())["left_out"]
