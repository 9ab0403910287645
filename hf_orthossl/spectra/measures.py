"""Measures that summarize a spectrum in one number.

Every measure accepts a vector of non-negative singular values or covariance eigenvalues in any order and computes in
float64. Where nothing varies, all eigenvalues are 0, and so are effective rank, RankMe, stable rank,
participation ratio, LiDAR and the number of positive eigenvalues: they count directions in use, and there are none. The
condition number is then infinite (no direction can be inverted), and α-ReQ `None` (no decay to fit). None is ever NaN.

"Effective rank" always means that of Roy & Vetterli, from singular values: of the matrix itself for weights,
of the *centred* feature matrix (square roots of covariance eigenvalues) for features. RankMe is the same number for
features that are *not* centred.
"""

import math

import torch
from torch import Tensor

from ..arguments import ArrayLike, as_float, as_int, as_tensor
from .eigenvalues import tolerance


def effective_rank(singular_values: ArrayLike) -> float:
    """Return the effective rank: the exponential of the entropy of the singular values divided by their sum.

    Args:
        singular_values (`Tensor` or array): Shape `(K,)`.

    Returns:
        `float`: Between 1 and K; 0 for an all-zero vector, in which no direction is used.

    Raises:
        TypeError: The argument is not an array of numbers.
        ValueError: The argument is not a non-empty vector of finite numbers.

    Source:
        Roy & Vetterli (EUSIPCO 2007), Definition 1, with 0 log 0 = 0.

    Example:
        >>> effective_rank([1.0, 1.0, 0.0])
        2.0
    """
    values = _vector(singular_values)
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def rankme(singular_values: ArrayLike, epsilon: float = 1e-7) -> float:
    """Return RankMe: the effective rank of the representations, with a small constant in each probability.

    exp(−Σ p_k log p_k), p_k = σ_k / ‖σ‖₁ + ε.

    Args:
        singular_values (`Tensor` or array): Singular values of the `(N, D)` matrix of representations, not centred,
            shape `(min(N, D),)`.
        epsilon (`float`, defaults to 1e-7): ε, the paper's value for float32 features.

    Returns:
        `float`: About 1 to min(N, D); 0 for an all-zero vector.

    Raises:
        TypeError: The argument is not an array of numbers.
        ValueError: The argument is not a non-empty vector of finite numbers.

    Source:
        Garrido, Balestriero, Najman, LeCun (ICML 2023), equation 1.

    Example:
        >>> rankme(singular_values(representations))
    """
    epsilon = as_float("epsilon", epsilon, at_least=0)
    values = _vector(singular_values)
    total = values.sum()
    return float(torch.special.entr(values / total + epsilon).sum().exp()) if total > 0 else 0.0


def stable_rank(singular_values: ArrayLike) -> float:
    """Return the stable rank ‖W‖_F² / σ_max².

    Args:
        singular_values (`Tensor` or array): Shape `(K,)`.

    Returns:
        `float`: Between 1 and K; 0 for an all-zero vector.

    Raises:
        TypeError: The argument is not an array of numbers.
        ValueError: The argument is not a non-empty vector of finite numbers.

    Source:
        Rudelson & Vershynin (J. ACM 2007), section 1.
    """
    squares = _vector(singular_values).square()
    return float(squares.sum() / squares.max()) if squares.max() > 0 else 0.0


def condition_number(singular_values: ArrayLike) -> float:
    """Return the condition number σ_max / σ_min.

    Args:
        singular_values (`Tensor` or array): Shape `(K,)`.

    Returns:
        `float`: At least 1; `inf` if the smallest value is 0, so also for an all-zero vector.

    Raises:
        TypeError: The argument is not an array of numbers.
        ValueError: The argument is not a non-empty vector of finite numbers.
    """
    values = _vector(singular_values)
    return float(values.max() / values.min()) if values.min() > 0 else math.inf


def participation_ratio(eigenvalues: ArrayLike) -> float:
    """Return the participation ratio (Σ λ)² / Σ λ².

    Args:
        eigenvalues (`Tensor` or array): Eigenvalues of the covariance, shape `(D,)`; their scale has no effect.

    Returns:
        `float`: Between 1 and D; 0 for an all-zero vector.

    Raises:
        TypeError: The argument is not an array of numbers.
        ValueError: The argument is not a non-empty vector of finite numbers.

    Source:
        Gao et al. (bioRxiv 214262, 2017), equation 5.
    """
    values = _vector(eigenvalues)
    return float(values.sum() ** 2 / values.square().sum()) if values.max() > 0 else 0.0


def alpha_req(eigenvalues: ArrayLike, first: int = 4, last: int = 100) -> float | None:
    """Return α-ReQ: the exponent of the power law λ_j ∝ j^(−α) fitted to the covariance eigenvalues.

    Fitted by least squares of log λ_j on log j over the ranks first … last, weighted by 1 / j so that each decade of
    ranks has the same weight. In the paper, values near 1 are best and larger ones indicate collapse.

    Args:
        eigenvalues (`Tensor` or array): Eigenvalues of the covariance, shape `(D,)`; their scale has no effect.
        first (`int`, defaults to 4): First rank of the fit, from 1.
        last (`int`, defaults to 100): Last rank of the fit; only positive eigenvalues are used.

    Returns:
        `float`: α, or `None` if fewer than three eigenvalues can be fitted, as for an all-zero vector.

    Raises:
        TypeError: The argument is not an array of numbers.
        ValueError: The argument is not a non-empty vector of finite numbers.

    Source:
        Agrawal, Mondal, Ghosh, Richards (NeurIPS 2022), section 3. The paper gives no range; the range and the weights
        are those of the fit that it adopts from Stringer et al. (Nature 2019), in the authors' code.
    """
    first, last = as_int("first", first, at_least=1), as_int("last", last, at_least=1)
    everything = _vector(eigenvalues)
    values = everything.sort(descending=True).values[:last]
    values = values[: count_positive(values, len(everything))][first - 1 :]
    if len(values) < 3:
        return None
    ranks = torch.arange(first, first + len(values), dtype=torch.float64)
    weight = ranks.reciprocal() / ranks.reciprocal().sum()
    x, y = ranks.log(), values.log()
    x = x - weight @ x
    return -float((weight * x) @ y / ((weight * x) @ x))


def count_positive(eigenvalues: ArrayLike, size: int | None = None) -> int:
    """Return the number of eigenvalues that are positive beyond rounding: above `size * 2.2e-16` times the largest.

    This is the tolerance of `numpy.linalg.matrix_rank`. Eigenvalues that are exactly zero in
    theory (fewer samples than dimensions, dead units) are noise of about that size, of either sign, in float64, and are
    not counted.

    Args:
        eigenvalues (`Tensor` or array): Eigenvalues of a covariance, shape `(D,)`.
        size (`int`, *optional*): The larger side of the matrix that they come from, defaults to D.

    Raises:
        TypeError: The argument is not an array of numbers.
        ValueError: The argument is not a non-empty vector of finite numbers.
    """
    values = _vector(eigenvalues)
    return int((values > tolerance(values, size or len(values))).sum())


def lidar(views: ArrayLike, delta: float = 1e-4, epsilon: float = 1e-7) -> float:
    """Return LiDAR: the effective rank of the between-image scatter, whitened by the scatter between views of an image.

    exp(−Σ p_i log p_i), p_i = λ_i / ‖λ‖₁ + ε with λ the eigenvalues of Σ_w^(−1/2) Σ_b Σ_w^(−1/2); Σ_b averages over
    images, Σ_w over images and views, and δ I is added to Σ_w. Memory O(D²).

    Args:
        views (`Tensor` or array): Embeddings of v views of each of n images, shape `(n, v, D)`, n and v at least 2.
        delta (`float`, defaults to 1e-4): δ above 0.
        epsilon (`float`, defaults to 1e-7): ε.

    Returns:
        `float`: Between about 1 and min(n − 1, D); 0 if all images have the same mean.

    Raises:
        TypeError: `views` is not an array of numbers.
        ValueError: `views` has the wrong shape, or contains NaN or infinity.

    Source:
        Thilak et al. (ICLR 2024, arXiv 2312.04000), equations 1-4.

    Example:
        >>> lidar(embeddings.reshape(1000, 10, -1))  # 10 views of each of 1,000 images
    """
    delta, epsilon = as_float("delta", delta, above=0), as_float("epsilon", epsilon, at_least=0)
    embeddings = as_tensor("views", views, 3, shape="(n >= 2, v >= 2, D)", finite=False)
    if embeddings.shape[0] < 2 or embeddings.shape[1] < 2 or embeddings.shape[2] < 1:
        raise ValueError(f"views has shape {tuple(embeddings.shape)}: pass (n >= 2, v >= 2, D)")
    if not torch.isfinite(embeddings).all():
        raise ValueError("views holds NaN or infinity: the model has diverged")
    embeddings = embeddings.detach().cpu().to(torch.float64)
    n, v, dim = embeddings.shape
    means = embeddings.mean(1)
    within = (embeddings - means[:, None]).flatten(0, 1)
    within = within.T @ within / (n * v) + delta * torch.eye(dim, dtype=torch.float64)
    between = (means - means.mean(0)) / n**0.5
    # The eigenvalues are also those of L^-1 Σ_b L^-T with L L^T = Σ_w: no matrix square root.
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(within), between.T, upper=False)
    values = torch.zeros(dim, dtype=torch.float64)
    nonzero = torch.linalg.svdvals(half).square()
    values[: len(nonzero)] = nonzero
    if values.max() <= tolerance(embeddings.square().mean()[None] / delta, dim):
        return 0.0
    return float(torch.special.entr(values / values.sum() + epsilon).sum().exp())


def _vector(values: ArrayLike) -> Tensor:
    """Return a spectrum `(K,)` in float64 on the CPU, divided by its largest value.

    No measure depends on the scale. Negative values, which are rounding errors, become 0, and all zeros remain zeros.
    """
    tensor = as_tensor("a spectrum", values, finite=False).detach().cpu().to(torch.float64)
    if tensor.ndim != 1 or len(tensor) == 0 or not torch.isfinite(tensor).all():
        raise ValueError(f"a spectrum must be a non-empty vector of finite numbers, got shape {tuple(tensor.shape)}")
    values = tensor.clamp(min=0)
    # Divided first, so that neither sums nor squares of very large or small values leave the range of floats.
    return values / values.max() if values.max() > 0 else values
