"""Training labels made worse on purpose: wrong ones, and classes of very different size."""

import numpy as np
import torch
from torch import Tensor


def noisy_labels(labels: Tensor, num_classes: int, share: float, seed: int = 0) -> Tensor:
    """Labels of which a share is wrong: symmetric noise, every other class as likely.

    Args:
        labels (`Tensor` of shape `(N,)`): Classes in [0, C), or −1, which stay.
        num_classes (`int`): C ≥ 2.
        share (`float`): Of the labelled images, in [0, 1).
        seed (`int`, defaults to 0): Decides which become what.

    Raises:
        ValueError: `share` is out of range.
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
    """Rows of a long-tailed training set: class sizes fall geometrically from the first class to the last.

    Of C classes with at least n images each, class c keeps n·ratio^(−c/(C−1)) (Cao et al., "Learning Imbalanced
    Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019), but at least one.

    Args:
        labels (`Tensor` of shape `(N,)`): Classes; rows with −1 are left out.
        ratio (`float`): Size of the first class over that of the last, at least 1.
        seed (`int`, defaults to 0): Decides which images stay.

    Returns:
        `Tensor`: Row numbers, ascending.

    Raises:
        ValueError: `ratio` is below 1.
    """
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"imbalance is {ratio}: the largest class over the smallest is 1 or more, as in 100")
    rng = np.random.default_rng(seed)
    values = labels.cpu().numpy()
    classes = np.unique(values[values >= 0])
    rows = [rng.permutation(np.flatnonzero(values == c)) for c in classes]
    smallest = min(len(part) for part in rows)
    sizes = smallest * ratio ** (-np.arange(len(classes)) / max(len(classes) - 1, 1))
    kept = [part[: max(round(size), 1)] for part, size in zip(rows, sizes, strict=True)]
    return torch.from_numpy(np.sort(np.concatenate(kept)))
