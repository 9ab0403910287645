"""kNN and linear probes of a data set: labels by name, worse labels as asked, nothing learnt from the test split."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PIL

from hf_orthossl import load_encoder
from hf_orthossl.evaluation import LabelledFeatures, knn_results, labelled_splits, linear_results
from hf_orthossl.evaluation.labels import imbalanced_rows, noisy_labels


@given(st.integers(2, 6), st.floats(0, 0.9), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_label_noise_makes_exactly_the_share_wrong(classes, share, seed):
    labels = torch.arange(120) % classes
    labels[::7] = -1
    noisy = noisy_labels(labels, classes, share, seed)
    known = labels >= 0
    assert (noisy[~known] == -1).all()
    assert (noisy[known] != labels[known]).sum() == round(share * int(known.sum()))
    assert noisy[known].min() >= 0
    assert noisy[known].max() < classes


def test_label_noise_prefers_no_class():
    labels = torch.zeros(9000, dtype=torch.long)
    counts = torch.bincount(noisy_labels(labels, 4, 0.9), minlength=4)
    np.testing.assert_allclose(counts[1:], 2700, rtol=0.1)


def test_imbalance_gives_the_long_tail():
    """100 images a class, ratio 100 over 3 classes: 100, 10 and 1."""
    labels = torch.arange(300) % 3
    rows = imbalanced_rows(labels, 100)
    assert torch.bincount(labels[rows]).tolist() == [100, 10, 1]
    assert rows.unique().tolist() == rows.tolist()


@pytest.mark.parametrize(("noise", "ratio", "named"), [(1.0, 1, "label_noise is 1"), (0.1, 0.5, "imbalance is 0.5")])
def test_corruption_out_of_range(noise, ratio, named):
    labels = torch.arange(10) % 2
    with pytest.raises(ValueError, match=named):
        imbalanced_rows(noisy_labels(labels, 2, noise), ratio)


def images(labels, names, seed):
    """Pictures whose brightness is their class, which is given by name so that index orders may differ."""
    rng = np.random.default_rng(seed)
    brightness = {"dark": 40, "grey": 130, "light": 220, "new": 10}
    pixels = [np.clip(brightness[names[i]] + rng.normal(0, 12, (16, 16, 3)), 0, 255).astype("uint8") for i in labels]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    rows = {"image": [PIL.fromarray(array) for array in pixels], "label": labels}
    return Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def shades():
    """Train and test split list their classes in different orders, and test has one class more."""
    train = images([0, 1, 2] * 12, ["dark", "grey", "light"], 0)
    test = images([0, 1, 2, 3] * 6, ["light", "new", "dark", "grey"], 1)
    return DatasetDict(train=train, test=test)


class Brightness(torch.nn.Module):
    """An encoder whose representation is the picture's mean colour and a constant."""

    image_size, mean, std = 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        shade = batch.mean((2, 3)) * self.scale
        return torch.cat([shade - 0.5, torch.ones_like(shade)], dim=1)


def test_labels_are_matched_by_name_and_strange_classes_counted(shades):
    train, test = labelled_splits(shades)
    features = LabelledFeatures.extract(Brightness(), train, test)
    assert features.class_names == ["dark", "grey", "light"]
    assert (len(features.train), len(features.test)) == (36, 18)
    assert features.notes == ["6 images of test are of classes absent from training and were excluded."]
    for results in (
        knn_results(features, k=5),
        linear_results(features, protocol="lbfgs"),
        linear_results(features, epochs=40, learning_rate=5.0, batch_size=12),
    ):
        top1 = [result for result in results if result.metric == "top1"]
        assert top1
        assert all(result.value == 1.0 for result in top1)
    assert top1[0].protocol["per_class"] == {"dark": 1.0, "grey": 1.0, "light": 1.0}
    assert top1[0].protocol["test_images"] == 18


def test_each_seed_gives_a_result_and_worse_labels_a_worse_one(shades):
    train, test = labelled_splits(shades)
    features = LabelledFeatures.extract(Brightness(), train, test)
    results = linear_results(features, protocol="lbfgs", seeds=(3, 4), label_noise=0.9)
    assert [result.protocol["seed"] for result in results] == [3, 3, 4, 4]
    assert all(result.protocol["label_noise"] == 0.9 for result in results)
    assert all(result.value < 1 for result in results if result.metric == "top1")


def test_a_data_set_without_test_split_or_labels_says_what_to_pass(shades):
    with pytest.raises(ValueError, match="--test_split"):
        labelled_splits(DatasetDict(train=shades["train"]))
    train, test = labelled_splits(DatasetDict({split: part.remove_columns("label") for split, part in shades.items()}))
    with pytest.raises(ValueError, match="no labels: pass --label_column"):
        LabelledFeatures.extract(Brightness(), train, test)


def test_an_encoder_that_gives_nan_is_refused(shades):
    encoder = Brightness()
    encoder.scale.data.fill_(float("nan"))
    features = LabelledFeatures.extract(encoder, *labelled_splits(shades))
    for probe in (knn_results, linear_results):
        with pytest.raises(ValueError, match="diverged"):
            probe(features)


def test_digits_with_a_real_backbone_beat_chance():
    torch.manual_seed(0)
    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    train, test = labelled_splits("digits", train_split="train[:300]")
    features = LabelledFeatures.extract(encoder, train, test)
    best = knn_results(features, k=5)[0]
    low, high = best.protocol["interval"]
    assert 0.1 < low <= best.value <= high


def test_the_training_images_of_an_uneven_set_are_counted_as_they_are(shades):
    features = LabelledFeatures.extract(Brightness(), *labelled_splits(shades))
    results = linear_results(features, protocol="lbfgs", penalty=1e-3, imbalance=4)
    assert results[0].protocol["train_images"] == 12 + 6 + 3
