"""Spectra in both fronts: they reach TensorBoard and history, go on after a resume, and leave training as it is."""

import pytest
import torch
from watched_training import PREFIX, fit, history, make_model, measured

from hf_orthossl import (
    OrthogonalityCallback,
    OrthoSSLTrainer,
    OrthoSSLTrainingArguments,
    SpectraCallback,
    SSLConfig,
    SSLModel,
    spectral_report,
)
from hf_orthossl.data import ImageDataset, get_recipe, load_source
from hf_orthossl.encoders.embedding import normalized_batches
from hf_orthossl.hub.encoder_folder import spectra_rows
from hf_orthossl.spectra import weight_spectra
from hf_orthossl.training import pretrain_loop


def tensorboard_scalars(folder):
    """Tag → {step: value} of all event files below a folder, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for path in folder.rglob("events.out.*"):
        events = accumulator.EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


@pytest.fixture(scope="module")
def digits():
    return ImageDataset(load_source("digits"), views=get_recipe("digits"), image_size=32, indices=range(64))


def pretrain(folder, digits, front=None, callbacks=None, **more):
    settings = {"per_device_train_batch_size": 16, "max_steps": 6, "logging_steps": 1, "save_strategy": "no"} | more
    args = OrthoSSLTrainingArguments(str(folder), views="digits", use_cpu=True, disable_tqdm=True, **settings)
    model = make_model()
    if front == "loop":
        pretrain_loop(model, digits, args)
    else:
        OrthoSSLTrainer(model=model, args=args, train_dataset=digits, callbacks=callbacks).train()
    return model


def test_a_plain_trainer_reports_spectra_and_penalty_to_tensorboard(tmp_path):
    callbacks = OrthogonalityCallback(gamma=1e-3), SpectraCallback(every=3)
    trainer = fit(tmp_path, *callbacks, attach=True, report_to=["tensorboard"])
    found = tensorboard_scalars(tmp_path)
    # Due after 3 and 6 steps, and at the end.
    tag = "train/spectra/weights/stages.1.0.weight/effective_rank"
    assert list(found[tag]) == [3, 6, 8]
    assert found[tag][8] == pytest.approx(weight_spectra(trainer.model)["stages.1.0.weight"].effective_rank, rel=1e-6)
    assert len(found["train/orthogonality"]) == 8
    assert {"train/spectra/weights/relative_rank_min", "train/loss"} <= set(found)
    assert not any("head" in tag for tag in found)
    logged = [entry for entry in trainer.state.log_history if "orthogonality" in entry]
    assert logged[-1]["orthogonality"] == pytest.approx(found["train/orthogonality"][8], rel=1e-6)


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_the_rank_of_patch_tokens_over_training(front, digits, tmp_path, monkeypatch):
    """`spectra_images` adds features to the log, those of a report on the trained model, and trains the same."""

    def tiny_transformer():
        torch.manual_seed(0)
        return SSLModel(SSLConfig("vit_tiny_patch16_224", 32, {"patch_size": 8, "embed_dim": 24, "depth": 2}))

    monkeypatch.setitem(globals(), "make_model", tiny_transformer)
    watched = pretrain(tmp_path / "watched", digits, front, spectra_steps=3, spectra_images=40)
    alone = pretrain(tmp_path / "alone", digits, front, spectra_steps=0)
    entries = [entry for entry in history(tmp_path / "watched") if "spectra/features/patch_tokens/rankme" in entry]
    assert [entry["step"] for entry in entries] == [3, 6]
    rows = ImageDataset(
        digits.source, image_size=32, indices=spectra_rows(digits.source.num_rows, 40), unreadable="omit"
    )
    report = spectral_report(watched.encoder, normalized_batches(watched.encoder, rows))
    for layer in ("patch_tokens", "representation"):
        logged = entries[-1][f"spectra/features/{layer}/effective_rank"]
        assert logged == pytest.approx(report.features[layer].effective_rank, rel=1e-6)
    assert report.features["patch_tokens"].num_vectors == 40 * 16
    for name, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


def test_attached_callbacks_come_before_the_integrations_and_only_once(tmp_path):
    first, second = SpectraCallback(every=4), OrthogonalityCallback(gamma=1e-3)
    trainer = fit(tmp_path, first, second, first, attach=True, report_to=["tensorboard"])
    assert trainer.callback_handler.callbacks[:2] == [first, second]
    assert sum(callback is first for callback in trainer.callback_handler.callbacks) == 1


def test_values_that_are_not_reported_are_named_in_a_warning(tmp_path, caplog, monkeypatch):
    """They are in the trainer's own log all the same."""
    monkeypatch.setattr("hf_orthossl.messages._warned", set())
    trainer = fit(tmp_path, OrthogonalityCallback(gamma=1e-3), report_to=["tensorboard"])
    assert any("orthogonality" in entry for entry in trainer.state.log_history)
    told = [record.getMessage() for record in caplog.records if "not reported to" in record.getMessage()]
    assert len(told) == 1
    assert "not reported to tensorboard: call callback.attach(trainer)" in told[0]


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_both_fronts_report_to_tensorboard_and_history(front, digits, tmp_path):
    model = pretrain(tmp_path, digits, front, report_to=["tensorboard"], spectra_steps=4)
    found = {tag.removeprefix("train/"): values for tag, values in tensorboard_scalars(tmp_path).items()}
    name = "layer4.0.conv2.weight"
    tag = f"spectra/weights/{name}/effective_rank"
    entries = history(tmp_path)
    assert list(found[tag]) == measured(entries) == [4, 6]
    rank = weight_spectra(model.encoder)[name].effective_rank
    entry = next(entry for entry in entries if entry["step"] == 6)
    assert entry[tag] == pytest.approx(found[tag][6], rel=1e-6) == pytest.approx(rank, rel=1e-6)
    assert sum(key.endswith(".weight/effective_rank") for key in entry) == 4


def test_both_fronts_measure_the_same(digits, tmp_path):
    for front in ("trainer", "loop"):
        pretrain(tmp_path / front, digits, front)
    one, other = (
        [{k: v for k, v in entry.items() if k.startswith(PREFIX)} for entry in history(tmp_path / front)[:6]]
        for front in ("trainer", "loop")
    )
    assert all(entry == pytest.approx(same, rel=1e-5) for entry, same in zip(one, other, strict=True))
    assert all(one)  # a tenth of six steps is every step


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_a_resumed_run_measures_at_the_same_steps(front, digits, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 2, "spectra_steps": 3, "max_steps": 12}
    pretrain(tmp_path / "whole", digits, front, **settings)
    for more in ({"max_steps": 4}, {"resume": True}):
        constant = {"lr_scheduler_type": "constant", "warmup_steps": 0}
        pretrain(tmp_path / "parts", digits, front, **settings | constant | more)
    # Due after 3, 6, 9, 12 steps: with the first log entry from there on.
    assert measured(history(tmp_path / "whole")) == [4, 6, 10, 12]
    assert measured(history(tmp_path / "parts")) == [4, 6, 10, 12]


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_weights_are_the_same_with_and_without_it(front, digits, tmp_path):
    watched = pretrain(tmp_path / "a", digits, front, spectra_steps=1)
    alone = pretrain(tmp_path / "b", digits, front, spectra_steps=0)
    assert not measured(history(tmp_path / "b"))
    for name, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


def test_own_callback_replaces_the_trainers(digits, tmp_path):
    own = SpectraCallback(every=2, include=["*layer3*conv1*"])
    pretrain(tmp_path, digits, callbacks=[own])
    entry = next(entry for entry in history(tmp_path) if measured([entry]))
    assert entry["step"] == 2
    assert [key for key in entry if key.endswith(".weight/effective_rank")] == [
        "spectra/weights/layer3.0.conv1.weight/effective_rank"
    ]
