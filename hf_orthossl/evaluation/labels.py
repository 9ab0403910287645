"""Match the classes of two splits by name, and corrupt training labels to measure robustness."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data import ImageSource


def match_classes(
    train: Tensor,
    test: Tensor,
    train_names: Sequence[str] | None = None,
    test_names: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Return the labels of both splits as indices into the classes that occur in training.

    If both splits name their classes, they are matched by name, never by order. Images without a label, or of a class
    that does not occur in training, are labelled −1.

    Args:
        train (`Tensor` of shape `(N,)`): Class indices of the training split, −1 without a label.
        test (`Tensor` of shape `(M,)`): Class indices of the test split, −1 without a label.
        train_names (`Sequence[str]`, *optional*): Class names of the training split, by index.
        test_names (`Sequence[str]`, *optional*): Class names of the test split, by index.

    Returns:
        `tuple[Tensor, Tensor, list[str]]`: Labels of the training split, labels of the test split, and the names of the
        classes (their numbers as text if they have no names).

    Raises:
        ValueError: If a split has no labels, training has fewer than two classes, or the splits share no class.
    """
    for split, labels in (("training", train), ("test", test)):
        if not (labels >= 0).any():
            raise ValueError(f"the {split} split has no labels: pass --label_column, or another split")
    present = train[train >= 0].unique().tolist()
    if len(present) < 2:
        raise ValueError(f"the training split has one class only ({_name(present[0], train_names)}): probes need two")
    position = {index: place for place, index in enumerate(present)}
    if train_names is not None and test_names is not None:
        known = {train_names[index]: place for index, place in position.items()}
        meaning = {index: known.get(name, -1) for index, name in enumerate(test_names)}
    else:
        meaning = position
    matched = _translate(test, meaning)
    if not (matched >= 0).any():
        raise ValueError("the test split has no class in common with the training split: check the labels of both")
    return _translate(train, position), matched, [_name(index, train_names) for index in present]


def lost_classes_note(source: ImageSource, labels: Tensor) -> list[str]:
    """Return a sentence that names the classes of a split of which no image can be read; none without such classes.

    Args:
        source ([`ImageSource`]): The split.
        labels (`Tensor` of shape `(N,)`): The labels of its readable images.
    """
    every = row_labels(source)
    lost = sorted(set(every[every >= 0].tolist()) - set(labels.tolist()))
    return lost_classes(source.split, [_name(label, source.class_names) for label in lost])


def lost_classes(split: str, names: Sequence[str]) -> list[str]:
    """Return a sentence about the classes of a split of which no image can be read; none without such classes."""
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    which = f"class {shown}" if len(names) == 1 else f"{len(names)} classes ({shown})"
    return [f"Of {which}, no image of {split} can be read."]


def match_splits(
    train: ImageSource, test: ImageSource, train_labels: Tensor, test_labels: Tensor
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Match the classes of two splits as [`match_classes`] does, and describe the excluded images.

    Args:
        train ([`ImageSource`]): The training split.
        test ([`ImageSource`]): The test split.
        train_labels (`Tensor` of shape `(N,)`): Labels of the training split, −1 for images without one.
        test_labels (`Tensor` of shape `(M,)`): Labels of the test split, −1 for images without one.

    Returns:
        `tuple[Tensor, Tensor, list[str], list[str]]`: Labels of both splits and names of the classes, as in
        [`match_classes`], and one sentence for each reason for which images were excluded.
    """
    matched = match_classes(train_labels, test_labels, train.class_names, test.class_names)
    notes = []
    for source, given, labels in ((train, train_labels, matched[0]), (test, test_labels, matched[1])):
        if missing := int((given < 0).sum()):
            notes.append(f"{missing} images of {source.split} have no label and were excluded.")
        if foreign := int(((labels < 0) & (given >= 0)).sum()):
            notes.append(f"{foreign} images of {source.split} are of classes absent from training and were excluded.")
    return *matched, notes


def check_labels(train: ImageSource, test: ImageSource) -> int:
    """Check before any image is decoded that probes can be trained and scored on two splits.

    Returns:
        `int`: The number of labelled training images.

    Raises:
        ValueError: Labels are missing, training has fewer than two classes, or the splits share no class.
    """
    labels = row_labels(train)
    match_splits(train, test, labels, row_labels(test))
    return int((labels >= 0).sum())


def require_labels(source: ImageSource) -> None:
    """Raise a ValueError if a split has no column of labels."""
    if source.label_column is None:
        raise ValueError(
            f"data set {source.name}, split {source.split}, has no labels: pass --label_column, or another set"
        )


def row_labels(source: ImageSource) -> Tensor:
    """Return the class index of every row of a split `(N,)`, −1 without a label; no image is decoded.

    Raises:
        ValueError: If the split has no column of labels.
    """
    require_labels(source)
    column = source.dataset.select_columns([source.label_column]).with_format(None)[:][source.label_column]
    # Most labels occur often.
    index = functools.cache(source.class_index)
    return torch.tensor([index(label) for label in column])


def _name(index: int, names: Sequence[str] | None) -> str:
    return str(index) if names is None else names[index]


def _translate(labels: Tensor, meaning: dict[int, int]) -> Tensor:
    values = labels.unique().tolist()
    table = torch.tensor([meaning.get(value, -1) for value in values])
    return table[torch.searchsorted(torch.tensor(values), labels)]


def noisy_labels(labels: Tensor, num_classes: int, share: float, seed: int = 0) -> Tensor:
    """Return labels with a share of wrong ones: symmetric noise, with all other classes equally likely.

    Args:
        labels (`Tensor` of shape `(N,)`): Classes in [0, C), or −1, which does not change.
        num_classes (`int`): Number of classes C ≥ 2.
        share (`float`): Share of the labelled images to relabel wrongly, in [0, 1).
        seed (`int`, defaults to 0): Seed that selects images and labels.

    Raises:
        ValueError: If `share` is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"label_noise is {share}: the share of wrong labels must lie in [0, 1), as in 0.2")
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(labels.cpu().numpy() >= 0)
    wrong = rng.permutation(known)[: round(share * len(known))]
    noisy = labels.clone()
    shift = torch.from_numpy(rng.integers(1, num_classes, len(wrong))).to(labels)
    noisy[wrong] = (labels[wrong] + shift) % num_classes
    return noisy


def imbalanced_rows(labels: Tensor, ratio: float, seed: int = 0) -> Tensor:
    """Return the rows of a long-tailed training set, whose class sizes fall geometrically from first to last class.

    Of C classes with at least n images each, class c retains n·ratio^(−c/(C−1)) images, but at least one.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019.

    Args:
        labels (`Tensor` of shape `(N,)`): Classes; rows with −1 are excluded.
        ratio (`float`): Size of the first class over that of the last, at least 1.
        seed (`int`, defaults to 0): Seed that selects the images.

    Returns:
        `Tensor`: Row numbers, ascending.

    Raises:
        ValueError: If `ratio` is below 1.
    """
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"imbalance is {ratio}: the largest class over the smallest must be 1 or more, as in 100")
    rng = np.random.default_rng(seed)
    values = labels.cpu().numpy()
    classes = np.unique(values[values >= 0])
    rows = [rng.permutation(np.flatnonzero(values == c)) for c in classes]
    smallest = min(len(part) for part in rows)
    sizes = smallest * ratio ** (-np.arange(len(classes)) / max(len(classes) - 1, 1))
    chosen = [part[: max(round(size), 1)] for part, size in zip(rows, sizes, strict=True)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
