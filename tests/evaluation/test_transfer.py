"""The transfer suite: standard sets as data, one table, resumed set by set, and one failure does not stop the rest."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PIL

from hf_orthossl.evaluation import FeatureCache, read_results, transfer_sets, transfer_suite, transfer_table
from hf_orthossl.evaluation.transfer import TransferSet, with_earlier

STANDARD = ["cifar10", "cifar100", "food101", "flowers102", "dtd", "gtsrb"]
QUICK = {"protocol": "lbfgs", "penalty": 1e-3}


class Colours(torch.nn.Module):
    """An encoder whose representation is the picture's mean colour."""

    channels = 3
    image_size, mean, std = 8, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.images = 0

    def forward(self, batch):
        self.images += len(batch)
        return torch.cat([batch.mean((2, 3)) * self.scale, batch.new_ones(len(batch), 1)], dim=1)


def save(folder, *, label="label", test="test", spread=10, classes=3):
    """A data set on disk whose last class is rare and hard."""
    rng = np.random.default_rng(0)
    features = Features({"picture": Image(), label: ClassLabel(names=[f"c{i}" for i in range(classes)])})
    splits = {}
    for split, counts in (("train", [12] * classes), (test, [20] * (classes - 1) + [4])):
        labels = np.repeat(np.arange(classes), counts)
        pixels = [np.clip(60 + 40 * c + rng.normal(0, spread, (8, 8, 3)), 0, 255).astype("uint8") for c in labels]
        rows = {"picture": [PIL.fromarray(array) for array in pixels], label: labels.tolist()}
        splits[split] = Dataset.from_dict(rows, features=features)
    DatasetDict(splits).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("transfer")
    save(root / "cifar10")
    save(root / "flowers102", label="fine_label", test="validation")
    return root


def test_the_papers_six_sets_are_listed_with_their_standard_splits():
    sets = {entry.name: entry for entry in transfer_sets()}
    assert list(sets) == STANDARD
    assert {name: entry.num_classes for name, entry in sets.items()} == {
        "cifar10": 10, "cifar100": 100, "food101": 101, "flowers102": 102, "dtd": 47, "gtsrb": 43,
    }  # fmt: skip
    assert [name for name, entry in sets.items() if entry.metric == "mean_per_class"] == ["flowers102"]
    assert all(entry.dataset.count("/") == 1 and entry.verified in ("canonical", "mirror") for entry in sets.values())
    assert sets["cifar100"].label_column == "fine_label"
    assert sets["food101"].test_split == "validation"


def test_each_set_has_its_own_metric_and_says_that_a_folder_was_read(folder):
    outcome = transfer_suite(Colours(), transfer_sets(["cifar10", "flowers102"], folder), model="colours", **QUICK)
    assert outcome.failures == {}
    assert [(r.task, r.metric, r.protocol["set"]) for r in outcome.results] == [
        ("transfer", "top1", "cifar10"),
        ("transfer", "mean_per_class", "flowers102"),
    ]
    for result in outcome.results:
        per_class = result.protocol["per_class"]
        counts = {"c0": 20, "c1": 20, "c2": 4}
        weighted = sum(per_class[name] * counts[name] for name in counts) / 44
        expected = weighted if result.metric == "top1" else sum(per_class.values()) / 3
        assert result.value == pytest.approx(expected)
    assert any(note.startswith("cifar10: read from the folder") for note in outcome.notes)
    assert "cifar10: 3 classes, while the standard set has 10." in outcome.notes
    table = transfer_table(outcome.results)
    assert "flowers102 (mean per class)" in table.splitlines()[0]
    assert table.splitlines()[2].startswith("colours")


def test_finished_sets_are_not_measured_again_and_a_failure_is_told(folder, tmp_path):
    file, encoder = tmp_path / "results.json", Colours()
    broken = TransferSet("gone", str(folder / "gone"))
    sets = [*transfer_sets(["cifar10"], folder), broken, *transfer_sets(["flowers102"], folder)]
    said = []
    first = transfer_suite(encoder, sets, results_file=file, say=said.append, **QUICK)
    assert list(first.failures) == ["gone"]
    assert "no such file or folder" in first.failures["gone"]
    assert "failed" in transfer_table(first.results, {("", "gone"): "x"})
    assert read_results(file) == first.results
    assert ["failed" in line for line in said] == [False, True, False]

    seen = encoder.images
    save(folder / "gone")
    second = transfer_suite(encoder, sets, results_file=file, **QUICK)
    # One image decides whether it is the same encoder; the other sets' 80 images each were not looked at.
    assert encoder.images == seen + 1 + 80
    assert not second.failures
    assert [r for r in second.results if r.protocol["set"] != "gone"] == first.results
    assert set(second.notes) >= set(first.notes)
    assert read_results(file) == second.results


def test_other_settings_or_other_weights_are_another_measurement(folder, tmp_path):
    file, encoder, sets = tmp_path / "results.json", Colours(), transfer_sets(["cifar10"], folder)
    transfer_suite(encoder, sets, results_file=file, **QUICK)
    transfer_suite(encoder, sets, results_file=file, **QUICK | {"penalty": 1e-2})
    with torch.no_grad():
        encoder.scale.mul_(2)
    last = transfer_suite(encoder, sets, results_file=file, **QUICK)
    results = read_results(file)
    assert len(results) == len({result.protocol["run"] for result in results}) == 3
    # What another task writes into the same file leaves them in it.
    other = dataclasses.replace(last.results[0], task="knn", protocol={})
    assert len(with_earlier(file, [other])) == 4
    assert with_earlier(file, last.results)[0] == last.results[0]
    assert len(with_earlier(file, last.results)) == 3


def test_knn_beside_the_linear_probe_and_several_seeds(folder, tmp_path):
    cache = FeatureCache(tmp_path / "features")
    outcome = transfer_suite(
        Colours(),
        transfer_sets(["cifar10"], folder),
        cache=cache,
        probes=("linear", "knn"),
        seeds=(0, 1),
        epochs=2,
        k=5,
    )
    assert [r.protocol["probe"] for r in outcome.results] == ["linear", "linear", "knn"]
    assert outcome.results[2].protocol["k"] == 5
    assert len(list((tmp_path / "features").iterdir())) == 2
    table = transfer_table(outcome.results).splitlines()
    assert "(2 seeds)" in table[2]
    assert table[3].split()[0] == "knn,"


def test_sets_of_the_users_own(folder):
    own = transfer_sets([str(folder / "cifar10"), "someone/pictures", "digits"])
    assert [entry.dataset for entry in own] == [str(folder / "cifar10"), "someone/pictures", "digits"]
    outcome = transfer_suite(Colours(), own[:1], **QUICK)
    assert outcome.results[0].value > 0.5
    assert json.loads(json.dumps(outcome.results[0].to_dict()))["set"] == str(folder / "cifar10")


def test_a_misspelt_set_and_a_missing_folder():
    with pytest.raises(ValueError, match=r"'cifar11' is unknown, and neither .*: did you mean 'cifar10'"):
        transfer_sets(["cifar11"])
    with pytest.raises(FileNotFoundError, match="transfer_data /no/where"):
        transfer_sets(folder="/no/where")
    with pytest.raises(ValueError, match="probe 'lineer' is unknown"):
        transfer_suite(Colours(), [], probes=["lineer"])
