"""The Trainer and the accelerate loop: same losses, exact resume, the penalty once per optimizer step."""

import dataclasses

import pytest
import torch
from PIL import Image

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, get_recipe, load_source
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history

TINY = {"channels": [8, 8, 16, 16]}


def make_model(method="byol", **config):
    torch.manual_seed(0)
    return SSLModel(
        SSLConfig(
            backbone="resnet10t",
            image_size=32,
            backbone_config=TINY,
            method=method,
            **{"regularizer": "srip", "gamma": 1e-3} | config,
        )
    )


def make_args(folder, **more):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 3,
        "views": "digits",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return OrthoSSLTrainingArguments(**settings | more)


@pytest.fixture(scope="module")
def digits():
    """84 digits: with batches of 16 twice a step, an epoch is two whole steps and a shorter one."""
    source = load_source("digits")
    return ImageDataset(source, views=get_recipe("digits"), image_size=32, indices=range(84))


def train_with_trainer(model, dataset, args):
    OrthoSSLTrainer(model=model, args=args, train_dataset=dataset).train()
    return model


FRONTS = {"trainer": train_with_trainer, "loop": pretrain_loop}


def history(folder):
    lines = read_history(folder)
    return [line for line in lines if "loss" in line]


def assert_same_state(one, other, tolerance=0.0):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("method", ["byol", "simclr", "dino"])
def test_both_fronts_give_the_same_losses(method, digits, tmp_path):
    models = {}
    for name, train in FRONTS.items():
        models[name] = make_model(method)
        train(models[name], digits, make_args(tmp_path / name, max_grad_norm=1.0))
    one, other = history(tmp_path / "trainer"), history(tmp_path / "loop")
    assert [line["step"] for line in one] == [line["step"] for line in other] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one, other, strict=True):
        for part in ("loss", "ssl", "orthogonality", "embedding_std", "learning_rate", "epoch"):
            assert a[part] == pytest.approx(b[part], rel=1e-5, abs=1e-9), (a["step"], part)
    assert_same_state(models["trainer"], models["loop"], tolerance=1e-6)


@pytest.mark.parametrize("front", FRONTS)
def test_resume_is_exact(front, digits, tmp_path):
    """Interrupted after 3 of 6 steps, in the middle of an epoch, and continued: bit for bit the same."""
    config = {"method": "nnbyol", "method_config": {"queue_size": 64, "hidden_dim": 32, "output_dim": 8}}
    whole = make_model(**config)
    FRONTS[front](whole, digits, make_args(tmp_path / "whole"))

    class Interrupted(Exception):
        pass

    broken = make_model(**config)
    end_step, done = broken.end_step, []

    def stop_at_five(*arguments):
        parts = end_step(*arguments)
        done.append(1)
        if len(done) == 5:
            raise Interrupted
        return parts

    broken.end_step = stop_at_five
    with pytest.raises(Interrupted):
        FRONTS[front](broken, digits, make_args(tmp_path / "broken"))
    assert (tmp_path / "broken" / "checkpoint-3").is_dir()

    torch.manual_seed(99)  # nothing may depend on how the process started
    resumed = make_model(**config)
    FRONTS[front](resumed, digits, make_args(tmp_path / "broken", resume=True))
    assert_same_state(whole, resumed)
    assert history(tmp_path / "whole")[-1] == history(tmp_path / "broken")[-1]


@pytest.mark.parametrize("front", FRONTS)
def test_resume_needs_a_checkpoint_of_the_same_front(front, digits, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from: run without --resume"):
        FRONTS[front](make_model(), digits, make_args(tmp_path, resume=True))
    other = next(name for name in FRONTS if name != front)
    FRONTS[other](make_model(), digits, make_args(tmp_path, max_steps=1))
    with pytest.raises(FileNotFoundError, match="written by another training loop"):
        FRONTS[front](make_model(), digits, make_args(tmp_path, resume=True))


@pytest.mark.parametrize("front", FRONTS)
def test_penalty_counts_once_per_step(front, digits, tmp_path):
    """With accumulation, the first step's gradient is the mean SSL gradient plus γ times the penalty's."""
    gamma, found = 1e-3, {}
    model = make_model(regularizer="so", gamma=gamma)
    step = model.before_optimizer_step

    def record():
        if not found:
            found.update({n: p.grad.clone() for n, p in model.encoder.named_parameters()})
            model.zero_grad()
            model.penalty().backward()
            found["penalty"] = {n: p.grad for n, p in model.encoder.named_parameters()}
        step()

    model.before_optimizer_step = record
    FRONTS[front](model, digits, make_args(tmp_path / "with", max_steps=1, learning_rate=0.0))

    plain, without = make_model(regularizer=None), {}
    step_plain = plain.before_optimizer_step

    def record_plain():
        without.update({n: p.grad.clone() for n, p in plain.encoder.named_parameters()})
        step_plain()

    plain.before_optimizer_step = record_plain
    FRONTS[front](plain, digits, make_args(tmp_path / "without", max_steps=1, learning_rate=0.0))
    penalty = found.pop("penalty")
    for name, gradient in found.items():
        share = 0 if penalty[name] is None else gamma * penalty[name]
        torch.testing.assert_close(gradient, without[name] + share, rtol=1e-4, atol=1e-6)
    assert history(tmp_path / "with")[0]["orthogonality"] == pytest.approx(gamma * float(model.penalty()), rel=1e-5)


@pytest.mark.parametrize("front", FRONTS)
def test_a_loss_that_is_not_finite_stops_the_run(front, digits, tmp_path):
    model = make_model()
    forward = model.method.forward

    def broken(encoder, views):
        output = forward(encoder, views)
        if model.method.progress.step == 4:
            output.loss = output.loss * float("nan")
        return output

    model.method.forward = broken
    with pytest.raises(FloatingPointError, match=r"not finite at step 4 \(part: ssl\)"):
        FRONTS[front](model, digits, make_args(tmp_path))
    assert (tmp_path / "checkpoint-3").is_dir()
    assert not (tmp_path / "checkpoint-6").exists()


@pytest.mark.parametrize("front", FRONTS)
def test_full_disk_keeps_the_previous_checkpoint(front, digits, tmp_path, monkeypatch):
    FRONTS[front](make_model(), digits, make_args(tmp_path, max_steps=3))
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoint-3").rglob("*") if path.is_file()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"checkpoint-6 .*No space left.*earlier checkpoints are intact"):
        FRONTS[front](make_model(), digits, make_args(tmp_path, resume=True))
    assert {path.name for path in tmp_path.glob("*") if path.is_dir()} == {"checkpoint-3", "encoder"}
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("dataset", "image_size", "views"),
    [("digits", 32, "digits"), ("other", 32, "cifar-asym"), ("other", 96, "imagenet")],
)
def test_views_where_none_are_named(dataset, image_size, views, tmp_path):
    """The same from Python as from the command line."""
    source = dataclasses.replace(load_source("digits"), name=dataset)
    torch.manual_seed(0)
    model = SSLModel(SSLConfig("resnet10t", image_size=image_size, backbone_config=TINY, method="byol"))
    if image_size == 96:
        source.sampled_sizes = [(96, 96)]
    trainer = OrthoSSLTrainer(model=model, args=make_args(tmp_path, views=None), train_dataset=source)
    assert trainer.args.views == trainer.step.views.recipe.name == views


@pytest.fixture
def image_folder(tmp_path):
    """Forty digits as PNG files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for item in ImageDataset(load_source("digits"), image_size=32, indices=range(40)):
        Image.fromarray(item["pixel_values"].permute(1, 2, 0).numpy()).save(folder / f"{item['index']:04}.png")
    return folder


@pytest.mark.parametrize("front", FRONTS)
def test_unreadable_images_are_named_and_too_many_stop_the_run(front, image_folder, tmp_path):
    broken = sorted(image_folder.iterdir())[7]
    broken.write_bytes(b"no image")
    source = load_source(str(image_folder), max_unreadable=0)
    with pytest.raises(ValueError, match=broken.name):
        FRONTS[front](make_model(), source, make_args(tmp_path / "run", max_steps=2))
    assert broken.name in (tmp_path / "run" / "unreadable_images.txt").read_text()


@pytest.mark.parametrize("front", FRONTS)
def test_streaming(front, image_folder, tmp_path):
    model, before = make_model(), make_model()
    source = load_source(str(image_folder), streaming=True)
    FRONTS[front](model, source, make_args(tmp_path / "run", max_steps=2, gradient_accumulation_steps=1))
    assert [line["step"] for line in history(tmp_path / "run")] == [1, 2]
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert any(moved)
    with pytest.raises(ValueError, match="max_steps"):
        FRONTS[front](make_model(), source, make_args(tmp_path / "endless", max_steps=-1))


@pytest.mark.parametrize("front", FRONTS)
def test_resuming_a_finished_run_changes_nothing(front, digits, tmp_path):
    model, again = make_model(), make_model()
    FRONTS[front](model, digits, make_args(tmp_path, max_steps=2))
    FRONTS[front](again, digits, make_args(tmp_path, max_steps=2, resume=True))
    assert_same_state(model, again)
    assert [line["step"] for line in history(tmp_path)] == [1, 2]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_whitening_is_logged_and_trained(digits, tmp_path):
    model = make_model(whitening=1e-2)
    train_with_trainer(model, digits, make_args(tmp_path, max_steps=1))
    entry = history(tmp_path)[0]
    assert entry["whitening"] > 0
    assert entry["loss"] == pytest.approx(entry["ssl"] + entry["whitening"] + entry["orthogonality"], rel=1e-5)


@pytest.mark.parametrize("method", ["swav", "dino"])
def test_multi_crop(method, tmp_path):
    """Two global views and six smaller local ones, from the data set to a finite loss that differs from two views'."""
    source = load_source("digits")
    losses = []
    for views in ("cifar-multicrop", "digits"):
        dataset = ImageDataset(source, views=get_recipe(views), image_size=32, indices=range(64))
        folder = tmp_path / views
        train_with_trainer(make_model(method), dataset, make_args(folder, views=views, max_steps=1))
        losses.append(history(folder)[0]["ssl"])
    assert all(0 < loss < 20 for loss in losses)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size is 1: batch normalization"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"per_device_train_batch_size": 128}, "has 84 images, but a step needs 128: lower"),
        ({"views": "digit"}, "did you mean 'digits'"),
        ({"views": "cifar-multicrop"}, r"views has 8 per image, but BYOL uses 2: .*\(dino, .*swav\)"),
        ({"resume_from_checkpoint": "x"}, "pass --resume"),
        ({"remove_unused_columns": True}, "remove_unused_columns cannot be used: views need every column"),
    ],
)
def test_bad_arguments(settings, said, digits, tmp_path):
    with pytest.raises(ValueError, match=said):
        train_with_trainer(make_model(), digits, make_args(tmp_path, **settings))


def test_from_pretrained_restores_everything(tmp_path):
    """Also the target network's copy of Swin's index tables, which are in no checkpoint."""
    torch.manual_seed(0)
    small = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 2}
    model = SSLModel(SSLConfig("swin_tiny_patch4_window7_224", image_size=32, backbone_config=small, method="mocov3"))
    model.save_pretrained(tmp_path)
    again = SSLModel.from_pretrained(tmp_path).train()
    assert_same_state(model, again)
    views = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    losses = []
    for one in (model, again):
        torch.manual_seed(1)  # stochastic depth
        losses.append(one(views).loss)
    torch.testing.assert_close(*losses)
