"""Eigenvalues and singular values of a matrix, in float64 and in descending order."""

import torch
from torch import Tensor

from ..arguments import ArrayLike, as_tensor

EPS = torch.finfo(torch.float64).eps
# A network computes equal images in batches of different sizes with errors of up to about three times this share of the
# length of their features (measured on seven architectures); this leaves some room.
_ERRORS = 8


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """Return the eigenvalues of a positive semi-definite matrix, descending; negative ones, from rounding, become 0.

    Args:
        matrix (`Tensor`): Shape `(D, D)`; only the upper triangle is read.

    Returns:
        `Tensor`: Shape `(D,)`, float64, on the CPU.

    Raises:
        ValueError: The matrix holds NaN or infinity.
    """
    if not torch.isfinite(matrix).all():
        raise ValueError("the matrix holds NaN or infinity, so it has no spectrum: the model has diverged")
    return torch.linalg.eigvalsh(matrix.to(torch.float64), UPLO="U").flip(0).clamp(min=0).cpu()


def covariance_eigenvalues(matrix: ArrayLike) -> Tensor:
    """Return the eigenvalues of the `D x D` covariance of a matrix's rows, descending.

    The covariance is centred and divided by N − 1. The smaller of the `D x D` and `N x N` Gram matrices is decomposed,
    which share their non-zero eigenvalues.

    Args:
        matrix (`Tensor` or array): Shape `(N, D)`, one observation per row. The covariance of a single row is zero.

    Returns:
        `Tensor`: Shape `(D,)`, float64.

    Raises:
        TypeError: `matrix` is not an array of numbers.
        ValueError: `matrix` is not two-dimensional and non-empty, or holds NaN or infinity.

    Example:
        >>> covariance_eigenvalues([[1.0, 0.0], [-1.0, 0.0]])
        tensor([2., 0.], dtype=torch.float64)
    """
    entries = _as_matrix(matrix)
    rows, dim = entries.shape
    mean = entries.mean(0)
    centred = entries - mean
    values = torch.zeros(dim, dtype=torch.float64)
    variance = float(centred.square().sum()) / max(rows - 1, 1)
    if is_rounding(variance, float(mean.square().sum()), EPS):
        return values
    gram = centred @ centred.T if rows < dim else centred.T @ centred
    values[: min(rows, dim)] = symmetric_eigenvalues(gram / max(rows - 1, 1))
    return values


def normalize(eigenvalues: Tensor) -> Tensor:
    """Return eigenvalues `(D,)` divided by the largest one, in [0, 1]; all zeros remain zeros."""
    largest = eigenvalues.max()
    return eigenvalues / largest if largest > 0 else torch.zeros_like(eigenvalues)


def normalized_eigenvalues(matrix: ArrayLike) -> Tensor:
    """Return the normalized eigenvalues of a matrix: [`covariance_eigenvalues`] divided by the largest, in [0, 1].

    For a weight, N is the number of inputs and D the number of outputs; for features, N is the number of images and D
    the number of dimensions.

    Args:
        matrix (`Tensor` or array): Shape `(N, D)`. For a constant matrix (all rows equal), all are 0.

    Returns:
        `Tensor`: Shape `(D,)`, float64, descending.

    Raises:
        TypeError: `matrix` is not an array of numbers.
        ValueError: `matrix` is not two-dimensional and non-empty, or holds NaN or infinity.

    Source:
        He, Du, Ma (NeurIPS 2024), Definition 1, after He & Ozay (2022).
    """
    return normalize(covariance_eigenvalues(matrix))


def singular_values(matrix: ArrayLike) -> Tensor:
    """Return the singular values of a matrix (not centred), descending.

    They are square roots of the eigenvalues of the smaller Gram matrix. Squaring loses the digits of the small ones, so
    that a value below `sqrt(max(N, D) * 2.2e-16)` times the largest (about the rounding of float32 weights) is returned
    as 0.

    Args:
        matrix (`Tensor` or array): Shape `(N, D)`.

    Returns:
        `Tensor`: Shape `(min(N, D),)`, float64.

    Raises:
        TypeError: `matrix` is not an array of numbers.
        ValueError: `matrix` is not two-dimensional and non-empty, or holds NaN or infinity.

    Example:
        >>> singular_values([[3.0, 0.0], [0.0, 4.0]])
        tensor([4., 3.], dtype=torch.float64)
    """
    values = _as_matrix(matrix)
    rows, dim = values.shape
    squares = symmetric_eigenvalues(values @ values.T if rows < dim else values.T @ values)
    return torch.where(squares > tolerance(squares, max(rows, dim)), squares, 0).sqrt()


def tolerance(eigenvalues: Tensor, size: int) -> float:
    """Return the size of zero eigenvalues after rounding: `size * 2.2e-16` times the largest one."""
    return float(eigenvalues.max()) * size * EPS


def is_rounding(variance: float, square: float, eps: float) -> bool:
    """Return whether the whole variance of vectors is no more than the rounding errors of equal ones.

    Args:
        variance (`float`): The trace of their covariance.
        square (`float`): The squared length of their mean.
        eps (`float`): The relative rounding error of the numbers that they were computed with.
    """
    return variance <= square * (_ERRORS * eps) ** 2


def _as_matrix(matrix: ArrayLike) -> Tensor:
    """Return a matrix `(N, D)` in float64."""
    tensor = as_tensor("matrix", matrix, 2, shape="(N, D)", finite=False)
    if 0 in tensor.shape:
        raise ValueError(f"matrix has shape {tuple(tensor.shape)}: pass (N, D) with at least one row and column")
    # Apple's GPU has no float64.
    device = "cpu" if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device).to(torch.float64)
