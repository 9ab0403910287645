"""`gamma="auto"`: the ratio of two gradients over the first steps, against gradients written out in float64."""

import shutil
import statistics

import pytest
import torch
from small_models import Run, small_model, views_of_step
from survival_runs import FRONTS, assert_same, digits, history, state, tiny_arguments, tiny_model
from survival_runs import train as train_tiny

from hf_orthossl import SSLConfig
from hf_orthossl.methods import Progress
from hf_orthossl.regularization import register_penalty
from hf_orthossl.regularization.penalties import PENALTIES
from hf_orthossl.training import TrainingData, pretrain_loop
from hf_orthossl.training.auto_gamma import gradient_norms
from hf_orthossl.training.publishing import training_record
from hf_orthossl.training.resume import begin_record
from hf_orthossl.training.step import SSLStep

# Fewer than the ten of a real run.
STEPS = 4


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("hf_orthossl.training.auto_gamma.STEPS", STEPS)
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))


def train(*args, **settings):
    return train_tiny(*args, **{"spectra_steps": 0, "save_strategy": "no"} | settings)


def auto_model(**changes):
    return tiny_model(**{"gamma": "auto", "regularizer": "so", "method": "simclr", "method_config": None} | changes)


def written_out(model):
    """The norms, from `.grad` and from ∇‖G − I‖² = 4(WWᵀ − I)W of every matrix, rows on the smaller side."""
    loss = penalty = 0.0
    for matrix in model.regularizer.matrices:
        weight = matrix.parameter
        W = weight.detach().double().flatten(1)
        W = W if W.shape[0] <= W.shape[1] else W.T
        penalty += (4 * (W @ W.T - torch.eye(len(W), dtype=W.dtype)) @ W).square().sum().item()
        loss += weight.grad.double().square().sum().item()
    return loss**0.5, penalty**0.5


def test_norms_are_those_of_gradients_written_out():
    model = small_model(Run("simclr", regularizer="so"))
    model.begin_step(Progress(0, 1, 1))
    model(views_of_step(0), penalty_weight=0).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert gradient_norms(model) == pytest.approx(written_out(model), rel=1e-12)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters() if name in before)


@pytest.fixture
def seen(monkeypatch):
    """What every step's gradients, written out, give as ratio, by step."""
    ratios, after_backward = {}, SSLStep.after_backward

    def watch(step, scale=1.0):
        loss, penalty = written_out(step.model)
        ratios[step.model.method.progress.step] = loss / penalty
        after_backward(step, scale)

    monkeypatch.setattr(SSLStep, "after_backward", watch)
    return ratios


@pytest.mark.parametrize("front", FRONTS)
def test_the_median_of_the_first_steps_weighs_the_penalty_from_then_on(front, seen, tmp_path):
    """Before clipping, over accumulated micro-batches; the penalty is no part of the loss until then."""
    model = auto_model()
    train(front, tmp_path, model, max_steps=STEPS + 2, logging_steps=1, max_grad_norm=1e-3, save_strategy="steps")
    gamma = statistics.median(seen[step] for step in range(STEPS))
    assert model.gamma == pytest.approx(gamma, rel=1e-5)
    entries = history(tmp_path)
    assert ["orthogonality" in entry for entry in entries] == [False] * STEPS + [True] * 2
    assert [entry.get("gamma") for entry in entries] == [None] * (STEPS - 1) + [model.gamma] + [None] * 2
    # Of the last step; the penalty has changed little since.
    assert entries[-1]["orthogonality"] == pytest.approx(model.gamma * model.penalty().item(), rel=1e-3)
    assert entries[-1]["loss"] == pytest.approx(entries[-1]["ssl"] + entries[-1]["orthogonality"], rel=1e-6)
    config = SSLConfig.from_pretrained(next(tmp_path.glob("checkpoint-*"))) if front == "trainer" else model.config
    assert (config.gamma, config.measured_gamma) == ("auto", model.gamma)


def test_the_first_steps_are_those_without_penalty(tmp_path):
    settings = {"logging_steps": 1}
    train("loop", tmp_path / "auto", auto_model(), max_steps=STEPS + 1, **settings)
    train("loop", tmp_path / "none", auto_model(gamma=None, regularizer=None), max_steps=STEPS + 1, **settings)
    auto, none = history(tmp_path / "auto"), history(tmp_path / "none")
    assert [entry["ssl"] for entry in auto] == [entry["ssl"] for entry in none]
    assert auto[STEPS]["loss"] > none[STEPS]["loss"]


@pytest.mark.parametrize("front", FRONTS)
def test_resumed_while_it_is_measured_and_after(front, tmp_path):
    settings = {"max_steps": STEPS + 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    whole = train(front, tmp_path / "whole", auto_model(regularizer="srip"), **settings)
    for last in (2, STEPS):
        folder = tmp_path / f"cut-{last}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in folder.glob("checkpoint-*"):
            if int(path.name.split("-")[1]) > last:
                shutil.rmtree(path)
        again = train(front, folder, auto_model(regularizer="srip"), **settings, resume=True)
        assert_same(state(again), state(whole))
        assert again.gamma == whole.gamma > 0
        assert history(folder) == history(tmp_path / "whole")
    assert sum("gamma" in entry for entry in history(tmp_path / "whole")) == 1
    # A run that has ended still knows it, for its card.
    ended = auto_model(regularizer="srip")
    train(front, tmp_path / "whole", ended, **settings, resume=True)
    assert ended.gamma == whole.gamma


def test_skipped_steps_are_not_measured(seen, tmp_path):
    model = auto_model()
    forward = model.method.forward

    def broken(encoder, views):
        output = forward(encoder, views)
        if torch.is_grad_enabled() and model.method.progress.step in (0, 3):
            output.loss = output.loss * float("nan")
        return output

    model.method.forward = broken
    train("loop", tmp_path, model, max_steps=STEPS + 4, on_nonfinite="skip", logging_steps=1)
    measured = [seen[step] for step in range(STEPS + 2) if step not in (0, 3)]
    assert model.gamma == pytest.approx(statistics.median(measured), rel=1e-5)
    assert [entry["step"] for entry in history(tmp_path) if "gamma" in entry] == [STEPS + 2]


def test_frozen_weights_are_measured_once_they_are_trained(tmp_path):
    """An epoch of the 84 images has three steps."""
    model = auto_model()
    args = tiny_arguments(tmp_path, max_steps=STEPS + 4, freeze_epochs=1, save_strategy="no", spectra_steps=0)
    with pytest.MonkeyPatch.context() as patch:
        found = []

        def watch(model):
            found.append(gradient_norms(model))
            return found[-1]

        patch.setattr("hf_orthossl.training.auto_gamma.gradient_norms", watch)
        pretrain_loop(model, digits(), args)
    assert [norms is None for norms in found] == [True] * 3 + [False] * STEPS
    assert model.gamma == pytest.approx(statistics.median(loss / penalty for loss, penalty in found[3:]), rel=1e-12)


def test_a_scaled_gradient_is_measured_unscaled():
    model = small_model(Run("simclr", regularizer="so"))
    model.config.gamma = "auto"
    step = SSLStep(model, views=None, seed=0)
    for number in range(STEPS):
        step.begin(number, STEPS + 1, 1)
        model.zero_grad()
        scale = 2.0**number
        (scale * model(views_of_step(number), penalty_weight=1).loss).backward()
        step.after_backward(scale)
        step.end()
    ratios = []
    for number in range(STEPS):
        model.zero_grad()
        model.begin_step(Progress(number, STEPS + 1, 1))
        model(views_of_step(number), penalty_weight=0).loss.backward()
        loss, penalty = written_out(model)
        ratios.append(loss / penalty)
    assert model.gamma == pytest.approx(statistics.median(ratios), rel=1e-9)


def test_what_ran_is_recorded(tmp_path):
    model = auto_model()
    data = TrainingData(
        digits(), model, tiny_arguments(tmp_path, max_steps=STEPS + 1, spectra_steps=0).with_recipe(model.method.recipe)
    )
    pretrain_loop(model, data)
    record = training_record(model, data, front="accelerate loop")
    assert record["measured_gamma"] == f"0.0 (steps 0–{STEPS}), {model.gamma} (from step {STEPS})"
    assert f"| γ | {model.gamma:.6g} |" in (tmp_path / "encoder" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"regularizer": None}, "gamma is auto, but there is no penalty to weight"),
        ({"regularizer": "so_init"}, "so_init has none at the start: pass a number"),
        ({"regularizer": "sketched_so"}, "those of sketched_so are mostly noise: pass a number"),
        ({"gamma": "most"}, "gamma is 'most': it must be a number, as in 1e-6, or auto"),
    ],
)
def test_what_cannot_be_measured_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        SSLConfig(**{"gamma": "auto", "regularizer": "so"} | config)


def test_runs_that_never_measure_it_are_refused(tmp_path):
    def begin(**settings):
        model = auto_model()
        args = tiny_arguments(tmp_path, **settings).with_recipe(model.method.recipe)
        begin_record(model, TrainingData(digits(), model, args))

    with pytest.raises(ValueError, match=f"which the first {STEPS} steps measure, and the run has {STEPS}: train"):
        begin(max_steps=STEPS)
    with pytest.raises(ValueError, match="steps measure, after 3 in which the encoder is frozen, and the run has 7"):
        begin(max_steps=STEPS + 3, freeze_epochs=1)
    with pytest.raises(ValueError, match="but every regularized weight is frozen by --freeze"):
        begin(max_steps=STEPS + 3, freeze=["conv1", "layer*"])
    begin(max_steps=STEPS + 1)


def test_a_loop_of_ones_own_is_told():
    """It would train without the penalty otherwise."""
    model = small_model(Run("simclr", regularizer="so"))
    model.config.gamma = "auto"
    model.begin_step(Progress(0, 1, 1))
    with pytest.raises(ValueError, match="in your own loop, pass a number"):
        model(views_of_step(0))


def test_no_gradient_no_weight(tmp_path):
    @register_penalty
    class Flat(PENALTIES["so"]):
        """Zero everywhere."""

        name, title = "flat", "flat"

        def value(self, W, vectors=None):
            return 0 * W.sum((-2, -1))

    try:
        with pytest.raises(ValueError, match="the gradient of the penalty flat is 0 at step 0"):
            train("loop", tmp_path, auto_model(regularizer="flat"), max_steps=STEPS + 1)
    finally:
        del PENALTIES["flat"]
