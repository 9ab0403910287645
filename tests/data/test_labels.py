"""Labels of any kind: every integer and every text is a class, missing ones are left out, and the rest is refused."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_orthossl.data import ImageDataset, load_source
from hf_orthossl.evaluation import KNNMonitor, LabelledFeatures, knn_results, labelled_splits
from hf_orthossl.evaluation.labels import row_labels


def rows(labels, kind, shades=None):
    shades = [50 * (number % 2) + 100 for number in range(len(labels))] if shades is None else shades
    images = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in shades]
    data = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    if getattr(kind, "dtype", None) == "uint64":  # which `datasets` does not take as a list
        return data.add_column("label", np.array(labels, np.uint64))
    column = datasets.Dataset.from_dict({"label": labels}, features=datasets.Features({"label": kind}))
    return datasets.concatenate_datasets([data, column], axis=1)


def value(dtype):
    return datasets.Value(dtype)


NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "kind", "names", "indices"),
    [
        ([2**62, 7, 2**62, None], value("int64"), ["7", str(2**62)], [1, 0, 1, -1]),
        ([2**64 - 1, 2**63, 0], value("uint64"), ["0", str(2**63), str(2**64 - 1)], [2, 1, 0]),
        ([-5, 3, -1, -(2**63)], value("int64"), [str(-(2**63)), "-5", "3"], [1, 2, -1, 0]),
        ([0, 4, 1], value("int32"), None, [0, 4, 1]),
        ([True, False, None], value("bool"), None, [1, 0, -1]),
        ([1.0, NAN, 0.0, -1.0, None], value("float64"), None, [1, -1, 0, -1, -1]),
        ([1e18, 2.0], value("float32"), ["2", str(int(np.float32(1e18)))], [1, 0]),
        (["b", None, "a", "-1"], value("string"), ["-1", "a", "b"], [2, -1, 1, 0]),
        ([1, -1, 0], datasets.ClassLabel(names=["no", "yes"]), ["no", "yes"], [1, -1, 0]),
    ],
)
def test_labels_of_any_kind_are_classes(labels, kind, names, indices):
    source = load_source(rows(labels, kind))
    assert source.label_column == "label"
    assert source.class_names == names
    assert row_labels(source).tolist() == indices
    assert [item["labels"] for item in ImageDataset(source).__getitems__(range(len(labels)))] == indices


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0.5, 1.0], value("float64"), "label_column 'label' of data set given holds 0.5: pass a column of whole"),
        ([[1, 2]], datasets.List(value("int64")), "label_column 'label' of data set given contains .*integers or text"),
        ([b"a"], value("binary"), "label_column 'label' of data set given contains .*integers or text"),
    ],
)
def test_other_labels_are_refused_by_column_and_value(labels, kind, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_source(rows(labels, kind), label_column="label")
    assert "\n" not in str(caught.value)
    assert load_source(rows(labels, kind)).label_column is None


def test_an_index_without_a_name_is_refused():
    data = rows([0, 1, 2], value("int64"))
    # As files written by other tools may have it.
    data.info.features["label"] = datasets.ClassLabel(names=["a", "b"])
    with pytest.raises(ValueError, match=r"label_column 'label' holds 2, but has names of 2 classes \(0 to 1\)"):
        load_source(data)


class Shade(torch.nn.Module):
    image_size, mean, std = 8, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return torch.cat([batch.mean((1, 2, 3))[:, None] * self.scale, batch.new_ones(len(batch), 1)], dim=1)


@pytest.mark.parametrize("kind", ["int64", "uint64", "string", "float64"])
def test_classes_are_measured_whatever_their_labels_are(kind):
    """The test split lacks a class, so that counting through each split alone would mistake the others."""
    large = {"int64": [-9, 7, 2**62], "uint64": [1, 2**63, 2**64 - 1], "string": list("zyx"), "float64": [0, 4e9, 1e6]}
    shades = [10, 120, 240]
    train = rows([large[kind][n] for n in (0, 1, 2) * 4], value(kind), shades * 4)
    test = rows([large[kind][n] for n in (2, 1) * 3], value(kind), [shades[2], shades[1]] * 3)
    splits = labelled_splits(datasets.DatasetDict(train=train, test=test))
    results = knn_results(LabelledFeatures.extract(Shade(), *splits), k=1)
    assert [result.value for result in results] == [1.0] * len(results)
    monitor = KNNMonitor(*splits, image_size=8, k=1, progress=False)
    assert monitor.measure(Shade(), 0)[0].value == 1.0
