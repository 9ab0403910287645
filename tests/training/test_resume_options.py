"""Every option when a run is resumed: applied from the next step on, or refused by name; the record is what ran."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from survival_runs import FRONTS, assert_same, digits, state, tiny_arguments, tiny_model
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hf_orthossl import OrthoSSLTrainer
from hf_orthossl.methods import METHODS
from hf_orthossl.options import forms
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history
from hf_orthossl.training.checkpoints import MANIFEST, seal
from hf_orthossl.training.loop import STATE as LOOP_STATE
from hf_orthossl.training.options import OPTION_CLASSES, TrainingOptions
from hf_orthossl.training.publishing import training_record
from hf_orthossl.training.resume import RUN, begin_run
from hf_orthossl.training.settings import NOT_SETTINGS, OTHER_OPTIONS, STEP_OPTIONS
from hf_orthossl.training.step import SSLStep
from hf_orthossl.training.trainer import STATE as TRAINER_STATE

# A run of 4 steps that was stopped after 2.
BASE = {
    "max_steps": 4,
    "learning_rate": 0.06,
    "weight_decay": 1e-4,
    "optim": "sgd",
    "warmup_steps": 1,
    "warmup_start_lr": 0.0,
    "save_total_limit": None,
    "spectra_steps": 0,
}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3}
# Given on resume, with what goes along with it: option → options.
STEP_CHANGES = {
    "learning_rate": {"learning_rate": 0.3},
    "weight_decay": {"weight_decay": 0.5},
    "momentum": {"momentum": 0.5},
    "adam_beta1": {"adam_beta1": 0.5},
    "adam_beta2": {"adam_beta2": 0.7},
    "adam_epsilon": {"adam_epsilon": 1e-3},
    "max_grad_norm": {"max_grad_norm": 1e-3},
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "lr_scheduler_kwargs": {"lr_scheduler_kwargs": {"num_cycles": 0.25}},
    "warmup_steps": {"warmup_steps": 4.0},
    "warmup_epochs": {"warmup_steps": None, "warmup_epochs": 1.0},
    "warmup_start_lr": {"warmup_start_lr": 0.01, "warmup_steps": 4.0},
    "gradient_cache": {"gradient_cache": 8},
    "on_nonfinite": {"on_nonfinite": "skip"},
    "max_steps": {"max_steps": 6},
    "num_train_epochs": {"max_steps": -1, "num_train_epochs": 2.0},
}
SAME_STEPS = {
    "ddp_timeout": {"ddp_timeout": 60},
    "ddp_find_unused_parameters": {"ddp_find_unused_parameters": True},
    "dataloader_num_workers": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 1},
    "cache_images": {"cache_images": "never"},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "torch_compile": {"torch_compile": True, "torch_compile_backend": "eager"},
    "torch_compile_backend": {"torch_compile": True, "torch_compile_backend": "eager"},
    "logging_steps": {"logging_steps": 1},
    "disable_tqdm": {"disable_tqdm": False},
    "spectra_steps": {"spectra_steps": 1},
    "spectra_threshold": {"spectra_threshold": 0},
    "spectra_images": {"spectra_images": 4, "spectra_steps": 1},
    "stop_on_collapse": {
        "stop_on_collapse": True,
        "spectra_images": 4,
        "spectra_steps": 1,
        "spectra_threshold": 1e-3,
        "logging_steps": 1,
    },
    "knn_steps": {"knn_steps": 1},
    "linear_probe_steps": {"linear_probe_steps": 1},
    "save_strategy": {"save_strategy": "no"},
    "save_steps": {"save_steps": 1},
    "save_total_limit": {"save_total_limit": 1},
}
# What needs a service, several processes or a GPU, and what has a test of its own.
UNTESTED = {
    *("use_cpu", "ddp_backend", "dataloader_pin_memory"),
    *("push_to_hub", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
    *("torch_compile_mode", "knn_images", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("report_to", "dataloader_multiprocessing_context", "max_unreadable"),
}
# Of an option that is left open, what SGD takes.
DEFAULTS = dataclasses.asdict(TrainingOptions()) | {"momentum": 0.9}
REFUSED = sorted(set(DEFAULTS) - {*STEP_OPTIONS, *OTHER_OPTIONS, *NOT_SETTINGS})
MARKERS = {"trainer": TRAINER_STATE, "loop": LOOP_STATE}


def train(front, folder, data=None, **settings):
    """Train without an encoder folder, which takes longer than the steps; return the model and the run's record."""
    model = tiny_model()
    data = begin_run(model, data or digits(), tiny_arguments(folder, **BASE | settings), MARKERS[front])
    if front == "loop":
        pretrain_loop(model, data, write_encoder=False)
    else:
        OrthoSSLTrainer(model, train_dataset=data, write_encoder=False).train()
    return model, training_record(model, data, front=front)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of a front's run with an optimizer, stopped after step 2; each is trained once."""
    trained: dict = {}

    def run(front, **settings):
        key = front, settings.get("optim")
        if key not in trained:
            folder = trained[key] = tmp_path_factory.mktemp(front)
            train(front, folder, **settings)
            shutil.rmtree(folder / "checkpoint-4")
        return trained[key]

    return run


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def copied(runs, tmp_path, spy):
    def copy(front, **settings):
        folder = Path(shutil.copytree(runs(front, **settings), tmp_path / "run"))
        spy.clear()
        return folder

    return copy


@pytest.fixture
def spy(monkeypatch):
    """See what each optimizer step uses: the groups, the norm of the gradients, the images, the precision."""
    seen = []
    losses = SSLStep.loss
    forwards = {kind: kind.forward for kind in METHODS.values()}

    def loss(self, model, batch, **more):
        images.append(len(batch["labels"]))
        return losses(self, model, batch, **more)

    def forward(self, encoder, views):
        active = torch.is_autocast_enabled("cpu")
        precisions.add(str(torch.get_autocast_dtype("cpu") if active else next(encoder.parameters()).dtype))
        return forwards[type(self)](self, encoder, views)

    def step(optimizer, *_):
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen.append(
            {
                "class": type(optimizer).__name__,
                "groups": groups,
                "norm": float(torch.nn.utils.get_total_norm(gradients)),
                "images": list(images),
                "precisions": {name.removeprefix("torch.") for name in precisions},
            }
        )
        images.clear()
        precisions.clear()

    images: list = []
    precisions: set = set()
    monkeypatch.setattr(SSLStep, "loss", loss)
    for kind in METHODS.values():
        monkeypatch.setattr(kind, "forward", forward)
    hook = register_optimizer_step_pre_hook(step)
    yield seen
    hook.remove()


def rates(seen):
    return [step["groups"][0]["lr"] for step in seen]


def spans(folder, checkpoint):
    """Return the values of each option in a checkpoint, with the steps from which they hold."""
    return json.loads((folder / checkpoint / RUN).read_text())["options"]


def test_each_option_is_of_one_kind():
    assert set(STEP_OPTIONS) | set(OTHER_OPTIONS) == set(STEP_CHANGES) | set(SAME_STEPS) | UNTESTED
    assert {*STEP_OPTIONS, *OTHER_OPTIONS, *NOT_SETTINGS} <= {name for kind in OPTION_CLASSES for name in forms(kind)}
    assert not {*STEP_OPTIONS, *OTHER_OPTIONS} & set(NOT_SETTINGS)
    assert len({*STEP_OPTIONS, *OTHER_OPTIONS}) == len(STEP_OPTIONS) + len(OTHER_OPTIONS)


def test_the_docs_name_each_option_that_may_change():
    text = (Path(__file__).parents[2] / "docs" / "resuming.md").read_text(encoding="utf-8")
    assert [name for name in (*STEP_OPTIONS, *OTHER_OPTIONS) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", STEP_CHANGES)
def test_a_change_of_the_steps_is_applied_and_recorded(name, front, copied, spy, capsys):
    changes = STEP_CHANGES[name]
    base = BASE | (ADAM if name.startswith("adam") else {})
    folder = copied(front, optim=base["optim"], learning_rate=base["learning_rate"])
    _, record = train(front, folder, resume=True, **base | changes)
    said, given = capsys.readouterr().out, {**DEFAULTS, **base, **changes}
    planned = 6 if name in ("max_steps", "num_train_epochs") else 4
    assert len(spy) == planned - 2
    # The changes are said, and stand in the history at the step from which they hold.
    assert all(f"{option} {value} (was" in said for option, value in changes.items())
    entries = read_history(folder)
    (entry,) = [entry for entry in entries if "changed" in entry]
    assert entry["step"] == 2
    assert {option: values["now"] for option, values in entry["changed"].items()} == changes
    assert spans(folder, f"checkpoint-{planned}")[name][-1] == [2, changes[name]]
    # Optimizer, schedule, images and precision are as given.
    for step in spy:
        assert step["class"] == record["optimizer"] == ("SGD" if base["optim"] == "sgd" else "AdamW")
        assert sum(step["images"]) == record["images_per_step"] or len(step["images"]) == 1
        assert step["precisions"] == {record["precision"]} == {"float32"}
        (group, *_) = step["groups"]
        assert max(one["weight_decay"] for one in step["groups"]) == given["weight_decay"]
        if base["optim"] == "sgd":
            assert group["momentum"] == given["momentum"]
        else:
            assert group["betas"] == (given["adam_beta1"], given["adam_beta2"])
            assert group["eps"] == given["adam_epsilon"]
        assert not given["max_grad_norm"] or step["norm"] <= 1.001 * given["max_grad_norm"]
    warmup = 3 if name == "warmup_epochs" else given["warmup_steps"]  # an epoch has 3 steps
    expected = [schedule(given, step, planned, warmup) for step in range(2, planned)]
    assert rates(spy) == pytest.approx(expected, rel=1e-6)
    # What the card says: the value before, and the one that was seen.
    if name in ("lr_scheduler_kwargs", "on_nonfinite", "max_steps", "num_train_epochs", "warmup_epochs"):
        assert name not in record
        return
    before = "cosine" if name == "lr_scheduler_type" else {**DEFAULTS, **base}[name] or "none"
    now = changes[name] if isinstance(changes[name], str) else f"{changes[name]:g}"
    assert record[name] == f"{before} (steps 0–2), {now} (from step 2)"


def schedule(given, step, planned, warmup):
    """Return the learning rate of a step by the formulas of the schedules."""
    if step < warmup:
        start = given["warmup_start_lr"]
        return start + (given["learning_rate"] - start) * step / warmup
    share = (step - warmup) / (planned - warmup)
    if given["lr_scheduler_type"] == "linear":
        return given["learning_rate"] * (1 - share)
    cycles = (given.get("lr_scheduler_kwargs") or {}).get("num_cycles", 0.5)
    return given["learning_rate"] * max(0.0, 0.5 * (1 + math.cos(math.pi * cycles * 2 * share)))


@pytest.fixture(scope="module")
def unchanged(runs, tmp_path_factory):
    """Return the weights at the end of the run of a front, resumed without a change; each is trained once."""
    ends: dict = {}

    def end(front):
        if front not in ends:
            folder = tmp_path_factory.mktemp("unchanged") / "run"
            shutil.copytree(runs(front), folder)
            ends[front] = state(train(front, folder, resume=True)[0])
        return ends[front]

    return end


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", SAME_STEPS)
def test_a_change_around_the_steps_is_recorded_and_leaves_them_as_they_were(name, front, copied, unchanged, caplog):
    changes, folder = SAME_STEPS[name], copied(front)
    model, _ = train(front, folder, resume=True, **changes)
    assert_same(state(model), unchanged(front))
    if name == "save_strategy":
        assert not (folder / "checkpoint-4").exists()
        return
    assert spans(folder, "checkpoint-4")[name][-1] == [2, changes[name]]
    entries = read_history(folder)
    after = [entry for entry in entries if entry["step"] > 2]
    steps = [entry["step"] for entry in after if "loss" in entry]
    saved = {path.name for path in folder.glob("checkpoint-*")}
    assert "do not match" not in caplog.text
    others = {"save_steps": {"checkpoint-2", "checkpoint-3"}, "save_total_limit": set()}
    assert saved == {"checkpoint-4", *others.get(name, {"checkpoint-2"})}
    if name == "logging_steps":
        assert steps == [3, 4]
    prefix = {"spectra_steps": "spectra/", "knn_steps": "knn/", "linear_probe_steps": "linear_probe/"}.get(name)
    if prefix:
        assert [any(key.startswith(prefix) for key in entry) for entry in after if "loss" in entry] == [True] * len(
            steps
        )


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("shares", [(8, 4), (4, 8)])
def test_batch_and_accumulation_change_together(shares, front, copied, spy):
    folder = copied(front)
    batch, parts = shares
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
    _, record = train(front, folder, resume=True, **settings)
    whole = [step["images"] for step in spy if len(step["images"]) == parts]
    assert whole
    assert all(images == [batch] * parts for images in whole)
    assert record["images_per_step"] == 32
    assert spans(folder, "checkpoint-4")["per_device_train_batch_size"][-1][1] == batch


@pytest.mark.parametrize("front", FRONTS)
def test_shares_by_which_an_epoch_ends_elsewhere_are_refused(front, copied):
    """84 images are five batches of 16, and three steps of two; they are only two whole batches of 32."""
    folder, shares = copied(front), {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1}
    with pytest.raises(ValueError, match=r"had 3 optimizer steps .* now have 2: .*--gradient_accumulation_steps 2, as"):
        train(front, folder, resume=True, **shares)


@pytest.mark.parametrize("front", FRONTS)
def test_epochs_are_refused_where_the_steps_are_given(front, copied):
    with pytest.raises(ValueError, match="num_train_epochs is 5 and has no effect, because max_steps is 4: pass --max"):
        train(front, copied(front), resume=True, num_train_epochs=5)


@pytest.mark.parametrize("front", FRONTS)
def test_another_batch_alone_is_refused(front, copied):
    folder = copied(front)
    with pytest.raises(ValueError, match=r"per_device_train_batch_size is 8, 16 images per .* has 32: omit it, or"):
        train(front, folder, resume=True, per_device_train_batch_size=8)


# Where any other text is refused earlier.
OTHER_VALUES = {"views": "cifar-weak", "optim": "lars", "optim_args": "nesterov=true"}
OTHER_VALUES |= {"freeze": ["layer1"], "freeze_epochs": 1.0, "layer_decay": 0.5}


def another(value):
    """Return a value that differs, of the same type where it has one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another" if value is None or isinstance(value, str) else {"another": 1}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", REFUSED)
def test_every_other_option_is_refused_by_name(name, front, runs, model):
    folder = runs(front)
    before = sorted(folder.rglob("*")), (folder / "history.jsonl").read_bytes()
    args = tiny_arguments(folder, resume=True, **BASE)
    # Whatever else refuses such a value of an option when arguments are made is tested elsewhere.
    setattr(args, name, OTHER_VALUES.get(name, another(getattr(args, name))))
    with pytest.raises(ValueError, match=rf"^{name} is .*(was started with .*: omit th(e|ese) option|leave it out)"):
        begin_run(model, digits(), args, MARKERS[front])
    assert (sorted(folder.rglob("*")), (folder / "history.jsonl").read_bytes()) == before


@pytest.mark.parametrize("front", FRONTS)
def test_several_are_named_together(front, runs):
    args = tiny_arguments(runs(front), resume=True, **BASE | {"seed": 7})
    said = r"gamma is 0.5, seed is 7 and the run in .* was started with 0.001, 42: omit these options"
    with pytest.raises(ValueError, match=said):
        begin_run(tiny_model(gamma=0.5), digits(), args, MARKERS[front])


@pytest.mark.parametrize("front", FRONTS)
def test_a_run_at_its_end_takes_no_other_rate(front, copied):
    """No step would use it, and the card would name it."""
    folder = copied(front)
    train(front, folder, resume=True)
    with pytest.raises(ValueError, match=r"learning_rate is 0.3, but the run in .* has taken all its 4 steps: pass"):
        train(front, folder, resume=True, learning_rate=0.3)
    assert train(front, folder, resume=True, logging_steps=1)[1]["learning_rate"] == 0.06


@pytest.mark.parametrize("front", FRONTS)
def test_a_run_that_has_ended_goes_on_without_a_step_at_rate_zero(front, copied, spy):
    folder = copied(front)
    train(front, folder, resume=True)
    spy.clear()
    _, record = train(front, folder, resume=True, max_steps=8)
    given = {**BASE, "lr_scheduler_type": "cosine"}
    assert rates(spy) == pytest.approx([schedule(given, step, 8, 1) for step in range(4, 8)], rel=1e-6)
    assert min(rates(spy)) > 0
    assert record["steps"] == 8


@pytest.mark.parametrize("front", FRONTS)
def test_a_share_of_warm_up_is_not_repeated_by_a_longer_run(front, tmp_path, spy):
    train(front, tmp_path, warmup_steps=0.5)
    spy.clear()
    _, record = train(front, tmp_path, resume=True, warmup_steps=0.5, max_steps=8)
    # Half of 8 steps would be 4; the 2 that the run began with are over.
    given = {**BASE, "lr_scheduler_type": "cosine"}
    assert rates(spy) == pytest.approx([schedule(given, step, 8, 2) for step in range(4, 8)], rel=1e-6)
    assert record["warmup_steps"] == 2


@pytest.mark.parametrize("front", FRONTS)
def test_changes_add_up_and_go_on_holding(front, copied, spy):
    folder = copied(front)
    train(front, folder, resume=True, weight_decay=0.5)
    spy.clear()
    _, record = train(front, folder, resume=True, weight_decay=0.25, max_steps=6)
    assert {step["groups"][0]["weight_decay"] for step in spy} == {0.25}
    assert record["weight_decay"] == "0.0001 (steps 0–2), 0.5 (steps 2–4), 0.25 (from step 4)"


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("damage", ["unreadable", "missing", "of another kind"])
def test_random_states_that_cannot_be_read_stop_the_run(damage, front, copied):
    folder = copied(front)
    path = folder / "checkpoint-2" / "random_states_0.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("{}" if damage == "unreadable" else '{"python": [3, [1], null]}')
    # As if it had been written so: a file that was damaged later is found by its checksum.
    (folder / "checkpoint-2" / MANIFEST).unlink()
    seal(folder / "checkpoint-2")
    before = (folder / "history.jsonl").read_bytes()
    reason = "it is missing" if damage == "missing" else "it cannot be read"
    with pytest.raises(ValueError, match=rf"checkpoint-2/random_states_0.json .* because {reason}: restore the file"):
        train(front, folder, resume=True)
    assert (folder / "history.jsonl").read_bytes() == before


def test_a_named_checkpoint_is_compared_too(copied):
    folder = copied("trainer")
    trainer = OrthoSSLTrainer(tiny_model(), tiny_arguments(folder, **BASE | {"seed": 7}), digits())
    with pytest.raises(ValueError, match="seed is 7 and the run"):
        trainer.train(resume_from_checkpoint=folder / "checkpoint-2")


def test_a_named_checkpoint_is_resumed_with_changes(copied, spy):
    folder = copied("trainer")
    trainer = OrthoSSLTrainer(tiny_model(), tiny_arguments(folder, **BASE | {"weight_decay": 0.5}), digits())
    trainer.train(resume_from_checkpoint=True)
    assert {step["groups"][0]["weight_decay"] for step in spy} == {0.5}
    card = (folder / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "0.0001 (steps 0–2), 0.5 (from step 2)" in card


@pytest.mark.parametrize("front", FRONTS)
def test_other_images_are_refused(front, copied):
    folder = copied(front)
    with pytest.raises(
        ValueError, match=r"the images are not those of the run in .* \(84 images before, 80 now\): restore them"
    ):
        train(front, folder, digits(80), resume=True)


@pytest.mark.parametrize("front", FRONTS)
def test_the_precision_is_that_of_the_tensors(front, tmp_path, spy):
    _, record = train(front, tmp_path, max_steps=1, bf16=True)
    assert [step["precisions"] for step in spy] == [{"bfloat16"}]
    assert (record["precision"], record["weights_precision"]) == ("bfloat16", "float32")
