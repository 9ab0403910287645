"""Spectra while training: they reach TensorBoard, warn of a collapse, and leave training as it is."""

import json
import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

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
from hf_orthossl.spectra import weight_spectra
from hf_orthossl.training import pretrain_loop

PREFIX = "spectra/"


class Classifier(nn.Module):
    """A model of the kind a plain Trainer takes, with dropout, batch statistics and a spectral norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3)),
        )
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 2))

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.stages(pixel_values))
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def fit(folder, *callbacks, model=None, **more):
    data = [{"pixel_values": image, "labels": index % 2} for index, image in enumerate(IMAGES)]
    settings = {"max_steps": 8, "logging_steps": 1, "learning_rate": 0.05, "optim": "sgd"} | more
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, save_strategy="no", **settings
    )
    trainer = Trainer(model or Classifier(), args, train_dataset=data, callbacks=list(callbacks))
    trainer.train()
    return trainer


def tensorboard_scalars(folder):
    """Tag → {step: value} of all event files below a folder, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for path in folder.rglob("events.out.*"):
        events = accumulator.EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


def measured(entries):
    return [entry["step"] for entry in entries if any(name.startswith(PREFIX) for name in entry)]


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def digits():
    return ImageDataset(load_source("digits"), views=get_recipe("digits"), image_size=32, indices=range(64))


def make_model():
    torch.manual_seed(0)
    config = SSLConfig("resnet10t", image_size=32, backbone_config={"channels": [8, 8, 16, 16]}, regularizer="srip")
    return SSLModel(config)


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
    trainer = fit(tmp_path, OrthogonalityCallback(gamma=1e-3), SpectraCallback(every=3), report_to=["tensorboard"])
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


def test_a_callback_added_later_reports_too(tmp_path):
    class Late(OrthogonalityCallback):
        pass

    class Adder(SpectraCallback):
        """Puts another one into the trainer while it is being called itself."""

        begun = 0

        def on_train_begin(self, *args, **kwargs):
            self.begun += 1
            super().on_train_begin(*args, **kwargs)

    first, second = Adder(every=4), Late(gamma=1e-3)
    trainer = fit(tmp_path, first, second, report_to=["tensorboard"])
    assert first.begun == 1
    assert trainer.callback_handler.callbacks[:2] == [second, first]
    found = tensorboard_scalars(tmp_path)
    assert {"train/orthogonality", "train/spectra/weights/relative_rank_mean"} <= set(found)


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_both_fronts_report_to_tensorboard_and_history(front, digits, tmp_path):
    model = pretrain(tmp_path, digits, front, report_to=["tensorboard"], spectra_steps=4)
    found = {tag.removeprefix("train/"): values for tag, values in tensorboard_scalars(tmp_path).items()}
    name = "backbone.layer4.0.conv2.weight"
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


def test_features_of_a_loader_are_measured_and_nothing_random_is_drawn(tmp_path):
    loader = DataLoader(TensorDataset(IMAGES), batch_size=16, shuffle=True)
    watching = SpectraCallback(every=2, images=loader, layers=["stages.0", "representation"], include="*")
    watched, alone = fit(tmp_path / "a", watching), fit(tmp_path / "b")
    for name, value in watched.model.state_dict().items():
        assert torch.equal(value, alone.model.state_dict()[name]), name
    assert watched.model.head.training
    entry = watched.state.log_history[7]
    oracle = spectral_report(watched.model, IMAGES, layers=["stages.0"])
    assert entry["step"] == 8
    assert entry["spectra/features/stages.0/effective_rank"] == pytest.approx(
        oracle.features["stages.0"].effective_rank, rel=1e-5
    )
    assert "spectra/features/representation/rankme" in entry
    assert "spectra/weights/head.weight/effective_rank" in entry
    losses = [[e["loss"] for e in trainer.state.log_history if "loss" in e] for trainer in (watched, alone)]
    assert losses[0] == losses[1]


def test_a_collapse_is_told_once_per_layer_until_it_recovers(caplog):
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 20))
    callback = SpectraCallback(every=1, threshold=0.3)
    callback.begin(model)
    healthy = model[1].weight.detach().clone()

    def told(step):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            callback.measure(step, 100)
        return [record.getMessage() for record in caplog.records]

    assert told(1) == []
    with torch.no_grad():
        model[1].weight.copy_(torch.outer(torch.ones(20), torch.ones(20)))
    (message,) = told(2)
    # The model is no SSLModel with a penalty whose weight could be raised.
    fact = "spectra at step 2: 1 uses 1 of its 20 directions (effective rank 1.0), below the threshold of 30 %"
    assert message == fact
    assert told(3) == []
    with torch.no_grad():
        model[1].weight.copy_(healthy)
    assert told(4) == []
    with torch.no_grad():
        model[1].weight.zero_().fill_diagonal_(1e-9)[0, 0] = 1
    assert len(told(5)) == 1


def test_few_images_cap_the_rank_without_a_warning(caplog):
    """Nine images span eight directions of 64; using all eight is no collapse."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64))
    callback = SpectraCallback(every=1, threshold=0.5, images=IMAGES[:9])
    callback.begin(model)
    with caplog.at_level(logging.WARNING):
        scalars = callback.measure(1, 1)
    assert scalars["spectra/features/representation/effective_rank"] < 8
    assert not caplog.records


def test_weights_that_are_not_finite_do_not_end_the_run(caplog):
    model = nn.Sequential(nn.Linear(4, 4))
    callback = SpectraCallback(every=1)
    callback.begin(model)
    model[0].weight.data[0, 0] = float("nan")
    with caplog.at_level(logging.WARNING):
        assert callback.measure(1, 1) == {}
    assert "cannot be measured: weight '0.weight'" in caplog.text


def test_without_stages_a_handful_of_matrices_is_measured():
    model = nn.ModuleDict({f"part{chr(97 + i)}": nn.Linear(3, 3) for i in range(20)})
    callback = SpectraCallback(every=1)
    callback.begin(model)
    names = [name for name in callback.measure(1, 1) if name.endswith("weight/effective_rank")]
    assert names == [f"spectra/weights/part{letter}.weight/effective_rank" for letter in "ejot"]


def test_own_callback_replaces_the_trainers(digits, tmp_path):
    own = SpectraCallback(every=2, include=["*layer3*conv1*"])
    pretrain(tmp_path, digits, callbacks=[own])
    entry = next(entry for entry in history(tmp_path) if measured([entry]))
    assert entry["step"] == 2
    assert [key for key in entry if key.endswith(".weight/effective_rank")] == [
        "spectra/weights/backbone.layer3.0.conv1.weight/effective_rank"
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": -1}, "every is -1: it must be a whole number of steps, a share below 1, or 0 for none"),
        ({"every": 1.5}, "every is 1.5"),
        ({"every": float("nan")}, "every is nan"),
        ({"every": float("inf")}, "every is inf"),
        ({"threshold": 1.0}, r"threshold is 1.0: it must lie in \[0, 1\)"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"layers": ["representation"]}, "layers need images"),
        ({"name": "spectra/head"}, "name is 'spectra/head': it must be a word without '/'"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        SpectraCallback(**settings)


@pytest.mark.parametrize("name", ["spectra_steps", "spectra_threshold"])
def test_bad_arguments_are_named_as_given(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is 1.5"):
        OrthoSSLTrainingArguments(str(tmp_path), use_cpu=True, **{name: 1.5})


def test_patterns_that_match_nothing_are_refused_when_training_begins(tmp_path):
    with pytest.raises(ValueError, match="include pattern 'layer9' matches none"):
        fit(tmp_path, SpectraCallback(include="layer9"))


class NeedsLabels(Classifier):
    def forward(self, pixel_values, labels):
        return super().forward(pixel_values, labels)


def test_features_that_cannot_be_measured_do_not_end_the_run(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_orthossl"):
        trainer = fit(tmp_path, SpectraCallback(every=1, images=IMAGES, threshold=0), model=NeedsLabels())
    told = [record.getMessage() for record in caplog.records if "cannot be measured" in record.getMessage()]
    assert [message.partition(" cannot")[0] for message in told] == [
        f"spectra of features at step {i}" for i in (1, 2, 3)
    ]
    assert "TypeError" in told[0]
    assert "labels" in told[0]
    assert told[-1].endswith("after 3 failures they are measured no more")
    # Weights are measured all the same.
    assert measured(trainer.state.log_history) == list(range(1, 9))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": 5}, "images is a int: pass normalized images"),
        ({"images": iter([IMAGES])}, "that can be read again and again"),
        ({"images": IMAGES[0]}, r"images are torch.float32 of shape \(3, 8, 8\): pass at least 2"),
        ({"images": IMAGES, "layers": ["stages.9"]}, "no layer 'stages.9'; did you mean stages"),
        ({"images": IMAGES, "layers": ["embedding"]}, "needs the projector"),
    ],
)
def test_images_and_layers_are_checked_when_training_begins(settings, said):
    with pytest.raises(ValueError, match=said):
        SpectraCallback(**settings).begin(Classifier())


def test_advice_on_gamma_is_for_the_encoder_of_a_penalized_model(caplog):
    model, alone = make_model(), make_model()
    alone.regularizer = None
    for watched, expected in ((model, True), (alone, False)):
        callback = SpectraCallback(every=1, threshold=0.999)
        callback.begin(watched)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            callback.measure(1, 1)
        assert caplog.records
        assert all(("raise gamma" in record.getMessage()) == expected for record in caplog.records)
        assert "below the threshold of 99.9 %" in caplog.text


def test_two_callbacks_have_scalars_of_their_own(tmp_path):
    model = Classifier()
    both = SpectraCallback(every=4), SpectraCallback(every=8, module=model.head, include="*", name="head")
    entries = fit(tmp_path, *both, model=model).state.log_history
    by_name = {
        name: [e["step"] for e in entries if f"{name}/weights/relative_rank_min" in e] for name in ("spectra", "head")
    }
    assert by_name == {"spectra": [4, 8], "head": [8]}
    resumed = SpectraCallback(every=4, name="head")
    resumed.begin(model, entries[:4])
    assert resumed.measured == 0
