"""The decoupled penalty in both fronts: at which steps it acts, how strongly, what is logged, and resumed runs."""

import math

import pytest
import torch
from survival_runs import FRONTS, assert_same, history, resume_from, state, tiny_model, train

from hf_orthossl.methods import Progress

SO = {"regularizer": "so", "gamma": None, "penalty_mode": "decoupled", "strength": 0.1}


def watched(model):
    """Records optimizer step, strength and Σ OR(W) of every decoupled step."""
    taken, step = [], model.regularizer.step

    def recorded(strength, **share):
        value = step(strength, **share)
        taken.append((model.method.progress.step, strength, value.item()))
        return value

    model.regularizer.step = recorded
    return taken


@pytest.mark.parametrize("front", FRONTS)
def test_steps_follow_the_schedule_and_are_logged(front, tmp_path):
    """Once per optimizer step of two micro-batches, at every second one; lr/peak does not depend on the layer."""
    model = tiny_model(**SO, penalty_every=2)
    start = model.regularizer().item()
    taken = watched(model)
    schedule = {"warmup_steps": 2, "warmup_start_lr": 0.01, "learning_rate": 0.05, "layer_decay": 0.5}
    train(front, tmp_path, model, logging_steps=1, **schedule)
    factors = [0.2, 0.6, *(0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6))]
    assert [step for step, _, _ in taken] == [0, 2, 4, 6]
    assert [strength for _, strength, _ in taken] == pytest.approx([0.2 * factors[step] for step in (0, 2, 4, 6)])
    entries = history(tmp_path)
    logged = {entry["step"]: entry["orthogonality"] for entry in entries if "orthogonality" in entry}
    assert logged == pytest.approx({step + 1: value for step, _, value in taken})
    # The log tells the penalty without a weight, and it is no part of the loss.
    assert logged[1] == pytest.approx(start, rel=1e-2)
    assert model.regularizer().item() < 0.9 * start
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["ssl"], rel=1e-6)


@pytest.mark.parametrize("front", FRONTS)
def test_without_a_learning_rate_nothing_moves(front, tmp_path):
    model = tiny_model(**SO)
    before = [p.clone() for p in model.parameters()]
    train(front, tmp_path, model, learning_rate=0.0, max_steps=2, gradient_accumulation_steps=1)
    assert all(torch.equal(p, q) for p, q in zip(model.encoder.parameters(), before, strict=False))


@pytest.mark.parametrize("front", FRONTS)
def test_a_step_that_is_skipped_is_skipped_whole(front, tmp_path):
    """A loss that is not finite; the optimizer keeps its weights, and so does the penalty."""
    model = tiny_model(**SO)
    taken, forward = watched(model), model.method.forward

    def broken(encoder, views):
        output = forward(encoder, views)
        if torch.is_grad_enabled() and model.method.progress.step == 1:
            output.loss = output.loss * float("nan")
        return output

    model.method.forward = broken
    train(front, tmp_path, model, max_steps=3, on_nonfinite="skip", logging_steps=1)
    assert [step for step, _, _ in taken] == [0, 2]
    assert ["orthogonality" in entry for entry in history(tmp_path)] == [True, False, True]


@pytest.mark.parametrize("skipped", [True, False])
def test_target_networks_follow_the_weights_after_the_step(skipped):
    """`skipped` is what mixed precision says of an overflow."""
    settings = {"method": "byol", "method_config": {"momentum": 0.0, "final_momentum": 0.0, "hidden_dim": 8}}
    model = tiny_model(**SO, **settings)
    model.begin_step(Progress(0, 10, 10))
    before = state(model)
    parts = model.end_step(skipped, schedule=0.5)
    if skipped:
        assert parts == {}
        assert_same(state(model), before)
        return
    assert parts["orthogonality"] > model.penalty()
    online = dict(model.encoder.named_parameters())
    moved = [name for name, p in online.items() if not torch.equal(p, before[f"encoder.{name}"])]
    assert len(moved) == len(model.regularizer)
    for name, p in model.method.target.stack[0].named_parameters():
        torch.testing.assert_close(p, online[name].detach())


@pytest.mark.parametrize("front", FRONTS)
def test_a_frozen_encoder_is_left_alone_until_it_is_trained(front, tmp_path):
    model = tiny_model(**SO)
    before = model.regularizer().item()
    taken = watched(model)
    # Three steps are an epoch.
    train(front, tmp_path, model, max_steps=4, freeze_epochs=1)
    assert [value for _, _, value in taken[:3]] == [0, 0, 0]
    assert taken[3][2] == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("kind", ["so", "scaled_so"])
def test_both_fronts_resume_at_their_place(kind, tmp_path):
    """From step 4, between the steps 3 and 6 that the penalty takes, with an entry of the log begun: bit for bit."""
    settings = SO | {"regularizer": kind, "penalty_every": 3}
    for front in FRONTS:
        whole, broken = tmp_path / front, tmp_path / f"{front} resumed"
        final = state(train(front, whole, tiny_model(**settings), save_total_limit=None))
        assert_same(state(resume_from(4, front, whole, broken, tiny_model(**settings))), final)
        logs = [[(e["step"], e.get("orthogonality")) for e in history(folder)] for folder in (whole, broken)]
        assert logs[0] == logs[1]
