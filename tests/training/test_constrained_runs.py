"""Whole runs with orthonormal weights: the command, both fronts, resuming, processes, skipped steps, and refusals."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from runs_in_double import assert_close, fit, fit_here
from safetensors.torch import load_file
from survival_runs import FRONTS, assert_same, state, tiny_model, train

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.cli import main
from hf_orthossl.encoders import load_encoder
from hf_orthossl.methods import Progress
from hf_orthossl.regularization import select_matrices
from hf_orthossl.spectra import SpectralReport

CONSTRAINED = {"regularizer": "none", "gamma": None, "constrain": "orthogonal"}
TINY = {"backbone_config": {"channels": [16, 16, 32, 32]}, "method": "byol", "method_config": None}
ARGV = ["pretrain", "--dataset", "digits", "--split", "train[:128]", "--use_cpu", "--per_device_train_batch_size", "32"]


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))


def singular_values(module):
    return torch.cat([torch.linalg.svdvals(m.matrix().detach().double()) for m in select_matrices(module)])


def assert_orthonormal(module, tolerance=1e-4):
    values = singular_values(module)
    assert torch.allclose(values, torch.ones_like(values), rtol=0, atol=tolerance), (values.min(), values.max())


@pytest.mark.parametrize(
    ("backbone", "method", "optim"), [("resnet10t", "simclr", "sgd"), ("test_vit", "dino", "adamw_torch")]
)
def test_a_whole_run_ends_orthonormal(backbone, method, optim, tmp_path, capsys):
    """With a rate and a decay that would move the weights far; timm loads the folder as any other."""
    argv = [*ARGV, "--constrain", "orthogonal", "--backbone", backbone, "--method", method, "--max_steps", "20"]
    argv += ["--optim", optim, "--learning_rate", "0.02", "--weight_decay", "0.1", "--output_dir", str(tmp_path / "a")]
    main(argv)
    said = capsys.readouterr().out
    assert ", weights kept orthogonal" in said
    assert "matrices are orthonormal on their smaller side, from the start and after every step" in said
    assert ("fused layers by their parts" in said) == (backbone == "test_vit")
    folder = tmp_path / "a" / "encoder"
    encoder = load_encoder(str(folder), pretrained=True)
    assert_orthonormal(encoder)
    assert len(select_matrices(encoder)) > 10
    report = SpectralReport.load(folder)
    for name, layer in report.weights.items():
        assert np.allclose(layer.singular_values, 1, rtol=0, atol=1e-4), name
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == plain.state_dict().keys()
    assert not any("parametrizations" in name for name in weights)
    assert "orthogonal: the nearest orthonormal matrices after each optimizer step" in (folder / "README.md").read_text(
        encoding="utf-8"
    )
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["orthossl"]["constrain"] == "orthogonal"


@pytest.mark.parametrize("front", FRONTS)
def test_resuming_changes_nothing(front, tmp_path):
    settings = {"max_steps": 4, "gradient_accumulation_steps": 1, "spectra_steps": 0, "optim": "muon"}
    whole = state(train(front, tmp_path, tiny_model(**CONSTRAINED), **settings))
    shutil.rmtree(tmp_path / "checkpoint-4")
    model = train(front, tmp_path, tiny_model(**CONSTRAINED), resume=True, **settings)
    assert_same(whole, state(model))
    assert_orthonormal(model.encoder)
    loaded = SSLModel.from_pretrained(tmp_path / "checkpoint-4") if front == "trainer" else model
    assert_same(whole, state(loaded))


def test_a_skipped_step_leaves_every_bit():
    model = tiny_model(**CONSTRAINED | {"method": "simclr", "method_config": None})
    assert_orthonormal(model.encoder)
    model.begin_step(Progress(0, 4, 2))
    before = state(model)
    model.end_step(skipped=True)
    assert_same(before, state(model))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.end_step()
    assert_orthonormal(model.encoder)


@pytest.mark.parametrize(("engine", "front"), [("ddp", "trainer"), ("fsdp2", "loop")])
def test_two_processes_are_one(engine, front, two_processes, tmp_path):
    settings = {"model": CONSTRAINED | TINY, "learning_rate": 0.05, "momentum": 0.9, "spectra_steps": 0}
    settings |= {"warmup_steps": 0, "weight_decay": 0.1}
    one, _, _ = fit("one", front, tmp_path / "one", **settings)
    (two, _, _), _ = two_processes.run(fit_here, (engine, front, tmp_path / "two"), settings)
    assert_close(two, one)
    model = tiny_model(**CONSTRAINED | TINY).double()
    model.encoder.load_state_dict(one)
    assert_orthonormal(model.encoder, 1e-12)


def test_given_weights_become_the_nearest(tmp_path, capsys):
    main([*ARGV, "--max_steps", "1", "--output_dir", str(tmp_path / "a"), "--save_strategy", "no"])
    argv = [*ARGV, "--max_steps", "1", "--pretrained", str(tmp_path / "a"), "--constrain", "orthogonal"]
    main([*argv, "--output_dir", str(tmp_path / "b")])
    assert "; the given ones moved by " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*argv, "--freeze", "layer1", "--output_dir", str(tmp_path / "c")])
    assert "freeze is layer1, but constrain is orthogonal, which has moved all matrices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--constrain orthogonall", "constrain is 'orthogonall': did you mean 'orthogonal'"),
        ("--constrain orthogonal --regularizer so", "regularizer is so, but constrain is orthogonal, which leaves"),
        ("--constrain orthogonal --regularizer so --penalty_mode decoupled", "regularizer is so, but constrain is"),
        ("--constrain orthogonal --gamma 0.1", "gamma is 0.1, but with constrain orthogonal there is no penalty"),
    ],
)
def test_what_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*ARGV, "--max_steps", "1", "--output_dir", str(tmp_path / "run"), *options.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_python_refuses_the_default_penalty_by_name():
    with pytest.raises(ValueError, match="pass regularizer none, or leave out constrain"):
        SSLConfig(constrain="orthogonal")
