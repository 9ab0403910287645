"""Online probes: training is bit for bit what it is without them, and their scalars reach history and TensorBoard."""

import logging

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PIL
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel, load_encoder
from hf_orthossl.data import ImageDataset, get_recipe, load_source
from hf_orthossl.evaluation import KNNMonitor, knn_accuracy
from hf_orthossl.training import KNNCallback, LinearProbeCallback, pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history

PROBES = ("knn/top1", "knn/top5", "linear_probe/top1", "linear_probe/top5")


@pytest.fixture(scope="module")
def source():
    return load_source("digits", split="train[:160]")


def pretrain(folder, source, front="trainer", **more):
    settings = {"per_device_train_batch_size": 16, "max_steps": 4, "logging_steps": 1, "save_strategy": "no"} | more
    args = OrthoSSLTrainingArguments(
        str(folder), views="digits", use_cpu=True, disable_tqdm=True, spectra_steps=0, **settings
    )
    torch.manual_seed(0)
    model = SSLModel(SSLConfig("resnet10t", image_size=32, backbone_config={"channels": [8, 8, 16, 16]}))
    dataset = ImageDataset(source, views=get_recipe("digits"), image_size=32)
    if front == "loop":
        pretrain_loop(model, dataset, args)
    else:
        OrthoSSLTrainer(model=model, args=args, train_dataset=dataset).train()
    return model


def history(folder):
    return read_history(folder)


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_weights_are_the_same_with_and_without_probes(front, source, tmp_path):
    watched = pretrain(tmp_path / "a", source, front, knn_steps=1, linear_probe_steps=2)
    alone = pretrain(tmp_path / "b", source, front)
    for name, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name
    assert watched.training
    entries = history(tmp_path / "a")
    assert [entry["step"] for entry in entries if "knn/top1" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in entries if "linear_probe/top5" in entry] == [2, 4]
    assert not any(name in entry for entry in history(tmp_path / "b") for name in PROBES)
    # The last entry is of the weights as they are now: the same probes by hand give the same numbers.
    monitor = KNNMonitor(source, None, 32, seed=42, progress=False)
    bank, queries = monitor.features(watched.encoder)
    last = next(entry for entry in entries if entry["step"] == 4)
    assert last["knn/top1"] == pytest.approx(knn_accuracy(bank, queries, k=20, temperature=0.07)["top1"])
    # scikit-learn on standardized features; its C is 1/(λN).
    oracle = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (1e-3 * len(bank.labels)), tol=1e-8, max_iter=5000)
    )
    oracle.fit(bank.representations.double().numpy(), bank.labels)
    right = oracle.score(queries.representations.double().numpy(), queries.labels)
    assert abs(last["linear_probe/top1"] - right) < 1.5 / len(queries.labels)


def test_they_reach_tensorboard(source, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pretrain(tmp_path, source, knn_steps=0.5, report_to=["tensorboard"])
    (path,) = tmp_path.rglob("events.out.*")
    events = accumulator.EventAccumulator(str(path)).Reload()
    assert [event.step for event in events.Scalars("train/knn/top1")] == [2, 4]


def labelled(names, labels, size=16):
    rng = np.random.default_rng(len(labels))
    shade = {"dark": 40, "grey": 130, "light": 220}
    pixels = [np.clip(shade[names[i]] + rng.normal(0, 5, (size, size, 3)), 0, 255).astype("uint8") for i in labels]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    rows = {"image": [PIL.fromarray(array) for array in pixels], "label": labels}
    return load_source(Dataset.from_dict(rows, features=features))


class Shade(nn.Module):
    """An encoder in which one module is frozen in evaluation mode; its representation is the mean colour."""

    mean, std = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3).eval(), nn.Dropout(0.9)

    def forward(self, images):
        colours = self.drop(self.norm(images)).mean((2, 3))
        return torch.cat([colours, torch.ones_like(colours)], dim=1)


def test_classes_are_matched_by_name_and_modes_and_generators_are_left_alone():
    train, test = labelled(["dark", "grey", "light"], [0, 1, 2] * 8), labelled(["light", "dark", "grey"], [0, 1, 2] * 4)
    monitor = KNNMonitor(train, test, 16, k=3, progress=False)
    encoder = Shade()
    encoder.drop.train()
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in encoder.state_dict().items()}
    for kind in (KNNCallback, LinearProbeCallback):
        callback = kind(monitor, every=1)
        callback.begin(encoder)
        assert set(callback.measure(1, 10).values()) == {1.0}
        assert callback.measure(1, 10) == {}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert (encoder.norm.training, encoder.drop.training, encoder.training) == (False, True, True)


def test_a_resumed_run_goes_on_where_it_was_and_a_diverged_one_is_told(caplog):
    monitor = KNNMonitor(labelled(["dark", "light"], [0, 1] * 8), None, 16, k=3, progress=False)
    encoder = Shade()
    callback = LinearProbeCallback(monitor, every=4)
    callback.begin(encoder, [{"step": 4, "linear_probe/top1": 0.5}, {"step": 7, "loss": 1.0}])
    assert callback.measure(7, 100) == {}
    assert callback.measure(8, 100)
    encoder.norm.weight.data.fill_(float("nan"))
    with caplog.at_level(logging.WARNING):
        assert callback.measure(12, 100) == {}
    assert "linear_probe/top1 at step 12 cannot be measured" in caplog.text
    off = KNNCallback(monitor, every=0)
    off.begin(encoder)
    assert off.measure(1, 1) == {}


def test_without_labels_there_is_nothing_to_probe(tmp_path):
    source = labelled(["dark", "light"], [0, 1] * 8, size=32)
    source.label_column = None
    with pytest.raises(ValueError, match="linear_probe_steps is 2, but the data have no labels"):
        pretrain(tmp_path, source, linear_probe_steps=2)


@pytest.mark.parametrize("name", ["knn_steps", "linear_probe_steps"])
def test_bad_intervals_are_named_as_given(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is 1.5"):
        OrthoSSLTrainingArguments(str(tmp_path), use_cpu=True, **{name: 1.5})
    with pytest.raises(ValueError, match="penalty is -1"):
        LinearProbeCallback(None, penalty=-1)


def test_it_watches_any_trainers_model():
    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    monitor = KNNMonitor(labelled(["dark", "light"], [0, 1] * 8), None, 32, k=3, progress=False)
    callback = KNNCallback(monitor, every=1, encoder=encoder)
    callback.begin(nn.Linear(2, 2))
    assert 0 <= callback.measure(1, 1)["knn/top1"] <= 1
