"""Accuracy of class scores: overall, per class, and with a bootstrap interval."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .results import Result

RESAMPLES = 10_000


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on a test set; all numbers except `count` are in [0, 1].

    Args:
        top1 (`float`): Share of images whose class has the highest score.
        top5 (`float`): Share of images whose class is among the five with the highest scores.
        interval (`tuple[float, float]`): 95 % bootstrap interval of `top1` over test images.
        per_class (`dict[str, float]`): Top-1 accuracy of each class that has test images.
        mean_per_class (`float`): Mean of `per_class`, the metric of data sets with uneven classes.
        count (`int`): Number of test images scored.
    """

    top1: float
    top5: float
    interval: tuple[float, float]
    per_class: dict[str, float]
    mean_per_class: float
    count: int


def accuracy(scores: Tensor, labels: Tensor, class_names: list[str], seed: int = 0) -> Accuracy:
    """Return the accuracy of class scores.

    Args:
        scores (`Tensor` of shape `(M, C)`): Scores; the highest is the predicted class.
        labels (`Tensor` of shape `(M,)`): Class indices; images with −1 are excluded.
        class_names (`list[str]`): Names of the C classes.
        seed (`int`, defaults to 0): Seed of the bootstrap.

    Raises:
        ValueError: If no image has a label, or a score is not finite.
    """
    scores, labels = scores[labels >= 0], labels[labels >= 0]
    if len(labels) == 0:
        raise ValueError("no test image has a label that occurs in training: there is nothing to score")
    if not torch.isfinite(scores).all():
        raise ValueError("the scores contain NaN or infinity: the encoder or the probe has diverged")
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    first = hits[:, 0].double()
    totals = torch.bincount(labels, minlength=len(class_names))
    right = torch.bincount(labels, weights=first, minlength=len(class_names))
    per_class = {
        name: float(good / total) for name, good, total in zip(class_names, right, totals, strict=True) if total > 0
    }
    top1 = float(first.mean())
    # Resampling hits and misses with replacement is drawing from a binomial, so no loop is needed.
    drawn = np.random.default_rng(seed).binomial(len(labels), top1, RESAMPLES) / len(labels)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Accuracy(
        top1=top1,
        top5=float(hits.any(dim=1).double().mean()),
        interval=(float(low), float(high)),
        per_class=per_class,
        mean_per_class=sum(per_class.values()) / len(per_class),
        count=len(labels),
    )


def accuracy_results(task: str, dataset: str, split: str, measured: Accuracy, about: dict) -> list[Result]:
    """Return top-1 and top-5 accuracy as results; top-1 includes its interval and the accuracy of each class.

    Args:
        task (`str`): See [`Result`].
        dataset (`str`): See [`Result`].
        split (`str`): See [`Result`].
        measured ([`Accuracy`]): The accuracy.
        about (`dict`): Further settings that determine the numbers.
    """
    about = {**about, "test_images": measured.count}
    top1 = about | {"interval": list(measured.interval), "mean_per_class": measured.mean_per_class}
    top1["per_class"] = measured.per_class
    return [
        Result(task, dataset, split, "top1", measured.top1, top1),
        Result(task, dataset, split, "top5", measured.top5, about),
    ]
