"""Penalties computed at every k-th optimizer step only: their mean, their steps, their log, and resumed runs."""

import pytest
import torch
from survival_runs import FRONTS, assert_same, history, resume_from, state, tiny_model, train
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_orthossl import OrthogonalityCallback, OrthogonalityRegularizer, SSLConfig
from hf_orthossl.methods import Progress


def step_gradients(model, views, step, accumulation=1):
    """Gradients of one optimizer step, and the parts of its last micro-batch."""
    model.zero_grad()
    model.begin_step(Progress(step, 100, 10))
    for index in range(accumulation):
        weight = accumulation if index == accumulation - 1 else 0
        output = model(views, penalty_weight=weight)
        (output.loss / accumulation).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, output.parts


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_mean_gradient_over_k_steps_is_that_of_every_step(accumulation):
    views = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    settings = {"method": "simclr", "method_config": {}, "regularizer": "so", "gamma": 1e-2}
    settings["backbone_config"] = {"channels": [8, 8, 16, 16]}  # no stochastic depth: every step has the same SSL loss
    always, lazy, never = (tiny_model(**settings | more) for more in ({}, {"penalty_every": 4}, {"regularizer": None}))
    expected, parts = step_gradients(always, views, 0, accumulation)
    plain, _ = step_gradients(never, views, 0, accumulation)
    steps = [step_gradients(lazy, views, step, accumulation) for step in range(8, 16)]
    assert ["orthogonality" in found for _, found in steps] == 2 * [True, False, False, False]
    assert steps[0][1]["orthogonality"] == parts["orthogonality"]
    changed = 0
    for name, gradient in expected.items():
        mean = torch.stack([found[name] for found, _ in steps]).mean(0)
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(steps[1][0][name], plain[name])
        changed += not torch.allclose(gradient, plain[name])
    assert changed >= len(lazy.regularizer.matrices)


@pytest.mark.parametrize("front", FRONTS)
def test_the_log_tells_the_penalty_of_the_steps_that_have_one(front, tmp_path):
    """Steps 0 and 4 of 6 have it: entries are named after the number of steps done."""
    model = tiny_model(regularizer="so", penalty_every=4)
    before = model.config.gamma * float(model.penalty().detach())
    train(front, tmp_path, model, max_steps=6, logging_steps=1, save_strategy="no")
    entries = history(tmp_path)
    assert [entry["step"] for entry in entries if "orthogonality" in entry] == [1, 5]
    assert entries[0]["orthogonality"] == pytest.approx(before, rel=1e-5)
    assert entries[0]["loss"] == pytest.approx(entries[0]["ssl"] + 4 * before, rel=1e-5)
    for entry in entries[1:4]:
        assert entry["loss"] == pytest.approx(entry["ssl"], rel=1e-5)


def test_both_fronts_resume_a_lazy_run_at_its_place(tmp_path):
    """From step 4, between the computed steps 3 and 6, with an entry of the log begun: bit for bit."""
    settings = {"regularizer": "sketched_so", "regularizer_config": {"probes": 2}, "penalty_every": 3}
    logs = {}
    for front in FRONTS:
        whole, broken = tmp_path / front, tmp_path / f"{front} resumed"
        final = state(train(front, whole, tiny_model(**settings), save_total_limit=None))
        assert_same(state(resume_from(4, front, whole, broken, tiny_model(**settings))), final)
        logs[front] = [(entry["step"], entry.get("orthogonality")) for entry in history(whole)]
        assert logs[front] == [(entry["step"], entry.get("orthogonality")) for entry in history(broken)]
    for one, other in zip(*logs.values(), strict=True):
        assert one == (other[0], pytest.approx(other[1], rel=1e-5))


class Lazy(nn.Module):
    """A small model; with `every`, its own loss carries the penalty at every so many steps."""

    def __init__(self, every=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.every, self.calls = every, 0

    def forward(self, x, labels):
        loss = (self.body(x).squeeze(1) - labels).square().mean()
        if self.every and self.calls % self.every == 0:
            loss = loss + 0.05 * self.every * OrthogonalityRegularizer(self.body)()
        self.calls += 1
        return {"loss": loss, "logits": loss.detach()[None]}


def fit(model, folder, callbacks=()):
    generator = torch.Generator().manual_seed(1)
    data = [{"x": torch.randn(6, generator=generator), "labels": torch.tensor(float(i % 2))} for i in range(28)]
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=7,
        learning_rate=0.05,
        optim="sgd",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(model, args, train_dataset=data, callbacks=list(callbacks))
    trainer.train()
    return trainer.state.log_history


def test_callback(tmp_path):
    ours, reference = Lazy(), Lazy(every=3)
    log = fit(ours, tmp_path, [OrthogonalityCallback(gamma=0.05, every=3)])
    fit(reference, tmp_path)
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    logged = {entry["step"]: entry["orthogonality"] for entry in log if "orthogonality" in entry}
    assert list(logged) == [1, 4, 7]
    expected = 0.05 * OrthogonalityRegularizer(Lazy())().item()
    assert logged[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("every", [0, -2, 1.5])
def test_bad_input(every):
    with pytest.raises(ValueError, match=f"penalty_every is {every}: it must be a whole number of optimizer steps"):
        SSLConfig(penalty_every=every)
    with pytest.raises(ValueError, match=f"every is {every}: it must be"):
        OrthogonalityCallback(every=every)
