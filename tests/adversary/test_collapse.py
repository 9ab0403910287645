"""Collapse is a result: data, weights and features without variance go through every command and end in words."""

import contextlib
import io
import json
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_orthossl import load_encoder, pretrain, spectral_report
from hf_orthossl.encoders import export_encoder
from hf_orthossl.methods import METHODS
from hf_orthossl.spectra import measures, plot_filter_correlation, plot_representations, plot_spectra
from hf_orthossl.training.callbacks import SpectraCallback

BACKBONES = ("resnet10t", "vit_tiny_patch16_224", "convnext_atto")
# Those whose collapsed encoders go through every command.
MEASURED = BACKBONES[:2]
SIZE = 32


def _images(folder, make, splits=("train", "test")):
    """Writes eight images of two classes for each split: `make(number)` returns pixels."""
    for split in splits:
        for number in range(16):
            path = folder / split / "ab"[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(make(number)).save(path)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data sets by the kind of their degeneracy."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    one = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    makers = {
        "black": lambda number: np.zeros((SIZE, SIZE, 3), np.uint8),
        "grey": lambda number: np.full((SIZE, SIZE), 127, np.uint8),
        "same": lambda number: one,
        "two": lambda number: one if number % 4 else 255 - one,
        "varied": lambda number: generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
    }
    return {name: _images(root / name, make) for name, make in makers.items()}


def _zero(encoder):
    for parameter in encoder.parameters():
        parameter.zero_()


def _constant(encoder):
    # Features no longer depend on the image, but are not zero.
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 1:
            parameter.zero_()
        elif name.endswith("bias"):
            parameter.uniform_(0.1, 1)


def _half(encoder):
    """Half of the channels of the representation are dead."""
    norm = [m for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.BatchNorm2d)][-1]
    norm.weight[: len(norm.weight) // 2] = 0


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Encoder folders by architecture and kind of collapse."""
    folders = {}
    for backbone in MEASURED:
        for kind in (_zero, _constant, _half):
            torch.manual_seed(0)
            encoder = load_encoder(backbone, pretrained=False, image_size=SIZE)
            with torch.no_grad():
                kind(encoder)
            folders[backbone, kind.__name__[1:]] = export_encoder(encoder, tmp_path_factory.mktemp("encoder"))
    return folders


def _strict(path):
    """Reads JSON without NaN and infinity."""

    def reject(token):
        raise AssertionError(f"{token} in {path}")

    return json.loads(Path(path).read_text(), parse_constant=reject)


def _whole(encoder, printed):
    """Asserts a whole encoder folder that says what happened, on the terminal and at the top of its card."""
    card = (encoder / "README.md").read_text(encoding="utf-8")
    top = card.split("## Usage")[0]
    for words in ("are equal", "no variance", "collapsed completely"):
        assert words in top, top
    assert any(line.startswith("collapse ") for line in printed.splitlines()), printed[-500:]
    if (encoder / "results.json").exists():
        _strict(encoder / "results.json")
    spectra = _strict(encoder / "spectra.json")
    assert spectra["features"]["representation"]["effective_rank"] == 0
    assert spectra["features"]["representation"]["num_positive"] == 0
    with Image.open(encoder / "spectra.png") as figure:
        assert figure.size[0] > 500


def _runs():
    chosen = random.Random(17)
    methods = chosen.sample(sorted(METHODS), 9)
    for number, method in enumerate(methods):
        yield method, BACKBONES[number % 3], ("black", "same", "grey")[number // 3], number % 3


@pytest.mark.parametrize(("method", "backbone", "kind", "front"), _runs())
def test_training_on_equal_images_ends_with_a_card(attacks, data, tmp_path, method, backbone, kind, front):
    # Identical views make identical images: crops and colours of a picture differ, and its representations with them.
    options = {"method": method, "backbone": backbone, "max_steps": 2, "per_device_train_batch_size": 8}
    out, printed = tmp_path / "run", io.StringIO()
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    with attacks.attempt(f"{method} on {kind}, {backbone}, front {front}"):
        if front == 0:
            outcome = command("pretrain", "--dataset", data[kind], "--output_dir", out, *flags)
            outcome.worked()
            printed.write(outcome.out)
        else:
            with contextlib.redirect_stdout(printed):
                pretrain(data[kind], front=("trainer", "loop")[front - 1], output_dir=out, **options)
        _whole(out / "encoder", printed.getvalue())
    with attacks.attempt(f"{method} on {kind}, {backbone}, front {front}, again from its folder"):
        if front == 2:
            pretrain(data[kind], front="loop", output_dir=out, resume=True, **options)
        else:
            command("pretrain", "--output_dir", out, "--resume").worked()
        assert (out / "encoder" / "spectra.png").is_file()


def test_spectra_of_collapsed_encoders_and_data(attacks, encoders, data, tmp_path):
    for (backbone, kind), folder in encoders.items():
        for images in ("black", "varied"):
            out = tmp_path / f"{backbone}-{kind}-{images}"
            with attacks.attempt(f"spectra of {backbone}, {kind}, on {images}"):
                outcome = command("spectra", folder, "--dataset", data[images], "--output_dir", out)
                outcome.worked("Collapse: " if kind != "half" or images == "black" else "images cap the rank")
                assert "nan" not in outcome.out.lower()
                assert "Warning" not in outcome.err
                features = _strict(out / "spectra.json")["features"]["representation"]
                if kind != "half" or images == "black":
                    assert (features["effective_rank"], features["num_positive"]) == (0, 0)
                assert (out / "spectra.png").is_file()
        with attacks.attempt(f"spectra of the weights of {backbone}, {kind}"):
            outcome = command("spectra", folder, "--output_dir", tmp_path / f"{backbone}-{kind}")
            outcome.worked(*(["are zero"] if kind != "half" else []))
    for backbone in MEASURED:
        with attacks.attempt(f"comparison of {backbone}"):
            pair = (encoders[backbone, "zero"], encoders[backbone, "half"])
            out = tmp_path / f"{backbone}-pair"
            outcome = command("spectra", *pair, "--dataset", data["varied"], "--output_dir", out)
            outcome.worked("Collapse (A)")


def test_probes_of_collapsed_encoders_are_at_chance(attacks, encoders, data, tmp_path):
    for (backbone, kind), folder in encoders.items():
        for images in ("black", "varied"):
            if kind == "half" and images == "varied":
                continue
            with attacks.attempt(f"evaluate {backbone}, {kind}, on {images}"):
                out = tmp_path / f"{backbone}-{kind}-{images}"
                tasks = ["--task", "knn", "linear", "--k", 3, "--epochs", 3, "--cache", "none"]
                outcome = command("evaluate", folder, "--dataset", data[images], "--output_dir", out, *tasks)
                outcome.worked("are equal")
                values = {r["value"] for r in _strict(out / "results.json") if r["metric"] == "top1"}
                assert values == {0.5}, values
    with attacks.attempt("fine-tuning on black images"):
        tuning = ["--task", "finetune", "--finetune_epochs", 1, "--finetune_batch_size", 8]
        outcome = command(
            "evaluate", "resnet10t", "--untrained", "--dataset", data["black"], "--output_dir", tmp_path / "f", *tuning
        )
        outcome.worked()
        assert {r["value"] for r in _strict(tmp_path / "f" / "results.json") if r["metric"] == "top1"} == {0.5}


def test_forecasts_without_variance(attacks, encoders, data, tmp_path):
    for images, method in [
        ("black", "simclr"),
        ("black", "byol"),
        ("grey", "vicreg"),
        ("same", "dino"),
        ("same", "byol"),
    ]:
        with attacks.attempt(f"forecast of {images}, {method}"):
            out = tmp_path / f"{images}-{method}"
            command("forecast", "--dataset", data[images], "--method", method, "--output_dir", out).worked("are equal")
            _strict(out / "forecast.json")
            assert (out / "forecast.png").is_file()
            assert (out / "directions.png").is_file()
    for backbone in MEASURED:
        with attacks.attempt(f"forecast in the features of a constant {backbone}"):
            folder, out = encoders[backbone, "constant"], tmp_path / backbone
            outcome = command("forecast", "--dataset", data["varied"], "--encoder", folder, "--output_dir", out)
            outcome.worked("complete collapse")


def test_measures_are_defined_at_their_limits(attacks):
    extreme = st.sampled_from([0.0, 5e-324, 1e-320, 1e-200, 1e-38, 1.0, 1e38, 1e200, 1e308])

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.lists(extreme, min_size=1, max_size=8))
    def tries(values):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for measure in (measures.effective_rank, measures.rankme, measures.stable_rank):
                assert 0 <= measure(values) <= len(values) + 1e-4, (measure.__name__, values)
            assert 0 <= measures.participation_ratio(values) <= len(values) + 1e-4, ("participation_ratio", values)
            assert not math.isnan(measures.condition_number(values)), ("condition_number", values)
            assert measures.alpha_req(values) is None or math.isfinite(measures.alpha_req(values))
            assert 0 <= measures.count_positive(values) <= len(values)

    for _ in range(10):
        with attacks.attempt("measures of extreme spectra"):
            tries()


def test_rounding_is_not_variance(attacks):
    chosen = random.Random(5)
    for number in range(12):
        backbone = (*BACKBONES, "mobilenetv3_small_050")[number % 4]
        torch.manual_seed(number)
        encoder = load_encoder(backbone, pretrained=False, image_size=SIZE).eval()
        image, batch = torch.randn(1, 3, SIZE, SIZE), chosen.choice([3, 7, 13, 31])
        with attacks.attempt(f"the same image 40 times through {backbone}, in batches of {batch}"):
            report = spectral_report(encoder, image.expand(40, -1, -1, -1), batch_size=batch)
            found = {name: f.num_positive for name, f in report.features.items() if f.num_positive}
            assert not found, found


def test_what_a_norm_removes_and_a_sample_hides_is_no_collapse(attacks, tmp_path):
    for number, backbone in enumerate(("vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224") * 2):
        size = 64 if "swin" in backbone else SIZE
        torch.manual_seed(number)
        encoder = load_encoder(backbone, pretrained=False, image_size=size).eval()
        for norm in encoder.modules():
            if isinstance(norm, torch.nn.LayerNorm):
                torch.nn.init.uniform_(norm.weight, 0.3, 2.0)
        images = 900 if number < 3 else 20
        with attacks.attempt(f"{backbone} on {images} images"):
            report = spectral_report(encoder, torch.randn(images, 3, size, size), layers=["representation"])
            spectrum = report.features["representation"]
            assert spectrum.num_positive == spectrum.most_positive
            text = report.table()
            assert "no collapse" in text, text
            for words in ("Collapse:", "in some directions: "):
                assert words not in text, text
            assert "by construction" in text or images == 20


def test_figures_of_what_does_not_vary(attacks, tmp_path):
    chosen = random.Random(3)
    for number in range(12):
        torch.manual_seed(number)
        model = torch.nn.Sequential()
        for _ in range(3):
            made = torch.nn.Conv2d(3, 3, 3, padding=1)
            fill = chosen.choice(["zero", "equal", "random"])
            if fill != "random":
                torch.nn.init.constant_(made.weight, 0.0 if fill == "zero" else 0.1)
            model.append(made)
        images = torch.randn(1, 3, 8, 8).expand(9, -1, -1, -1) if number % 2 else torch.randn(9, 3, 8, 8)
        with attacks.attempt(f"figures of model {number}"), warnings.catch_warnings():
            warnings.simplefilter("error")
            report = spectral_report(model, images)
            plot_spectra({"a": report, "b": report}, tmp_path / "spectra.png")
            assert all(math.isfinite(value) for value in report.summary().values())
            assert type(report).load(report.save(tmp_path / "report")).table() == report.table()
            plot_filter_correlation(torch.full((9, 4), 0.1 * (number % 2)), tmp_path / "filters.png")
            plot_representations(torch.full((9, 4), 0.3), torch.zeros(9), tmp_path / "map.png", method="pca")


def test_callbacks_say_what_collapsed(attacks, caplog):
    for backbone in BACKBONES:
        torch.manual_seed(0)
        encoder = load_encoder(backbone, pretrained=False, image_size=SIZE)
        with torch.no_grad():
            _constant(encoder)
        for images in (torch.randn(8, 3, SIZE, SIZE), torch.zeros(8, 3, SIZE, SIZE)):
            with attacks.attempt(f"SpectraCallback on a constant {backbone}"):
                caplog.clear()
                callback = SpectraCallback(1, images=images)
                callback.begin(encoder)
                scalars = callback.measure(1, 2)
                assert scalars["spectra/features/representation/effective_rank"] == 0
                assert all(math.isfinite(value) for value in scalars.values())
                assert "collapsed completely" in caplog.text
