"""Losses and gradients that are not finite: the run stops, or a step is left out as if it had not been."""

import json

import pytest
import torch
from survival_runs import FRONTS, assert_same, history, in_group, state, tiny_model, train

from hf_orthossl.training.step import PATIENCE


def spoil(model, steps, what="loss", micro_batch=1):
    """Makes the loss, or with a finite loss a gradient, of one micro-batch of some steps NaN."""
    forward, seen = model.method.forward, {}

    def broken(encoder, views):
        output = forward(encoder, views)
        if not torch.is_grad_enabled():  # the rehearsal before the first step
            return output
        step = model.method.progress.step
        seen[step] = seen.get(step, -1) + 1
        if step in steps and seen[step] == micro_batch:
            if what == "loss":
                output.loss = output.loss * float("nan")
            else:
                output.loss.register_hook(lambda gradient: gradient * float("nan"))
        return output

    model.method.forward = broken
    return model


def watch(model):
    """Keeps the whole state before every optimizer step, and after the last."""
    kept, begin_step = [], model.begin_step

    def begin(progress):
        if torch.is_grad_enabled():  # not in the rehearsal before the first step
            kept.append(state(model))
        begin_step(progress)

    model.begin_step = begin
    return kept


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("front", FRONTS)
def test_a_skipped_step_changes_nothing_and_is_counted(front, what, tmp_path, caplog):
    """Weights, target network, queue and batch norm's statistics stay; data and schedules go on."""
    model = spoil(tiny_model(), {1, 4}, what)
    kept = watch(model)
    train(front, tmp_path, model, on_nonfinite="skip", logging_steps=1)
    kept.append(state(model))
    for step in range(8):
        same = [name for name in kept[0] if torch.equal(kept[step][name], kept[step + 1][name])]
        assert (len(same) == len(kept[0])) == (step in (1, 4)), step
    entries = history(tmp_path)
    assert [entry["skipped_steps"] for entry in entries] == [0, 1, 1, 1, 2, 2, 2, 2]
    assert ["loss" in entry for entry in entries] == [step not in (1, 4) for step in range(8)]
    assert "NaN" not in (tmp_path / "history.jsonl").read_text()
    assert "2 of 8 optimizer steps were skipped" in caplog.text


@pytest.mark.parametrize("front", FRONTS)
def test_averages_leave_skipped_steps_out_and_resume_keeps_the_count(front, tmp_path):
    whole = spoil(tiny_model(), {1, 4})
    train(front, tmp_path / "whole", whole, on_nonfinite="skip", logging_steps=1)
    finite = {entry["step"]: entry["loss"] for entry in history(tmp_path / "whole") if "loss" in entry}
    assert set(finite) == {1, 3, 4, 6, 7, 8}
    train(front, tmp_path / "cut", spoil(tiny_model(), {1, 4}), on_nonfinite="skip", max_steps=8, save_total_limit=None)
    entries = history(tmp_path / "cut")
    for entry, steps in zip(entries, [(1, 3), (4, 6), (7, 8)], strict=True):
        assert entry["loss"] == pytest.approx(sum(finite[step] for step in steps) / len(steps), rel=1e-6)
    for step in (6, 8):
        (tmp_path / "cut" / f"checkpoint-{step}").rename(tmp_path / f"{step}")
    again = spoil(tiny_model(), {1, 4})
    train(front, tmp_path / "cut", again, on_nonfinite="skip", resume=True)
    assert_same(state(again), state(whole))
    assert history(tmp_path / "cut") == entries
    assert entries[-1]["skipped_steps"] == 2


@pytest.mark.parametrize("front", FRONTS)
def test_too_many_skipped_steps_in_a_row_stop_the_run(front, tmp_path):
    steps = set(range(1, 1 + PATIENCE - 1)) | set(range(11, 40))
    settings = {"on_nonfinite": "skip", "max_steps": 40, "save_steps": 100, "gradient_accumulation_steps": 1}
    model = spoil(tiny_model(), steps, micro_batch=0)
    said = f"{PATIENCE} consecutive optimizer steps were skipped: the loss is not finite at step 20 .part: ssl.: lower"
    with pytest.raises(FloatingPointError, match=said):
        train(front, tmp_path, model, **settings)


@pytest.mark.parametrize("front", FRONTS)
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(front, tmp_path):
    model = spoil(tiny_model(), {3}, "gradient")
    with pytest.raises(FloatingPointError, match=r"gradients are not finite at step 3.*checkpoints saved so far"):
        train(front, tmp_path, model)
    assert all(torch.isfinite(tensor).all() for tensor in state(model).values())


def _spoilt_in_one(front, folder, policy):
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = spoil(tiny_model(), {1} if rank == 1 else set())
    settings = {"per_device_train_batch_size": 8, "max_steps": 3, "on_nonfinite": policy, "logging_steps": 1}
    try:
        in_group(train, rank, processes, front, folder, model, **settings)
    except FloatingPointError as error:
        return str(error)
    return state(model)


@pytest.mark.parametrize("front", FRONTS)
def test_all_processes_skip_or_stop_when_one_has_to(front, two_processes, tmp_path):
    one, other = two_processes.run(_spoilt_in_one, front, str(tmp_path / "skip"), "skip")
    assert all(torch.isfinite(tensor).all() for tensor in one.values())
    trained = [name for name in one if "running" not in name and "num_batches" not in name]
    assert_same({name: one[name] for name in trained}, {name: other[name] for name in trained})
    assert [entry["skipped_steps"] for entry in history(tmp_path / "skip")] == [0, 1, 1]
    elsewhere, here = two_processes.run(_spoilt_in_one, front, str(tmp_path / "stop"), "stop")
    assert "the loss is not finite at step 1 (part: ssl)" in here
    assert "gradients are not finite at step 1, or the loss of another process" in elsewhere


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_nonfinite": "ignore"}, "on_nonfinite is 'ignore': choose from stop, skip"),
        ({"save_only_model": True}, "a checkpoint without the optimizer cannot be resumed"),
    ],
)
def test_bad_arguments(settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        train("loop", tmp_path, **settings)


def test_the_images_of_a_step_must_be_shared_out_equally(tmp_path):
    train("loop", tmp_path, max_steps=2)
    with pytest.raises(ValueError, match=r"has 32 images per optimizer step, which 3 batches .* cannot divide equally"):
        train("loop", tmp_path, resume=True, gradient_accumulation_steps=3)
    # 84 images in batches of 32 are an epoch of 2 steps, not of 3.
    with pytest.raises(ValueError, match="had 3 optimizer steps and would now have 2: resume"):
        train("loop", tmp_path, resume=True, gradient_accumulation_steps=1)
    assert json.loads((tmp_path / "checkpoint-2" / "run.json").read_text())["steps_per_epoch"] == 3
