"""Measure how far representations have moved from those of the start: linear CKA and cosine, on the same images."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def linear_cka(start: Tensor, end: Tensor) -> float:
    """Return the linear centred kernel alignment of two representations of the same images, in [0, 1].

    It is 1 if one is the other up to rotation, scale and shift. Computed in float64 from `D × D` products, or `N × N`
    ones if there are fewer images than features. A representation without variance has nothing in common with any: 0.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, equation 4.

    Args:
        start (`Tensor` of shape `(N, D)`): Representations of N images.
        end (`Tensor` of shape `(N, E)`): Others of the same images.

    Raises:
        ValueError: The representations are not of equally many images, of two at least.
    """
    _check(start, end)
    X, Y = (_centred(features) for features in (start, end))
    if len(X) < max(X.shape[1], Y.shape[1]):
        K, L = X @ X.T, Y @ Y.T
        shared, own = (K * L).sum(), K.norm() * L.norm()
    else:
        shared, own = (X.T @ Y).square().sum(), (X.T @ X).norm() * (Y.T @ Y).norm()
    # Above 1 by rounding only.
    return min(float(shared / own), 1.0) if own > 0 else 0.0


def mean_cosine(start: Tensor, end: Tensor) -> float:
    """Return the mean over images of the cosine between their two representations, in [−1, 1].

    Unlike CKA it changes when the representation is rotated: it says whether what was built on the start, such as an
    index or a classifier, still fits.

    Args:
        start (`Tensor` of shape `(N, D)`): Representations of N images.
        end (`Tensor` of shape `(N, D)`): Others of the same images.

    Raises:
        ValueError: The representations are not of equally many images, of two at least, or of different widths.
    """
    _check(start, end)
    if start.shape[1] != end.shape[1]:
        raise ValueError(f"representations have {start.shape[1]} and {end.shape[1]} features: a cosine needs as many")
    return float(cosine_similarity(start.double(), end.double(), dim=1).mean())


def _centred(features: Tensor) -> Tensor:
    centred = features.double() - features.double().mean(0)
    # Rounding errors of equal rows are no variance.
    return torch.where(centred.abs() > 1e-12 * features.abs().max(), centred, 0.0)


def _check(start: Tensor, end: Tensor) -> None:
    if start.ndim != 2 or end.ndim != 2 or len(start) != len(end) or len(start) < 2:
        raise ValueError(
            f"representations have the shapes {tuple(start.shape)} and {tuple(end.shape)}: pass (N, D) of the same "
            "images, at least two"
        )
