"""Accuracy of scores against scikit-learn, and classes matched by name."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from hf_orthossl.evaluation.labels import match_classes
from hf_orthossl.evaluation.scoring import accuracy


def test_against_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(8, (400,), generator=generator)
    scores[torch.arange(400), labels] += 1
    found = accuracy(scores, labels, [str(index) for index in range(8)])
    for k, value in ((1, found.top1), (5, found.top5)):
        assert value == pytest.approx(top_k_accuracy_score(labels, scores, k=k))
    assert found.mean_per_class == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert found.per_class["3"] == pytest.approx((scores.argmax(1) == 3)[labels == 3].double().mean().item())
    hits = (scores.argmax(1) == labels).double().numpy()
    expected = bootstrap((hits,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    np.testing.assert_allclose(found.interval, expected, atol=0.006)


def test_images_without_label_are_left_out_and_few_classes_have_a_top5():
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    found = accuracy(scores, torch.tensor([0, 0, -1]), ["cat", "dog"])
    assert (found.top1, found.top5, found.count) == (0.5, 1.0, 2)
    assert found.per_class == {"cat": 0.5}


def test_nothing_to_score_or_nan():
    with pytest.raises(ValueError, match="no test image has a label"):
        accuracy(torch.zeros(2, 3), torch.tensor([-1, -1]), ["a", "b", "c"])
    with pytest.raises(ValueError, match="diverged"):
        accuracy(torch.full((2, 3), float("nan")), torch.tensor([0, 1]), ["a", "b", "c"])


def test_classes_are_matched_by_name():
    train, test = torch.tensor([0, 1, 2, 0, -1]), torch.tensor([0, 1, 2, 3])
    ours, theirs, names = match_classes(train, test, ["cat", "dog", "owl"], ["owl", "cat", "bat", "dog"])
    assert names == ["cat", "dog", "owl"]
    assert ours.tolist() == [0, 1, 2, 0, -1]
    assert theirs.tolist() == [2, 0, -1, 1]


def test_a_class_absent_from_training_is_no_class():
    train, test = torch.tensor([5, 9, 5]), torch.tensor([9, 7, 5])
    assert match_classes(train, test) == (
        pytest.approx(torch.tensor([0, 1, 0])),
        pytest.approx(torch.tensor([1, -1, 0])),
        ["5", "9"],
    )


@pytest.mark.parametrize(
    ("train", "test", "named"),
    [
        ([-1, -1], [0, 1], "training split has no labels"),
        ([0, 1], [-1, -1], "test split has no labels"),
        ([1, 1], [1, 0], "one class only"),
        ([0, 1], [2, 3], "no class in common"),
    ],
)
def test_labels_that_cannot_be_used(train, test, named):
    with pytest.raises(ValueError, match=named):
        match_classes(torch.tensor(train), torch.tensor(test))
