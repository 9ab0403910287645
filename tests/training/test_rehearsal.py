"""Whatever would stop a run after its last step stops it before the first, in one line, and changes nothing."""

import json
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.cli import main
from hf_orthossl.training import TrainingData, pretrain_loop
from hf_orthossl.training.rehearsal import check_batches, last_batch, planned_saves, rehearse
from hf_orthossl.training.resume import begin_record

TINY = ["--backbone_config", "channels=[8,8,16,16]", "--method_config", "hidden_dim=16", "output_dim=8"]
RUN = ["--use_cpu", "--disable_tqdm", "true", "--per_device_train_batch_size", "16", "--max_steps", "1"]
ONE_SIZE = ["--backbone", "vit_tiny_patch16_224", "--backbone_config", "depth=1", "patch_size=8"]
ONE_SIZE += ["dynamic_img_size=false"]
SHORT_LAST_BATCH = ["--split", "train[:67]", "--max_steps", "5", "--dataloader_drop_last", "false"]
MULTICROP = ["--method", "swav", "--views", "cifar-multicrop", "--image_size", "32"]
VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}


def refused(folder, capsys, *options):
    """The line that a refused run prints; nothing of it is left."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", *RUN, *([] if "--backbone" in options else TINY), "--output_dir", str(folder), *options])
    assert stopped.value.code == 2
    assert sorted(folder.parent.rglob("*")) == before
    said = capsys.readouterr()
    assert "kNN" not in said.out + said.err
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("options", "reason", "remedy"),
    [
        (
            ["--split", "train[:65]", "--max_steps", "5", "--dataloader_drop_last", "false"],
            "the last batch of an epoch has a single image (65 images in batches of 16)",
            "--dataloader_drop_last true",
        ),
        (
            [*SHORT_LAST_BATCH, "--gradient_cache", "2"],
            "in a batch of 3, one chunk has a single image",
            "--gradient_cache 3",
        ),
        (
            ["--embedding_regularizer", "wmse", "--embedding_layer", "representation"],
            "embedding_regularizer is wmse, and a batch of all processes has 16 embeddings of width 16: it needs 17",
            "--embedding_config epsilon=0.01",
        ),
        (
            [*SHORT_LAST_BATCH, "--embedding_regularizer", "wmse"],
            "needs 9 images of width 8, and the last batch of an epoch has 3 (67 images in batches of 16)",
            "--dataloader_drop_last true",
        ),
        (
            [*ONE_SIZE, *MULTICROP],
            "views 'cifar-multicrop' (32 px, 16 px) cannot be trained on",
            "pass --backbone_config dynamic_img_size=true",
        ),
    ],
)
def test_a_batch_that_cannot_be_trained_on(options, reason, remedy, tmp_path, capsys):
    line = refused(tmp_path / "new" / "run", capsys, *options)
    assert reason in line
    assert remedy in line


def test_an_earlier_run_survives_the_refusal_of_its_replacement(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    main(["pretrain", *RUN, *TINY, "--output_dir", str(folder), "--knn_images", "0"])
    capsys.readouterr()
    with monkeypatch.context() as patch:

        def fail(report, path):
            raise RuntimeError("no font can be found")

        patch.setattr("hf_orthossl.spectra.SpectralReport.plot", fail)
        line = refused(folder, capsys, "--overwrite_output")
    assert "with its spectra and card (no font can be found)" in line
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 1000)
    monkeypatch.setattr("hf_orthossl.training.rehearsal.shutil.disk_usage", lambda path: usage)
    # What it replaces is removed before its own first checkpoint, and a run of one checkpoint fits in its place.
    main(["pretrain", *RUN, *TINY, "--output_dir", str(folder), "--knn_images", "0", "--overwrite_output"])
    capsys.readouterr()
    line = refused(folder, capsys, "--overwrite_output", "--max_steps", "3", "--save_steps", "1")
    assert f"output_dir {folder} has " in line
    assert "for up to 3 checkpoints of " in line
    assert "lower --save_total_limit" in line


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("the user's own")
    assert f"{tmp_path / 'file'} is a file" in refused(tmp_path / "file" / "run", capsys)
    (tmp_path / "run" / "results.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"results\.json is a folder, where a file is to be written"):
        rehearse(*make_run(tmp_path / "run"), front="Trainer")
    with pytest.raises(SystemExit):
        main(["pretrain", *RUN, *TINY, "--output_dir", "/proc/orthossl/run"])
    assert "output_dir /proc/orthossl/run cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_training_does_not_notice(front, tmp_path, monkeypatch):
    """Weights, queues, running statistics and random states are those of a run without it, to the last bit."""
    trained = {}
    for name in ("with", "without"):
        if name == "without":
            for module in ("trainer", "loop"):
                monkeypatch.setattr(f"hf_orthossl.training.{module}.rehearse", lambda *args, **kwargs: None)
        torch.manual_seed(0)
        # Dropout draws from the global generator.
        config = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8, "drop_rate": 0.3, "proj_drop_rate": 0.3}
        sizes = {"queue_size": 32, "hidden_dim": 16, "predictor_dim": 16, "output_dim": 8}
        model = SSLModel(SSLConfig("vit_tiny_patch16_224", 32, config, "nnclr", sizes))
        args = OrthoSSLTrainingArguments(
            str(tmp_path / name), per_device_train_batch_size=16, max_steps=2, logging_steps=1, spectra_steps=0,
            use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        if front == "loop":
            pretrain_loop(model, "digits", args)
        else:
            OrthoSSLTrainer(model, args, train_dataset="digits").train()
        entries = (tmp_path / name / "history.jsonl").read_text().splitlines()
        losses = [entry["loss"] for entry in map(json.loads, entries) if "loss" in entry]
        trained[name] = model.state_dict(), losses, torch.rand(3)
    (weights, losses, drawn), (alone, losses_alone, drawn_alone) = trained.values()
    assert losses == losses_alone
    assert torch.equal(drawn, drawn_alone)
    for name, weight in alone.items():
        assert torch.equal(weights[name], weight), name


def make_run(folder, rows="digits", method="simclr", backbone=None, **settings):
    config = backbone or {"channels": [8, 8, 16, 16]}
    model = SSLModel(SSLConfig("vit_tiny_patch16_224" if backbone else "resnet10t", 32, config, method))
    settings = {"per_device_train_batch_size": 16, "max_steps": 1000, "use_cpu": True} | settings
    args = OrthoSSLTrainingArguments(str(folder), **settings)
    data = TrainingData(rows, model, args.with_recipe(model.method.recipe))
    begin_record(model, data)
    return model, data


def images(count):
    import datasets
    import numpy as np

    rows = list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": rows}, features=features)


def test_what_can_be_trained_on_is_not_refused(tmp_path):
    rows = images(33)
    # A method without batch norm, on a backbone without it, trains on a single image.
    model, data = make_run(tmp_path, rows, "dino", VIT, dataloader_drop_last=False)
    assert last_batch(data) == 1
    check_batches(model, data)
    # The run ends before the last batch of an epoch, or leaves it out.
    for settings in ({"dataloader_drop_last": False, "max_steps": 2}, {}):
        model, data = make_run(tmp_path, rows, **settings)
        assert last_batch(data) is None
        check_batches(model, data)
    # Images that are all alike have no spectrum; they are reported at the end.
    alike = images(1).select([0] * 16)
    rehearse(*make_run(tmp_path / "alike", alike, max_steps=1), front="Trainer")
    assert not (tmp_path / "alike").exists()


@pytest.mark.parametrize(
    ("settings", "done", "saves"),
    [
        ({"max_steps": 10, "save_steps": 4}, 0, 3),
        ({"max_steps": 8, "save_steps": 4}, 0, 2),
        ({"max_steps": 10, "save_steps": 4}, 4, 2),
        ({"max_steps": 10, "save_steps": 0.25}, 0, 4),
        ({"max_steps": 10, "save_strategy": "no"}, 0, 0),
        ({"max_steps": 7, "save_strategy": "epoch"}, 0, 4),
    ],
)
def test_checkpoints_that_a_run_will_save(settings, done, saves, tmp_path):
    _, data = make_run(tmp_path, images(32), **settings)
    assert planned_saves(data.args, data, done) == saves


@pytest.mark.parametrize(("kept", "most"), [(2, 3), (1, 2), (None, 5)])
def test_space_is_that_of_the_checkpoints_which_exist_at_once(kept, most, tmp_path, monkeypatch):
    model, data = make_run(tmp_path, max_steps=5, save_steps=1, save_total_limit=kept, optim="adam")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    needed = most * (3 * 4 * parameters + buffers)
    if kept is None:
        encoder = model.encoder.state_dict().values()
        needed += sum(weight.numel() * weight.element_size() for weight in encoder)
    for free in (needed - 1, needed):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("hf_orthossl.training.rehearsal.shutil.disk_usage", lambda path, usage=usage: usage)
        if free < needed:
            with pytest.raises(OSError, match=rf"needs .* \({needed:,} bytes\), for up to {most} checkpoints"):
                rehearse(model, data, front="Trainer")
        else:
            rehearse(model, data, front="Trainer")
