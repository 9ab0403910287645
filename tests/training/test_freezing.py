"""Learning rates by depth, and parts of the encoder that are not trained, or not at first."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay
from torch import nn

from hf_orthossl import OrthogonalityRegularizer, OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.cli import main
from hf_orthossl.data import load_source
from hf_orthossl.encoders import load_encoder
from hf_orthossl.encoders.depth import layer_numbers, named_parameters
from hf_orthossl.methods import Progress
from hf_orthossl.training import TrainingData, pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history
from hf_orthossl.training.freezing import Freezing
from hf_orthossl.training.optimizers import build_optimizer


def train_with_trainer(model, data, args):
    OrthoSSLTrainer(model=model, args=args, train_dataset=data).train()


FRONTS = {"trainer": train_with_trainer, "loop": pretrain_loop}
both = pytest.mark.parametrize("front", FRONTS)


def make_args(folder="runs", **more):
    settings = {"output_dir": str(folder), "per_device_train_batch_size": 8, "views": "digits", "use_cpu": True}
    usual = {"optim": "adamw_torch", "learning_rate": 0.01, "weight_decay": 0.1, "logging_steps": 1, "spectra_steps": 0}
    usual["warmup_steps"] = 0
    return OrthoSSLTrainingArguments(**settings | usual | more)


def make_model(**config):
    torch.manual_seed(0)
    settings = {"method": "byol", "method_config": {"hidden_dim": 8, "output_dim": 4}, "gamma": 1e-3}
    return SSLModel(SSLConfig(image_size=32, backbone_config={"channels": [8, 8, 16, 16]}, **settings | config))


@pytest.fixture(scope="module")
def source():
    return load_source("digits", split="train[:32]")


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr("hf_orthossl.spectra.SpectralReport.plot", lambda report, path: path.write_bytes(b"figure"))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def rates(module, optimizer):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("optim", ["sgd", "adam", "lars", "adamw_torch"])
def test_a_vit_has_the_rates_of_timm(optim):
    """But for the last norm, which BEiT's and MAE's code puts beside the head and timm into the last block."""
    sizes = {"embed_dim": 8, "depth": 3, "num_heads": 1}
    model = SSLModel(SSLConfig(backbone="vit_tiny_patch16_224", backbone_config=sizes, image_size=32, method="simclr"))
    args = make_args(optim=optim, learning_rate=0.2, weight_decay=0.05, layer_decay=0.7)
    optimizer = build_optimizer(model, args.with_recipe(model.method.recipe))
    found = rates(model, optimizer)
    other = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **sizes)
    timms = param_groups_layer_decay(other, weight_decay=0.05, layer_decay=0.7)
    names = {id(parameter): name for name, parameter in other.named_parameters()}
    expected = {names[id(p)]: 0.2 * group["lr_scale"] for group in timms for p in group["params"]}
    for name, rate in expected.items():
        if not name.startswith("head."):
            expected_rate = 0.2 if name.startswith("norm.") else rate
            assert found.pop(f"encoder.backbone.{name}") == pytest.approx(expected_rate), name
    assert set(found.values()) == {0.2}
    assert all(name.startswith("method.") for name in found)
    # The first group's is the rate that is logged.
    assert optimizer.param_groups[0]["lr"] == 0.2
    plain = build_optimizer(model, make_args(optim=optim, learning_rate=0.2).with_recipe(model.method.recipe))
    assert len(plain.param_groups) == (1 if optim in ("sgd", "adam") else 2)


@both
def test_rates_by_depth_train_and_resume(front, source, tmp_path):
    """The stem, at 1e-5 of the rate, hardly moves, and a resumed run takes the same steps."""
    options = {
        "layer_decay": 0.1,
        "learning_rate": 0.5,
        "optim": "sgd",
        "weight_decay": 0.0,
        "max_steps": 2,
        "save_steps": 1,
    }
    model = make_model()
    before = state(model)
    FRONTS[front](model, source, make_args(tmp_path, **options))
    whole = state(model)
    low, high = (
        (whole[name] - before[name]).norm() / before[name].norm()
        for name in ("encoder.backbone.conv1.0.weight", "encoder.backbone.layer4.0.downsample.1.weight")
    )
    assert 0 < low < 1e-2 * high
    assert next(entry["learning_rate"] for entry in read_history(tmp_path) if "loss" in entry) == pytest.approx(0.5)
    shutil.rmtree(tmp_path / "checkpoint-2")
    model = make_model()
    FRONTS[front](model, source, make_args(tmp_path, resume=True, **options))
    assert not changed(whole, state(model))


@both
def test_what_is_frozen_does_not_change(front, source, tmp_path):
    model = make_model()
    before = state(model)
    FRONTS[front](model, source, make_args(tmp_path, max_steps=2, freeze=["conv1", "bn1", "layer[12]"]))
    frozen = {"conv1", "bn1", "layer1", "layer2"}
    after = changed(before, state(model))
    assert not {name for name in after if name.startswith("encoder.") and name.split(".")[2] in frozen}
    assert {"layer3", "layer4"} == {name.split(".")[2] for name in after if name.startswith("encoder.")}
    # Running statistics of their copies in the target network neither.
    assert not {n for n in after if n.startswith("method.target.stack.0.") and n.split(".")[5] in frozen}
    assert any(name.startswith("method.projector.") for name in after)
    record = json.loads((tmp_path / "encoder" / "config.json").read_text())["orthossl"]["training"]
    assert record["freeze"] == "conv1 bn1 layer[12]"
    # A later run of the same model trains everything.
    before = state(model)
    FRONTS[front](model, source, make_args(tmp_path / "next", max_steps=1, save_strategy="no"))
    assert "encoder.backbone.layer1.0.conv1.weight" in changed(before, state(model))


@pytest.mark.parametrize(("front", "accumulation"), [("trainer", 2), ("loop", 1)])
def test_the_encoder_is_frozen_for_the_first_epochs(front, accumulation, source, tmp_path):
    """And a run resumed before, at or after the boundary takes the same steps, bit for bit."""
    batch = 8 // accumulation
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 7}
    options |= {"freeze_epochs": 1, "save_steps": 1, "save_total_limit": 0}
    model = make_model()
    first = state(model)
    FRONTS[front](model, source, make_args(tmp_path, **options))
    saved = {n: load_file(tmp_path / f"checkpoint-{n}" / "model.safetensors") for n in range(1, 8)}
    encoder = {name for name in first if name.startswith("encoder.")}
    for step in range(1, 5):
        assert not changed(first, saved[step]) & encoder, step
    assert changed(saved[4], saved[5]) >= {name for name in encoder if name.endswith(("conv1.weight", "running_mean"))}
    assert changed(first, saved[1]) >= {"method.predictor.0.weight"}
    log = {entry["step"]: entry for entry in read_history(tmp_path) if "loss" in entry}
    assert [log[step]["orthogonality"] == 0 for step in range(1, 8)] == [True] * 4 + [False] * 3
    for step in (4, 3):
        for later in range(step + 1, 8):
            shutil.rmtree(tmp_path / f"checkpoint-{later}", ignore_errors=True)
        resumed = make_model()
        FRONTS[front](resumed, source, make_args(tmp_path, resume=True, **options))
        assert not changed(state(model), state(resumed)), step


def test_the_penalty_leaves_out_what_is_frozen():
    model = make_model().double()
    regularizer = OrthogonalityRegularizer(model.encoder, "so")
    values = regularizer.values()
    held = {name for name in values if name.startswith(("layer3.", "conv1"))}
    model.set_frozen(named_parameters(model.encoder, ["layer3", "conv1"]))
    penalty = regularizer(trained_only=True)
    assert penalty.item() == pytest.approx(sum(v for name, v in values.items() if name not in held), rel=1e-12)
    penalty.backward()
    given = {name for name, parameter in model.encoder.backbone.named_parameters() if parameter.grad is not None}
    assert given == {name for name in values if name not in held}
    assert regularizer().item() == pytest.approx(sum(values.values()), rel=1e-12)
    text = Freezing(named_parameters(model.encoder, ["layer3", "conv1"]), 2).describe(model)
    assert "of 45 parameters of the encoder for 2 epochs" in text
    assert f"no penalty on {len(held)} of {len(values)} matrices" in text


def test_batch_norms_of_frozen_layers_keep_their_statistics():
    model = make_model()
    model.set_frozen(named_parameters(model.encoder, ["layer1", "layer2.*.weight"]))
    model.train()
    modes = {name: m.training for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert not any(training for name, training in modes.items() if ".layer1." in name)
    # Half frozen is not frozen.
    assert all(training for name, training in modes.items() if ".layer1." not in name)
    model.set_frozen(())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.encoder.parameters())


@pytest.mark.parametrize(
    ("backbone", "count", "trained"),
    [
        ("resnet10t", 2, {"layer3", "layer4"}),
        ("vit_tiny_patch16_224", 1, {"blocks.2", "norm"}),
        ("vit_tiny_patch16_224", 3, {"blocks.0", "blocks.1", "blocks.2", "norm"}),
    ],
)
def test_all_but_the_last_layers(backbone, count, trained):
    sizes = {"channels": [8, 8, 16, 16]} if backbone == "resnet10t" else {"embed_dim": 8, "depth": 3, "num_heads": 1}
    encoder = load_encoder(backbone, image_size=32, **sizes)
    frozen = named_parameters(encoder, [f"all_but_last={count}"])
    left = [name for name, _ in encoder.backbone.named_parameters() if name not in frozen]
    assert {".".join(name.split(".")[: 1 + name.startswith("blocks")]) for name in left} == trained
    assert frozen
    assert layer_numbers(encoder)[1] == (5 if backbone == "resnet10t" else 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze", "layer9"], "matches none of the 42 parameters of 'resnet10t': did you mean 'layer"),
        (["--freeze", "all_but_last=5"], "freeze is 'all_but_last=5': it must be all_but_last=K with K from 0 to 4"),
        (["--freeze", "all_but_last"], "it must be all_but_last=K with K from 0 to 4"),
        (["--freeze", "*"], "leaves no parameter of the encoder to train"),
        (["--freeze_epochs", "2", "--num_train_epochs", "2"], "freeze_epochs is 2, and the run ends after 2 epochs"),
        (["--freeze_epochs", "-1"], "freeze_epochs is -1: it must be 0 or more"),
        (["--layer_decay", "0"], "layer_decay is 0.0: the factor per layer must lie in (0, 1]"),
        (["--layer_decay", "1.5"], "layer_decay is 1.5"),
        (["--streaming", "--max_steps", "3", "--freeze_epochs", "1"], "a stream has no epochs"),
    ],
)
def test_what_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", *options, "--output_dir", str(tmp_path / "run"), "--use_cpu", "--knn_images", "0"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_command_says_what_is_frozen(tmp_path, capsys):
    options = ["--freeze", "all_but_last=1", "--max_steps", "1", "--split", "train[:64]", "--knn_images", "0"]
    narrow = ["--backbone_config", "channels=[8,8,16,16]", "--per_device_train_batch_size", "16", "--use_cpu"]
    main(["pretrain", *options, *narrow, "--output_dir", str(tmp_path / "run")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("frozen")]
    assert "of 45 parameters of the encoder" in line
    assert "batch norms by their running statistics" in line
    assert "no penalty on" in line
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert "frozen parameters" in card


def test_steps_of_a_run_ask_for_what_is_frozen_then(source):
    model = make_model()
    args = make_args(freeze_epochs=0.5, max_steps=4).with_recipe(model.method.recipe)
    data = TrainingData(source, model, args)
    assert data.args.ddp_find_unused_parameters
    freezing = Freezing.of(model, data.args)
    for step, frozen in ((0, True), (1, True), (2, False), (1, True), (3, False)):
        freezing.begin_step(model, Progress(step, 4, data.steps_per_epoch))
        assert bool(model.frozen) == frozen
