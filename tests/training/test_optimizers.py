"""The optimizer of a run: LARS against its formula, what is decayed, and what is refused."""

import math

import pytest
import torch
from survival_runs import tiny_arguments, tiny_model
from torch import nn

from hf_orthossl import OrthoSSLTrainingArguments
from hf_orthossl.data import load_source
from hf_orthossl.methods import TrainingRecipe
from hf_orthossl.training import TrainingData
from hf_orthossl.training.optimizers import build_optimizer, build_schedule


def make_args(folder, **settings):
    defaults = {"learning_rate": 0.3, "weight_decay": 0.01, "use_cpu": True}
    if settings.get("optim") in ("lars", "sgd"):
        defaults["momentum"] = 0.9
    return OrthoSSLTrainingArguments(str(folder), **defaults | settings)


def model_with_gradients():
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    ("options", "coefficient", "clip"),
    [(None, 0.02, True), ("trust_coeff=0.001,trust_clip=False", 0.001, False), ("trust_coeff=5", 5.0, True)],
)
def test_lars_against_its_formula(options, coefficient, clip, tmp_path):
    """Two steps of You et al.'s rule, written out: trust η·‖w‖/(‖g‖ + λ‖w‖), clipped to the rate itself."""
    model, reference = model_with_gradients(), model_with_gradients()
    rate, decay, momentum = 0.3, 0.01, 0.9
    optimizer = build_optimizer(model, make_args(tmp_path, optim="lars", optim_args=options))
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for _ in range(2):
        optimizer.step()
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                gradient = parameter.grad
                if name == "weight":
                    norm = parameter.norm()
                    trust = coefficient * norm / (gradient.norm() + decay * norm)
                    trust = min(trust / rate, torch.tensor(1.0)) if clip else trust
                    gradient = trust * (gradient + decay * parameter)
                velocity[name] = momentum * velocity[name] + gradient
                parameter -= rate * velocity[name]
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("optim", "decayed"), [("lars", {2}), ("adamw_torch", {2}), ("sgd", {1, 2}), ("adam", {1, 2})])
def test_what_is_decayed(optim, decayed, tmp_path):
    optimizer = build_optimizer(model_with_gradients(), make_args(tmp_path, optim=optim))
    found = {p.ndim for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert found == decayed
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_frozen_parameters_are_left_out(tmp_path):
    model = model_with_gradients()
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, make_args(tmp_path, optim="lars"))
    assert [p for group in optimizer.param_groups for p in group["params"]] == [model.weight]


def test_unknown_option_of_lars(tmp_path):
    with pytest.raises(ValueError, match="no 'trust_coef' for lars: did you mean 'trust_coeff'"):
        build_optimizer(model_with_gradients(), make_args(tmp_path, optim="lars", optim_args="trust_coef=1"))


def test_unknown_optimizer(tmp_path):
    with pytest.raises(ValueError, match="larss"):
        make_args(tmp_path, optim="larss")


@pytest.mark.parametrize(
    ("optim", "rate"), [("adamw_torch", (1e-3, 0.01, 0.0)), ("adam", (1e-3, 1e-5, 0.0)), ("lars", (0.5, 1e-5, 3e-5))]
)
def test_a_rate_of_lars_is_no_rate_of_adam(optim, rate, tmp_path):
    recipe = TrainingRecipe("lars", 1.0, 1e-5, views="cifar-asym", warmup_start_lr=3e-5)
    args = OrthoSSLTrainingArguments(str(tmp_path), per_device_train_batch_size=128, optim=optim)
    filled = args.with_recipe(recipe)
    assert (filled.learning_rate, filled.weight_decay, filled.warmup_start_lr) == rate


@pytest.mark.parametrize(("optim", "recipe"), [("sgd", "lars"), ("lars", "adamw_torch"), ("adafactor", "sgd")])
def test_another_optimizer_than_the_recipes_needs_a_rate(optim, recipe, tmp_path):
    args = OrthoSSLTrainingArguments(str(tmp_path), optim=optim)
    with pytest.raises(ValueError, match=f"^optim is {optim} without .* the recipe is for {recipe}: pass --learning"):
        args.with_recipe(TrainingRecipe(recipe, 0.1, 1e-5, views="cifar-asym"))


def test_recipe_fills_what_is_left_open(tmp_path):

    recipe = TrainingRecipe("lars", 1.0, 1e-5, views="cifar-asym", warmup_epochs=10, warmup_start_lr=3e-5)
    args = OrthoSSLTrainingArguments(str(tmp_path), per_device_train_batch_size=64, gradient_accumulation_steps=2)
    filled = args.with_recipe(recipe)
    assert (filled.optim, filled.learning_rate, filled.weight_decay) == ("lars", 0.5, 1e-5)
    assert (filled.warmup_steps, filled.warmup_epochs, filled.warmup_start_lr) == (None, None, 3e-5)
    assert args.learning_rate is None
    asked = OrthoSSLTrainingArguments(str(tmp_path), learning_rate=1e-5, optim="sgd", weight_decay=0.0, warmup_steps=0)
    filled = asked.with_recipe(recipe)
    assert (filled.optim, filled.learning_rate, filled.weight_decay, filled.warmup_steps) == ("sgd", 1e-5, 0.0, 0)
    assert filled.warmup_start_lr == 1e-5  # not above the peak


def test_a_warm_up_from_a_rate_above_zero(tmp_path):
    """solo-learn's rates, whose warm-up ends a step earlier; groups of a lower rate follow in proportion."""
    args = make_args(tmp_path, optim="sgd", warmup_start_lr=0.03)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.15}], lr=0.3)
    schedule = build_schedule(optimizer, args, warmup=100, steps=1000)
    rates = []
    for _ in range(1000):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    warm = [0.03 + step * (0.3 - 0.03) / 99 for step in range(100)]
    cosine = [0.5 * 0.3 * (1 + math.cos(math.pi * step / 900)) for step in range(900)]
    assert [rate for rate, _ in rates][100:] == pytest.approx(cosine)
    assert [rate for rate, _ in rates][:100] == pytest.approx(warm, abs=0.3 / 100)
    assert rates[0] == pytest.approx([0.03, 0.015])
    assert [2 * half for _, half in rates] == pytest.approx([rate for rate, _ in rates])


@pytest.mark.parametrize(
    ("options", "planned", "expected"),
    [
        ({}, 1000, 50),  # ten epochs of five steps
        ({}, 60, 6),  # a tenth of a run that is shorter than 100 epochs
        ({"warmup_epochs": 3}, 60, 15),
        ({"warmup_epochs": 3}, 10, 15),
        ({"warmup_steps": 7}, 60, 7),
        ({"warmup_steps": 0}, 60, 0),
        ({"lr_scheduler_type": "constant"}, 60, 0),
    ],
)
def test_the_steps_of_a_warm_up(options, planned, expected, tmp_path, caplog):
    model = tiny_model(method="byol", method_config={"hidden_dim": 16, "output_dim": 8})
    args = tiny_arguments(
        tmp_path, per_device_train_batch_size=8, views="digits", gradient_accumulation_steps=1, **options
    )
    data = TrainingData(load_source("digits", split="train[:40]"), model, args.with_recipe(model.method.recipe))
    assert data.warmup_steps(planned) == expected
    assert ("stays below its peak" in caplog.text) == (expected > planned)


def test_a_stream_has_no_epochs_to_warm_up(tmp_path):
    model = tiny_model(method="byol", method_config={"hidden_dim": 16, "output_dim": 8})
    args = tiny_arguments(tmp_path, max_steps=60, warmup_epochs=3).with_recipe(model.method.recipe)
    stream = load_source(load_source("digits", split="train[:40]").dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match="warmup_epochs is 3 and a streamed data set has no epochs"):
        TrainingData(stream, model, args).warmup_steps(60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 5, "warmup_epochs": 1}, "warmup_steps is 5 and warmup_epochs 1: pass one of them"),
        ({"warmup_start_lr": 0.5, "learning_rate": 0.1}, "warmup_start_lr is 0.5: it must be at most"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1: it must be 0 or more"),
        ({"warmup_epochs": 1, "lr_scheduler_type": "constant"}, "warmup_epochs is 1, but the schedule constant"),
    ],
)
def test_warm_ups_that_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **options)
