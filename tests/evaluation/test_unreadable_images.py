"""What cannot be read is left out of every measurement, counted and named, and never replaced by a stand-in."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_orthossl import load_encoder, load_source, pretrain
from hf_orthossl.cli import main
from hf_orthossl.data import TooManyUnreadable
from hf_orthossl.evaluation import (
    FeatureCache,
    FineTuningArguments,
    KNNMonitor,
    LabelledFeatures,
    finetune_encoder,
    knn_results,
    labelled_splits,
    read_results,
    transfer_sets,
    transfer_suite,
)
from hf_orthossl.evaluation import features as features_module

SIZE = 16


class Colours(torch.nn.Module):
    """An encoder whose representation is the picture's mean colour."""

    channels = 3
    image_size, mean, std = SIZE, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return torch.cat([batch.mean((2, 3)) * self.scale, batch.new_ones(len(batch), 1)], dim=1)


def write(folder, count=12, seed=0):
    """Class folders "dark" and "light" in train and test."""
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name, shade in (("dark", 60), ("light", 190)):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = np.clip(shade + rng.normal(0, 20, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number:02d}.png")
    return folder


def damage(folder, *paths):
    for path in paths:
        (folder / path).write_bytes(b"")


DAMAGED = ("train/dark/03.png", "test/dark/00.png", "test/light/05.png")


@pytest.fixture
def damaged(tmp_path):
    damage(write(tmp_path / "damaged"), *DAMAGED)
    return tmp_path / "damaged"


def extract(folder, cache=None, encoder=None, shared=False, **reading):
    return LabelledFeatures.extract(
        encoder or Colours(), *labelled_splits(str(folder), **reading), cache, batch_size=5, shared=shared
    )


def test_features_are_those_of_the_data_without_the_damaged_files(damaged, tmp_path):
    features = extract(damaged)
    without = write(tmp_path / "without")
    for path in DAMAGED:
        (without / path).unlink()
    expected = extract(without)
    for name in ("train", "train_labels", "test", "test_labels"):
        assert torch.equal(getattr(features, name), getattr(expected, name))
    assert features.notes == [
        f"23 of 24 images of train were used: 1 cannot be read and was left out ({damaged / DAMAGED[0]}).",
        f"22 of 24 images of test were used: 2 cannot be read and were left out ({damaged / DAMAGED[1]}, "
        f"{damaged / DAMAGED[2]}).",
    ]
    for result, other in zip(knn_results(features, k=3), knn_results(expected, k=3), strict=True):
        assert result.value == other.value
        counts = {"unreadable_train_images": 1, "unreadable_test_images": 2}
        assert result.protocol == other.protocol | counts
        assert (result.protocol["train_images"], result.protocol["test_images"]) == (23, 22)


def test_the_cache_keeps_what_was_left_out(damaged, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path / "cache")
    first = extract(damaged, cache)
    monkeypatch.setattr(features_module, "extract_features", None)
    again = extract(damaged, cache)
    assert (again.notes, again.about) == (first.notes, first.about)
    assert torch.equal(again.test, first.test)
    with pytest.raises(TooManyUnreadable, match="2 of 24 images cannot be read, more than the 1 allowed"):
        extract(damaged, cache, max_unreadable=1)


def shared_features(folder):
    features = extract(folder, shared=True)
    return features.test, features.notes, features.about


def test_several_processes_leave_out_the_same(damaged, two_processes):
    alone = extract(damaged)
    for test, notes, about in two_processes.run(shared_features, damaged):
        torch.testing.assert_close(test, alone.test)
        assert (notes, about) == (alone.notes, alone.about)


def test_a_class_that_is_gone_is_named_and_a_result_says_what_it_is_of(tmp_path):
    folder = write(tmp_path)
    damage(folder, *(f"test/dark/{number:02d}.png" for number in range(12)))
    with pytest.raises(
        TooManyUnreadable, match=r"12 of 24 .* more than the 5 allowed.*00\.png .*04\.png .* and 7 more"
    ):
        extract(folder)
    features = extract(folder, max_unreadable=0.5)
    assert features.notes[0].startswith("12 of 24 images of test were used: 12 cannot be read and were left out")
    assert features.notes[1] == "Of class dark, no image of test can be read."
    assert len(features.test) == 12
    assert knn_results(features, k=1)[0].protocol["per_class"].keys() == {"light"}


def test_the_command_says_it_and_stops_above_the_limit(damaged, tmp_path, capsys):
    arguments = ["evaluate", "resnet10t", "--untrained", "--task", "knn", "--k", "3", "--dataset", str(damaged)]
    arguments += ["--image_size", "16", "--cache", "none", "--output_dir", str(tmp_path / "out")]
    main(arguments)
    assert "Note: 22 of 24 images of test were used: 2 cannot be read" in capsys.readouterr().out
    assert read_results(tmp_path / "out" / "results.json")[0].protocol["unreadable_test_images"] == 2
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--max_unreadable", "0"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 of 24 images cannot be read, more than the 0 allowed" in error
    assert "train/dark/03.png (the file is empty)" in error
    assert "--max_unreadable" in error


def test_the_monitor_of_a_run(damaged, caplog):
    train, test = labelled_splits(str(damaged))
    monitor = KNNMonitor(train, test, image_size=SIZE, images=48, k=3, progress=False)
    for _ in range(2):
        (top1, _) = monitor.measure(Colours(), "end")
    assert (top1.protocol["bank"], top1.protocol["queries"]) == (23, 22)
    assert (top1.protocol["unreadable_train_images"], top1.protocol["unreadable_test_images"]) == (1, 2)
    assert [message.split(":")[0] for message in caplog.messages] == ["kNN", "kNN"]


def test_fine_tuning_scores_no_stand_in(damaged, tmp_path):
    torch.manual_seed(0)
    encoder = load_encoder("resnet10t", image_size=SIZE, channels=[4, 4, 8, 8])
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "validation_share": 0.3, "report_to": []}
    args = FineTuningArguments(str(tmp_path / "tuned"), use_cpu=True, disable_tqdm=True, **settings)
    tuned = finetune_encoder(encoder, *labelled_splits(str(damaged)), args)
    protocol = tuned.results[0].protocol
    assert protocol["test_images"] == 22
    assert protocol["train_images"] + protocol["validation_images"] == 23
    assert (protocol["unreadable_train_images"], protocol["unreadable_test_images"]) == (1, 2)
    assert [note.split(":")[0] for note in tuned.notes] == [
        "23 of 24 images of train were used",
        "22 of 24 images of test were used",
    ]


def test_spectra_and_forecast(damaged, tmp_path, capsys):
    arguments = ["--dataset", str(damaged), "--output_dir", str(tmp_path / "out"), "--image_size", "16"]
    main(["spectra", "resnet10t", "--untrained", *arguments, "--views", "cifar-simclr"])
    report = json.loads((tmp_path / "out" / "spectra.json").read_text())
    assert report["metadata"]["num_images"] == 22
    assert any(note.startswith("22 of 24 images of test were used: 2 cannot be read") for note in report["notes"])
    main(["forecast", *arguments])
    assert "23 of 24 images of train were used" in json.dumps(
        json.loads((tmp_path / "out" / "forecast.json").read_text())
    )
    capsys.readouterr()
    for command in (["spectra", "resnet10t", "--untrained"], ["forecast"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *arguments, "--max_unreadable", "0"])
        assert stopped.value.code == 2
        assert "cannot be read, more than the 0 allowed" in capsys.readouterr().err.strip().splitlines()[-1]


def test_training_keeps_its_batches_and_records_what_it_left_out(damaged, tmp_path, capsys):
    options = {"backbone": "resnet10t", "backbone_config": {"channels": [4, 4, 8, 8]}, "regularizer": "none"}
    options |= {"max_steps": 3, "per_device_train_batch_size": 24, "use_cpu": True, "report_to": "none"}
    options |= {"image_size": SIZE, "spectra_steps": 0}
    run = pretrain(damaged, output_dir=tmp_path / "run", **options)
    assert f"images   1 unreadable, left out: {tmp_path / 'run' / 'unreadable_images.txt'}" in capsys.readouterr().out
    config = json.loads((run.encoder / "config.json").read_text())
    assert config["orthossl"]["training"]["unreadable_images"] == 1
    assert run.results[-1].protocol["unreadable_test_images"] == 2
    assert "1 further images cannot be read and were left out." in (run.encoder / "spectra.json").read_text()
    with pytest.raises(TooManyUnreadable):
        pretrain(damaged, output_dir=tmp_path / "other", max_unreadable=0, **options)


def test_transfer_measures_replaced_images_again(tmp_path):
    folder, file, encoder = write(tmp_path / "sets" / "cifar10"), tmp_path / "results.json", Colours()
    sets = transfer_sets(["cifar10"], tmp_path / "sets")
    lines = []
    for _ in range(2):
        transfer_suite(encoder, sets, results_file=file, say=lines.append, probes=["knn"], k=3)
    write(folder, seed=1)
    transfer_suite(encoder, sets, results_file=file, say=lines.append, probes=["knn"], k=3)
    assert ["read from" in line for line in lines] == [False, True, False]
    assert load_source(str(folder)).fingerprint is not None
