"""The linear encoder is one matrix, and every command takes it like any other backbone."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch

from hf_orthossl.encoders import export_encoder, load_encoder
from hf_orthossl.regularization import OrthogonalityRegularizer
from hf_orthossl.spectra import covariance_eigenvalues, spectral_report

# Runs where this package does not exist.
STRANGER = """
import sys
sys.modules["hf_orthossl"] = None
import torch
from transformers import AutoModel
images, expected = torch.load("expected.pt", weights_only=True)
model = AutoModel.from_pretrained("encoder", trust_remote_code=True).eval()
with torch.no_grad():
    torch.testing.assert_close(model(images).pooler_output, expected)
"""


@pytest.mark.parametrize("bias", [False, True])
def test_is_one_matrix(bias):
    encoder = load_encoder("linear", image_size=8, num_features=5, bias=bias)
    assert (encoder.num_features, encoder.image_size, encoder.stage_names) == (5, 8, ["representation"])
    images = torch.randn(4, 3, 8, 8)
    W = encoder.backbone.projection.weight
    offset = encoder(torch.zeros(1, 3, 8, 8))
    assert (offset.abs().max() > 0) == bias
    torch.testing.assert_close(encoder(images), images.flatten(1) @ W.T + offset)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 5 * 192 + 5 * bias


def test_penalty_takes_the_matrix_from_pixels_to_representation():
    encoder = load_encoder("linear", image_size=8, num_features=5)
    W = encoder.backbone.projection.weight
    expected = (W @ W.T - torch.eye(5)).square().sum()
    torch.testing.assert_close(OrthogonalityRegularizer(encoder, "so")(), expected)


def test_spectra_of_input_and_representation():
    encoder = load_encoder("linear", image_size=8, num_features=5).eval()
    images = torch.randn(64, 3, 8, 8)
    report = spectral_report(encoder, [images])
    assert list(report.features) == ["input", "representation"]
    with torch.no_grad():
        expected = covariance_eigenvalues(encoder(images))
    torch.testing.assert_close(report.features["representation"].eigenvalues, expected / expected[0], atol=1e-6, rtol=0)
    (weight,) = report.weights.values()
    assert weight.shape == (192, 5)


def test_export_loads_here_and_without_this_package(tmp_path):
    encoder = load_encoder("linear", image_size=8, num_features=5, bias=True).eval()
    folder = export_encoder(encoder, tmp_path / "encoder")
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = encoder(images)
        loaded = load_encoder(str(folder), pretrained=True).eval()
        torch.testing.assert_close(loaded(images), expected)
    for attribute in ("image_size", "mean", "std", "interpolation", "num_features", "stage_names"):
        assert getattr(loaded, attribute) == getattr(encoder, attribute), attribute
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {"AutoModel": "modeling_linear.LinearModel"}
    torch.save((images, expected), tmp_path / "expected.pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf_home")}
    run = subprocess.run(
        [sys.executable, "-c", STRANGER], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_a_small_network_written_over_it_leaves_no_code_behind(tmp_path):
    folder = export_encoder(load_encoder("linear", image_size=8), tmp_path / "encoder")
    export_encoder(load_encoder("wide_resnet28_2"), folder)
    assert {path.name for path in folder.glob("*.py")} == {"modeling_small_images.py"}


def test_timm_treats_it_as_its_own():
    model = timm.create_model("linear", img_size=8, num_features=5, num_classes=3)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert model.get_classifier().in_features == 5
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_unknown_arguments_are_refused_in_one_line():
    with pytest.raises(ValueError, match="backbone 'linear' cannot be built"):
        load_encoder("linear", image_size=8, num_featurs=5)
