"""`scripts/reproduce.py`: its presets are comparisons, stopped and continued like any other."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import reproduce
from reproduction.presets import PRESETS, Experiment, penalty

from hf_orthossl.comparison import Arm
from hf_orthossl.comparison.options import ARM_OPTIONS, OWN_OPTIONS
from hf_orthossl.comparison.runs import Run

TINY = Experiment(
    name="byol",
    options={
        "method": "byol",
        "backbone": "resnet18_cifar",
        "backbone_config": {"channels": [4, 4, 8, 8]},
        "method_config": {"hidden_dim": 16, "output_dim": 8},
        "per_device_train_batch_size": 32,
    },
    arms=[Arm("none", {"regularizer": "none"}), penalty("so", (1e-3,))],
    epochs=0.25,
    tuning_epochs=0.1,
    train="train[:256]",
    test="test[:64]",
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Run the command on the tiny experiment, as its two names."""
    monkeypatch.setitem(PRESETS, "cpu", [TINY])

    def run(*arguments):
        reproduce.main(["--dataset", "digits", "--output_dir", str(tmp_path), "--seeds", "1", *arguments])

    return run


def test_a_preset_is_a_comparison(tiny, tmp_path, capsys):
    tiny("--minutes", "1e-9")
    assert "stopped  2 of 2 runs are left: the same command goes on with them" in capsys.readouterr().out
    tiny()
    record = json.loads((tmp_path / "cpu" / "byol" / "comparison.json").read_text())
    assert [(row["arm"], row["settings"]["gamma"]) for row in record["runs"]] == [("none", None), ("so", 1e-3)]
    # Two steps of 32 of 256 images are a quarter of an epoch.
    assert {row["settings"]["training"]["steps"] for row in record["runs"]} == {2}
    assert (tmp_path / "cpu" / "byol" / "README.md").is_file()
    with pytest.raises(ValueError, match="was started with"):
        tiny("--epochs", "0.5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--experiments mae", "cpu has no 'mae', choose from byol"),
        ("--seeds 0", "seeds is 0"),
        ("--epochs 0", "--epochs is 0: it must be more than 0"),
        ("--minutes -3", "--minutes is -3: it must be more than 0"),
    ],
)
def test_bad_options(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(*arguments.split())


def test_unknown_data_are_refused(tiny):
    with pytest.raises(FileNotFoundError):
        tiny("--dataset", "/nowhere/cifar10")


@pytest.mark.parametrize("experiment", [pytest.param(e, id=f"{p}-{e.name}") for p in PRESETS for e in PRESETS[p]])
def test_arms_differ_by_what_an_arm_decides(experiment, tmp_path, monkeypatch):
    """Every run of a preset has the options that all arms share, which `orthossl pretrain` takes, and its arm's."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    shared = reproduce.shared_options(experiment, "digits", device="cpu")
    options = reproduce.comparison_options(experiment, 3, tmp_path)
    assert options.arms[0] == "none"
    assert not {*ARM_OPTIONS, *OWN_OPTIONS} & set(shared)
    for arm in experiment.arms:
        data, model, args = Run(arm, next(iter(arm.strengths), None), 0, shared, tmp_path / arm.name).arguments()
        assert (data.split, args.num_train_epochs, args.seed) == (experiment.train, experiment.epochs, 0)
        assert (model.regularizer == "none") == (arm.name in ("none", "whitening"))
        assert set(arm.options) <= {"regularizer", "regularizer_config"}
