"""Every option of training that is accepted has an effect, in the Trainer and in the accelerate loop."""

import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, get_recipe, load_source
from hf_orthossl.training import TrainingData, pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history
from hf_orthossl.training.callbacks.watching import build_spectra
from hf_orthossl.training.data import build_dataloader
from hf_orthossl.training.engines import engine_settings, prepare_model
from hf_orthossl.training.optimizers import build_optimizer
from hf_orthossl.training.options import TrainingOptions
from hf_orthossl.training.publishing import EncoderOutput
from hf_orthossl.training.step import build_step

SHOWN = set()


def shows(*names):
    """Says which options a test shows the effect of."""

    def mark(test):
        SHOWN.update(names)
        return test

    return mark


def train_with_trainer(model, data, args):
    OrthoSSLTrainer(model=model, args=args, train_dataset=data).train()


FRONTS = {"trainer": train_with_trainer, "loop": pretrain_loop}
both = pytest.mark.parametrize("front", FRONTS)


def make_args(folder="runs", **more):
    settings = {"output_dir": str(folder), "per_device_train_batch_size": 8, "views": "digits", "use_cpu": True}
    return OrthoSSLTrainingArguments(**settings | more)


def make_model(**config):
    torch.manual_seed(0)
    backbone = {"channels": [8, 8, 16, 16]}
    return SSLModel(SSLConfig(image_size=32, backbone_config=backbone, **{"method_config": {"hidden_dim": 8}} | config))


@pytest.fixture(scope="module")
def source():
    return load_source("digits", split="train[:40]")


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))


def run(front, source, folder, **options):
    """Trains, and returns the log entries and the steps of the checkpoints."""
    usual = {"max_steps": 2, "logging_steps": 1, "spectra_steps": 0, "save_strategy": "no", "learning_rate": 0.1}
    args = make_args(folder, **usual | options)
    FRONTS[front](make_model(), source, args)
    lines = read_history(folder)
    return [line for line in lines if "loss" in line], {path.name for path in Path(folder).iterdir()}


def checkpoints(files):
    return sorted(int(name.split("-")[1]) for name in files if name.startswith("checkpoint-"))


@both
@shows("max_steps", "logging_steps", "save_steps", "save_total_limit", "output_dir", "spectra_steps", "knn_steps")
@shows("linear_probe_steps", "per_device_train_batch_size")
def test_when_a_run_logs_saves_and_measures(front, source, tmp_path):
    events = {"logging_steps": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    measured = {"spectra_steps": 4, "knn_steps": 2, "linear_probe_steps": 4}
    log, files = run(front, source, tmp_path / "run", max_steps=4, per_device_train_batch_size=20, **events | measured)
    assert [line["step"] for line in log] == [2, 4]
    assert [line["epoch"] for line in log] == [1, 2]
    assert checkpoints(files) == [3, 4]
    assert [any("rank" in name for name in line) for line in log] == [False, True]
    assert [any(name.startswith("knn") for name in line) for line in log] == [True, True]
    assert [any(name.startswith("linear") for name in line) for line in log] == [False, True]


@both
@shows("select_by", "stop_on_collapse")
def test_what_measurements_decide(front, source, tmp_path):
    """The encoder that is written, and the step after which the run stops; test_watching.py has the rest."""
    options = {"max_steps": 6, "spectra_steps": 1, "spectra_images": 12, "save_strategy": "steps", "save_steps": 1}
    options |= {"save_total_limit": 0, "select_by": "effective_rank"}
    entries, files = run(front, source, tmp_path / "selected", **options)
    key = "spectra/features/representation/effective_rank"
    ranks = {entry["step"]: entry[key] for entry in entries}
    best = max(ranks, key=lambda step: ranks[step])
    assert checkpoints(files) == [1, 2, 3, 4, 5, 6]
    assert best < 6
    written = load_file(tmp_path / "selected" / "encoder" / "model.safetensors")
    kept = load_file(tmp_path / "selected" / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(value, kept[f"encoder.backbone.{name}"]) for name, value in written.items())
    entries, files = run(
        front, source, tmp_path / "s", **options | {"stop_on_collapse": True, "spectra_threshold": 0.99}
    )
    assert ([entry["step"] for entry in entries], checkpoints(files)) == ([1, 2], [1, 2])
    assert "encoder" in files


@both
@shows("num_train_epochs", "gradient_accumulation_steps", "save_strategy", "dataloader_drop_last", "seed")
def test_epochs_accumulation_and_seed(front, source, tmp_path):
    options = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch", "per_device_train_batch_size": 16}
    log, files = run(front, source, tmp_path / "one", **options)
    assert checkpoints(files) == [2, 4]
    more, _ = run(front, source, tmp_path / "two", gradient_accumulation_steps=2, dataloader_drop_last=False, **options)
    assert [line["step"] for line in more] == [1, 2, 3, 4]
    assert more[1]["epoch"] == 1
    other, _ = run(front, source, tmp_path / "three", seed=7, **options)
    assert log[0]["loss"] != other[0]["loss"]


@both
@shows("layer_decay", "freeze", "freeze_epochs", "adapt")
def test_rates_by_depth_and_what_is_frozen(front, source, tmp_path):
    """What they change is shown in `test_freezing.py` and, for `adapt`, `test_starting.py`; here, that steps change."""
    options = {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 20}
    log, _ = run(front, source, tmp_path / "one", **options)
    for number, more in enumerate(({"layer_decay": 0.5}, {"freeze": ["layer4"]}, {"freeze_epochs": 0.5})):
        other, _ = run(front, source, tmp_path / str(number), **options | more)
        assert other[1]["loss"] != log[1]["loss"], more


@both
@shows("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "learning_rate", "max_grad_norm", "resume")
def test_rates_and_clipping(front, source, tmp_path, monkeypatch):
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        "torch.nn.utils.clip_grad_norm_", lambda p, limit, **kw: norms.append(limit) or clip(p, limit, **kw)
    )
    options = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.05}, "warmup_steps": 1}
    options |= {"learning_rate": 0.2, "max_grad_norm": 0.5, "save_strategy": "steps"}
    log, _ = run(front, source, tmp_path, max_steps=3, **options)
    expected = [0.0, 0.2, 0.05 + 0.15 * (1 + math.cos(math.pi / 2)) / 2]
    assert [line["learning_rate"] for line in log] == pytest.approx(expected)
    assert norms == [0.5] * 3
    log, files = run(front, source, tmp_path, max_steps=4, resume=True, **options)
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert checkpoints(files) == [3, 4]


@both
@shows("warmup_epochs", "warmup_start_lr")
def test_warm_up_by_epochs(front, source, tmp_path):
    # Five steps per epoch.
    log, _ = run(front, source, tmp_path, max_steps=4, learning_rate=0.2, warmup_epochs=0.4, warmup_start_lr=0.05)
    assert [line["learning_rate"] for line in log] == pytest.approx([0.05, 0.125, 0.2, 0.1])


@both
@shows("bf16", "report_to", "disable_tqdm")
def test_precision_trackers_and_bar(front, source, tmp_path, monkeypatch, capsys):
    seen = []
    forward = nn.Conv2d.forward

    def watched(self, images):
        output = forward(self, images)
        if self.training:
            seen.append(output)
        return output

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    run(front, source, tmp_path / "quiet", max_steps=1, bf16=True, report_to=["tensorboard"], disable_tqdm=True)
    # The rehearsal before the first step and measurements are not in bfloat16.
    assert torch.bfloat16 in {output.dtype for output in seen}
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  step 1/1  [\d.,]+ images/s  0:00 left  loss \S+  lr \S+  ssl \S+"
    assert len(re.findall(line, capsys.readouterr().err)) == 1
    assert list((tmp_path / "quiet").rglob("events.out.tfevents*"))
    seen.clear()
    monkeypatch.setattr("hf_orthossl.training.display.shows_bars", lambda: True)
    run(front, source, tmp_path / "loud", max_steps=1, disable_tqdm=False)
    assert {output.dtype for output in seen} == {torch.float32}
    err = capsys.readouterr().err
    assert re.search(r"100%\|[█#]+\| 1/1 \[.*\], [\d.,]+ images/s, loss \S+", err)
    assert not re.search(line, err)


class Stop(Exception):
    pass


@shows("fp16")
def test_fp16_on_a_gpu(monkeypatch, source, tmp_path):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    args = make_args(tmp_path, fp16=True, use_cpu=False)
    assert args.mixed_precision == "fp16"
    asked = {}
    monkeypatch.setattr("hf_orthossl.training.loop.Accelerator", lambda **kw: asked.update(kw) or stop())
    with pytest.raises(Stop):
        pretrain_loop(make_model(), source, args)
    assert asked["mixed_precision"] == "fp16"


def stop():
    raise Stop


@shows("tf32", "use_cpu")
def test_devices(monkeypatch):
    switched = []
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.enable_tf32", switched.append)
    args = make_args(tf32=True, use_cpu=False)
    make_args(tf32=False, use_cpu=False)
    assert switched == [True, False]
    assert not engine_settings(args)["cpu"]
    assert engine_settings(make_args(use_cpu=True))["cpu"]


@shows("torch_compile", "torch_compile_backend", "torch_compile_mode")
def test_compilation(monkeypatch, source, tmp_path):
    args = make_args(tmp_path, torch_compile_backend="eager", torch_compile_mode="max-autotune")
    assert args.torch_compile
    assert make_args(torch_compile=True).torch_compile_backend == "inductor"
    trainer = OrthoSSLTrainer(make_model(), args, source)
    plugin = trainer.accelerator.state.dynamo_plugin
    assert (plugin.backend.value, plugin.mode) == ("EAGER", "max-autotune")
    asked = {}
    monkeypatch.setattr(SSLModel, "compile", lambda self, **kw: asked.update(kw) or stop())
    with pytest.raises(Stop):
        pretrain_loop(make_model(), source, args)
    assert asked == {"backend": "eager", "mode": "max-autotune"}


OPTIMIZERS = [
    ("sgd", {"momentum": 0.8}, {"momentum": 0.8}),
    ("lars", {"momentum": 0.8, "optim_args": "trust_coeff=0.5"}, {"momentum": 0.8, "trust_coeff": 0.5}),
    ("adam", {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-3}, {"betas": (0.8, 0.9), "eps": 1e-3}),
    ("adamw_torch", {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-3}, {"betas": (0.8, 0.9), "eps": 1e-3}),
    ("adagrad", {"optim_args": "lr_decay=0.1,eps=1e-3"}, {"lr_decay": 0.1, "eps": 1e-3}),
    ("rmsprop", {"optim_args": "alpha=0.5,momentum=0.1"}, {"alpha": 0.5, "momentum": 0.1}),
]


@shows("optim", "optim_args", "momentum", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay")
@pytest.mark.parametrize(("optim", "options", "expected"), OPTIMIZERS, ids=[row[0] for row in OPTIMIZERS])
def test_settings_of_optimizers(optim, options, expected):
    args = make_args(optim=optim, learning_rate=0.3, weight_decay=0.01, **options)
    optimizer = build_optimizer(nn.Linear(3, 2), args)
    assert optim.split("_")[0] == type(optimizer).__name__.lower()
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in expected} == expected
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.01)


@shows("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers")
@shows("dataloader_prefetch_factor", "dataloader_multiprocessing_context")
def test_processes_that_decode(source, monkeypatch):
    options = {"num_workers": 1, "persistent_workers": True, "prefetch_factor": 3, "multiprocessing_context": "spawn"}
    dataset = ImageDataset(source, views=get_recipe("digits"), image_size=32)
    args = make_args(**{f"dataloader_{name}": value for name, value in options.items()})
    loader = build_dataloader(dataset, args)
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 3)
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    on_gpu = [make_args(use_cpu=False, dataloader_pin_memory=pin) for pin in (True, False)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    pinned = [build_dataloader(dataset, args).pin_memory for args in on_gpu]
    assert pinned == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_processes_start_in_every_way(context, source, tmp_path):
    log, _ = run("loop", source, tmp_path, dataloader_num_workers=1, dataloader_multiprocessing_context=context)
    assert len(log) == 2


@shows(
    "views",
    "cache_images",
    "on_nonfinite",
    "gradient_cache",
    "gradient_checkpointing",
    "spectra_threshold",
    "spectra_images",
)
def test_settings_of_data_and_step(source, tmp_path):
    model = make_model()
    args = make_args(tmp_path, views="cifar-weak", cache_images="always", on_nonfinite="skip", gradient_cache=4)
    data = TrainingData(source, model, args.with_recipe(model.method.recipe))
    assert data.views.recipe.name == "cifar-weak"
    # A recipe may be given as an object too, and what is recorded of it goes into checkpoints as JSON.
    own = TrainingData(source, model, dataclasses.replace(data.args, views=get_recipe("cifar-weak")))
    assert json.loads(json.dumps(own.facts()))["views"] == "cifar-weak"
    assert data.dataset._cache is not None
    assert TrainingData(source, model, dataclasses.replace(data.args, cache_images="never")).dataset._cache is None
    assert build_step(model, data).guard.policy == "skip"
    prepare_model(model, SimpleNamespace(num_processes=1), args)
    assert (model.gradient_cache, model.encoder.gradient_checkpointing) == (4, False)
    prepare_model(model, SimpleNamespace(num_processes=1), make_args(tmp_path, gradient_checkpointing=True))
    assert (model.gradient_cache, model.encoder.gradient_checkpointing) == (None, True)
    trainer = OrthoSSLTrainer(model, make_args(tmp_path, spectra_threshold=0.3), source)
    thresholds = [getattr(callback, "threshold", None) for callback in trainer.callback_handler.callbacks]
    assert 0.3 in thresholds
    args = make_args(tmp_path, spectra_images=3).with_recipe(model.method.recipe)
    images = build_spectra(model, TrainingData(source, model, args)).images
    assert sum(len(batch["pixel_values"]) for batch in images) == 3


@shows("sync_batchnorm", "ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_timeout", "ddp_backend")
def test_settings_of_several_processes(source, tmp_path, monkeypatch):
    options = {"ddp_find_unused_parameters": True, "ddp_broadcast_buffers": True, "ddp_timeout": 77}
    args = make_args(tmp_path, **options)
    parallel, _ = engine_settings(args)["kwargs_handlers"]
    assert (parallel.find_unused_parameters, parallel.broadcast_buffers) == (True, True)
    handler = OrthoSSLTrainer(make_model(), args, source).accelerator.ddp_handler
    assert (handler.find_unused_parameters, handler.broadcast_buffers) == (True, True)
    synchronized = []
    monkeypatch.setattr("hf_orthossl.training.engines.synchronize_batchnorm", synchronized.append)
    monkeypatch.setattr("hf_orthossl.training.engines.broadcast", lambda tensor: tensor)
    many = SimpleNamespace(num_processes=2, distributed_type=None, device=torch.device("cpu"))
    for choice in (True, False):
        prepare_model(make_model(), many, make_args(tmp_path, sync_batchnorm=choice))
    assert len(synchronized) == 1
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("hf_orthossl.training.arguments.meet_processes", asked.append)
    monkeypatch.setattr("hf_orthossl.training.arguments.PartialState", lambda **kw: asked.append(kw) or stop())
    with pytest.raises(Stop):
        make_args(tmp_path, ddp_backend="gloo", ddp_timeout=77)
    assert asked[0] == 77
    assert asked[1]["backend"] == "gloo"


@shows(
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_token", "hub_strategy", "hub_always_push"
)
def test_what_is_published_where(source, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(
        "hf_orthossl.training.publishing.publish_encoder", lambda folder, repo, **kw: sent.append((repo, kw))
    )
    monkeypatch.setattr(EncoderOutput, "_write", lambda self, encoder, step: Path("encoder"))
    model = make_model()
    there = {"hub_model_id": "user/name", "hub_private_repo": True, "hub_revision": "run", "hub_token": "secret"}

    def at_save(pending=None, **options):
        args = make_args(tmp_path, **there | options).with_recipe(model.method.recipe)
        output = EncoderOutput(model, TrainingData(source, model, args), front="Trainer")
        output.pending = pending
        output.at_save(1)
        output.wait()
        return output

    at_save()
    assert sent == []
    at_save(push_to_hub=True)
    ((repo, settings),) = sent
    assert repo == "user/name"
    assert (settings["private"], settings["revision"], settings["token"]) == (True, "run", "secret")
    sent.clear()
    at_save(push_to_hub=True, hub_strategy="end")
    assert sent == []
    running = SimpleNamespace(done=lambda: False, result=lambda: None)
    at_save(running, push_to_hub=True)
    assert sent == []
    at_save(running, push_to_hub=True, hub_always_push=True)
    assert len(sent) == 1


@shows("overwrite_output")
def test_a_run_is_replaced_when_told(tmp_path):
    from hf_orthossl.training.run_folder import check_folder

    (tmp_path / "config.yaml").write_text(
        "# Settings of an orthossl run; `orthossl pretrain --config` starts it again.\n"
    )
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds another run"):
        check_folder(tmp_path, make_args(tmp_path))
    check_folder(tmp_path, make_args(tmp_path, overwrite_output=True))


def test_every_option_is_shown():
    assert {spec.name for spec in dataclasses.fields(TrainingOptions)} == SHOWN
