"""Two processes under accelerate's DDP and FSDP2 against one with the whole batch, through both fronts, in float64."""

import shutil

import pytest
import torch
from runs_in_double import assert_close, fit, fit_here
from safetensors.torch import load_file

from hf_orthossl.training.auto_gamma import STEPS
from hf_orthossl.training.callbacks.reporting import read_history


def history(folder):
    return read_history(folder)


RUNS = {
    ("ddp", "loop"): {"model": {"method": "mocov2plus", "method_config": {"queue_size": 64}, "regularizer": "so"}},
    ("ddp", "trainer"): {"model": {"method": "simclr", "regularizer": "srip"}, "gradient_accumulation_steps": 2},
    ("fsdp2", "loop"): {"model": {"method": "byol", "regularizer": "so"}, "optim": "lars"},
    ("fsdp2", "trainer"): {
        "model": {"method": "swav", "method_config": {"freeze_prototypes_epochs": 0}, "regularizer": "srip"},
        "max_grad_norm": 0.5,
    },
}


@pytest.mark.parametrize(
    ("engine", "front"),
    [pytest.param(*run, marks=pytest.mark.slow if run == ("ddp", "trainer") else ()) for run in RUNS],
)
def test_two_processes_are_one(engine, front, two_processes, tmp_path):
    """Losses, penalty, norm of the gradient, spectra and accuracies as logged, and what was trained."""
    settings = RUNS[engine, front] | {"spectra_steps": 2, "knn_steps": 4, "linear_probe_steps": 4}
    one, _, _ = fit("one", front, tmp_path / "one", **settings)
    (two, units, share), other = two_processes.run(fit_here, (engine, front, tmp_path / "two"), settings)
    if engine == "fsdp2":
        assert other[0] is None
        assert units > 4
        assert share == 1
    expected, found = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(found) >= 4
    for before, after in zip(expected, found, strict=True):
        assert before.keys() == after.keys()
        for name in before:
            if not name.startswith("train_"):
                # Logged in float32; a probe is fitted to float32.
                close = pytest.approx(before[name], rel=1e-4 if "linear_probe" in name else 2e-6, abs=1e-7)
                assert after[name] == close, (name, before["step"])
    assert {"knn/top1", "linear_probe/top1", "spectra/weights/relative_rank_mean"} <= found[3].keys()
    assert_close(two, one, rtol=1e-8)


MASKED = {
    "backbone": "test_vit",
    "backbone_config": {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2},
    "method_config": {"hidden_dim": 16, "bottleneck_dim": 6, "prototypes": 9, "warmup_teacher_epochs": 0.0},
}


@pytest.mark.parametrize(
    ("engine", "method"), [pytest.param("ddp", "ibot", marks=pytest.mark.slow), ("fsdp2", "dinov2")]
)
def test_two_processes_mask_as_one(engine, method, two_processes, tmp_path):
    """Tokens of a vision transformer whose blocks are wrapped, masks of images wherever they are, and the teacher's."""
    settings = {"model": MASKED | {"method": method, "regularizer": "so"}, "spectra_steps": 0}
    one, _, _ = fit("one", "trainer", tmp_path / "one", **settings)
    (two, units, _), _ = two_processes.run(fit_here, (engine, "trainer", tmp_path / "two"), settings)
    assert (units > 2) == (engine == "fsdp2")
    for before, after in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        parts = [name for name in before if name.endswith(("loss", "koleo")) and not name.startswith("train_")]
        assert {name: after[name] for name in parts} == pytest.approx({name: before[name] for name in parts}, rel=2e-6)
    assert_close(two, one, rtol=1e-8)


DECOUPLED = {
    ("ddp", "loop"): {"model": {"method": "byol", "regularizer": "so"}, "gradient_accumulation_steps": 2},
    ("fsdp2", "trainer"): {"model": {"method": "simclr", "regularizer": "scaled_so", "penalty_every": 2}},
}


@pytest.mark.parametrize(("engine", "front"), DECOUPLED)
def test_two_processes_take_the_decoupled_steps_of_one(engine, front, two_processes, tmp_path):
    settings = DECOUPLED[engine, front] | {"spectra_steps": 0, "warmup_steps": 0}
    settings["model"] = settings["model"] | {"gamma": None, "penalty_mode": "decoupled", "strength": 0.2}
    one, _, _ = fit("one", front, tmp_path / "one", **settings)
    (two, _, _), _ = two_processes.run(fit_here, (engine, front, tmp_path / "two"), settings)
    for before, after in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        for name in ("loss", "orthogonality"):
            if name in before:
                assert after[name] == pytest.approx(before[name], rel=2e-6), (name, before["step"])
    values = [entry["orthogonality"] for entry in history(tmp_path / "two") if "orthogonality" in entry]
    assert len(values) == 4 // settings["model"].get("penalty_every", 1)
    assert values[-1] < values[0]
    assert_close(two, one)


FROZEN = {
    # Two of four steps: DDP then waits for weights that it did not before.
    ("ddp", "loop"): {"freeze_epochs": 0.4, "layer_decay": 0.5, "freeze": ["conv1", "layer[1-3]"]},
    ("ddp", "trainer"): {"freeze_epochs": 0.4, "gradient_accumulation_steps": 2},
    ("fsdp2", "loop"): {"freeze": ["all_but_last=2"], "layer_decay": 0.5},
}


@pytest.mark.parametrize(("engine", "front"), FROZEN)
def test_what_is_frozen_is_so_in_every_process(engine, front, two_processes, tmp_path):
    settings = FROZEN[engine, front] | {"model": {"method": "byol", "regularizer": "so", "gamma": 1e-3}}
    settings |= {"spectra_steps": 0, "weight_decay": 1e-2}
    one, _, _ = fit("one", front, tmp_path / "one", **settings)
    (two, _, _), _ = two_processes.run(fit_here, (engine, front, tmp_path / "two"), settings)
    for before, after in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        for name in ("loss", "orthogonality"):
            if name in before:
                assert after[name] == pytest.approx(before[name], rel=2e-6, abs=1e-9), (name, before["step"])
    assert_close(two, one, rtol=1e-8)


@pytest.mark.parametrize(("engine", "front"), [("ddp", "trainer"), ("fsdp2", "loop")])
def test_every_process_measures_the_same_gamma(engine, front, two_processes, tmp_path):
    """Of gradients that are averaged, or of which each process holds a part, and of a penalty that is shared out."""
    settings = {"model": {"method": "simclr", "regularizer": "so", "gamma": "auto"}, "spectra_steps": 0}
    settings |= {"max_steps": STEPS + 2, "max_grad_norm": 0.1}
    one, _, _ = fit("one", front, tmp_path / "one", **settings)
    (two, _, _), _ = two_processes.run(fit_here, (engine, front, tmp_path / "two"), settings)
    gammas = [[entry["gamma"] for entry in history(tmp_path / run) if "gamma" in entry] for run in ("one", "two")]
    assert gammas[1] == [pytest.approx(gammas[0][0], rel=1e-9)]
    assert_close(two, one, rtol=1e-8)


@pytest.mark.parametrize(("engine", "front"), [("ddp", "loop"), ("fsdp2", "trainer")])
def test_every_process_stops_on_collapse(engine, front, two_processes, tmp_path):
    """And the main one writes the best encoder, of whole weights."""
    settings = {"model": {"method": "simclr"}, "spectra_steps": 1, "spectra_images": 40, "select_by": "rankme"}
    settings |= {"stop_on_collapse": True, "spectra_threshold": 0.99, "save_strategy": "steps", "save_steps": 4}
    fit("one", front, tmp_path / "one", **settings)
    two_processes.run(fit_here, (engine, front, tmp_path / "two"), settings)
    for before, after in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        best = {name: value for name, value in before.items() if "best" in name or name == "step"}
        assert {name: after[name] for name in best} == pytest.approx(best, rel=1e-6)
    assert [path.name for path in (tmp_path / "two").glob("checkpoint-*")] == ["checkpoint-2"]
    for name, value in load_file(tmp_path / "one" / "encoder" / "model.safetensors").items():
        found = load_file(tmp_path / "two" / "encoder" / "model.safetensors")[name]
        assert torch.allclose(found, value, rtol=1e-7, atol=1e-8), name


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_every_process_knows_the_start(engine, two_processes, tmp_path):
    """The references of SO-init are whole on each, whether weights are sharded or not."""
    settings = {"model": {"method": "simclr", "regularizer": "so_init", "gamma": 0.1}, "spectra_steps": 0}
    one, _, _ = fit("one", "loop", tmp_path / "one", **settings)
    (two, _, _), _ = two_processes.run(fit_here, (engine, "loop", tmp_path / "two"), settings)
    before, after = history(tmp_path / "one"), history(tmp_path / "two")
    assert before[0]["orthogonality"] < 1e-9 < before[-1]["orthogonality"]
    for entry, other in zip(before, after, strict=True):
        assert other["orthogonality"] == pytest.approx(entry["orthogonality"], rel=1e-5, abs=1e-12)
    assert_close(two, one, rtol=1e-8)


def test_a_sharded_run_cannot_train_later_what_is_frozen(two_processes, tmp_path):
    with pytest.raises(AssertionError, match="freeze_epochs is 1, but FSDP cannot train weights later"):
        two_processes.run(fit_here, ("fsdp2", "loop", tmp_path), {"model": {}, "freeze_epochs": 1, "max_steps": 6})


@pytest.mark.slow
@pytest.mark.parametrize("front", ["loop", "trainer"])
def test_resuming_a_sharded_run_changes_nothing(front, two_processes, tmp_path):
    model = {"method": "mocov2plus", "method_config": {"queue_size": 64}, "regularizer": "srip"}
    settings = {"model": model, "save_strategy": "steps", "save_steps": 2}
    (whole, _, _), _ = two_processes.run(fit_here, ("fsdp2", front, tmp_path), settings)
    shutil.rmtree(tmp_path / "checkpoint-4")
    (resumed, _, _), _ = two_processes.run(fit_here, ("fsdp2", front, tmp_path), settings | {"resume": True})
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    with pytest.raises(ValueError, match="was saved with FSDP, but this run is without FSDP"):
        fit("one", front, tmp_path, **settings, resume=True)
