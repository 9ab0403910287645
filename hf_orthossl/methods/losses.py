"""Functions that the losses of several methods share: precision, similarity, NT-Xent, assignments, statistics."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed.collectives import rank
from ..distributed.gather import all_gather

P = ParamSpec("P")
R = TypeVar("R")


@overload
def at_least_float32(value: Tensor) -> Tensor: ...
@overload
def at_least_float32(value: Any) -> Any: ...
def at_least_float32(value: Any) -> Any:
    """Return a half-precision tensor, or a list of them, in float32; return anything else unchanged."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if isinstance(value, list):
        return [at_least_float32(element) for element in value]
    return value


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a loss to compute in float32 or better, with autocast off.

    Half precision is used for the networks only. A similarity divided by T = 0.1 has lost most of bfloat16's 8 bits,
    and autocast would convert the product of two float32 matrices back to half precision.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        precise: Any = [at_least_float32(value) for value in args]
        tensors = [value[0] if isinstance(value, list) else value for value in precise]
        device = next(value.device.type for value in tensors if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*precise, **kwargs)

    return wrapper


def normalize(embedding: Tensor) -> Tensor:
    """Return the rows scaled to unit length, in float32 or better."""
    return F.normalize(at_least_float32(embedding), dim=1)


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return cos(p, z) averaged over the batch, without gradient through the target.

    Args:
        prediction (`Tensor` of shape `(B, d)`): Predictor outputs.
        target (`Tensor` of shape `(B, d)`): Embeddings to predict.
    """
    return (normalize(prediction) * normalize(target.detach())).sum(dim=1).mean()


def own_rows(batch: int, device: torch.device) -> Tensor:
    """Return the indices `(B,)` of this process's rows in a gathered batch of B rows per process."""
    return torch.arange(batch, device=device) + batch * rank()


@full_precision
def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the normalized temperature-scaled cross-entropy, NT-Xent.

    ℓ_i = −log exp(s(z_i, z_j)/T) / Σ_{k≠i} exp(s(z_i, z_k)/T), averaged over the 2B embeddings of the batch, where j is
    the other view of i and k runs over both views of all images on all processes.

    Source: SimCLR, Chen et al. 2020, eq. 1.

    Args:
        first (`Tensor` of shape `(B, d)`): Embeddings of the first view.
        second (`Tensor` of shape `(B, d)`): Embeddings of the second view.
        temperature (`float`): T > 0.
    """
    first, second = normalize(first), normalize(second)
    everything = torch.cat([all_gather(first), all_gather(second)])
    rows, images = own_rows(len(first), first.device), len(everything) // 2
    logits = torch.cat([first, second]) @ everything.T / temperature
    itself = torch.cat([rows, rows + images])
    other = torch.cat([rows + images, rows])
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits, other)


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return soft assignments that use all prototypes equally over the rows of all processes.

    Processes exchange one total per prototype and round, not their scores. Computed with logarithms, in float32 or
    better: exp(s/ε) overflows float16 at s = 0.6 and, with unnormalized scores, any precision.

    Source: SwAV, Caron et al. 2020, eq. 3–5.

    Args:
        scores (`Tensor` of shape `(n, K)`): Scores of this process's embeddings against the prototypes; `n` may differ
            between processes and be 0.
        epsilon (`float`): Smoothness ε > 0.
        iterations (`int`): Number of rounds; each scales all prototypes, then all rows, to equal totals.

    Returns:
        `Tensor` of shape `(n, K)`: Rows that sum to 1.
    """
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - all_gather(log_q.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


@full_precision
def koleo(embeddings: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Return the Kozachenko–Leonenko term, which spreads embeddings over the sphere.

    −mean over i of log(d_i + ε), where d_i is the Euclidean distance of the L2-normalized embedding i to its nearest
    neighbour in the batch; ε is added to each coordinate of the difference too. The code of DINOv2 takes neighbours
    from the batch of each process; pass the batch of all processes (`all_gather`) for the term of the whole batch.

    Source: Sablayrolles et al., "Spreading vectors for similarity search", 2019, eq. 2; DINOv2, Oquab et al. 2023,
    section 4.

    Args:
        embeddings (`Tensor` of shape `(B, d)`): Embeddings, B ≥ 2.
        epsilon (`float`, defaults to 1e-8): ε, which keeps the value of two equal embeddings finite.

    Raises:
        ValueError: There is one embedding, which has no neighbour.
    """
    if len(embeddings) < 2:
        raise ValueError("the batch has 1 image: the distance to the nearest neighbour needs 2 or more")
    unit = normalize(embeddings)
    similarities = unit.detach() @ unit.detach().T
    nearest = similarities.fill_diagonal_(-torch.inf).argmax(dim=1)
    return -(F.pairwise_distance(unit, unit[nearest], eps=epsilon) + epsilon).log().mean()


def variance_term(embeddings: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Return the hinge that keeps each dimension's standard deviation above 1: mean of max(0, 1 − √(Var + ε)).

    Source: VICReg, Bardes et al. 2022, eq. 1.

    Args:
        embeddings (`Tensor` of shape `(B, d)`): Embeddings, B ≥ 2.
        epsilon (`float`, defaults to 1e-4): ε, which keeps the gradient of the square root finite.
    """
    return F.relu(1 - (embeddings.var(dim=0) + epsilon).sqrt()).mean()


def covariance_term(embeddings: Tensor) -> Tensor:
    """Return the sum of squared off-diagonal covariances, divided by d.

    Source: VICReg, Bardes et al. 2022, eq. 3–4.

    Args:
        embeddings (`Tensor` of shape `(B, d)`): Embeddings, B ≥ 2.
    """
    centred = embeddings - embeddings.mean(dim=0)
    covariance = centred.T @ centred / (len(centred) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / covariance.shape[0]


@full_precision
def whitening_terms(embeddings: Tensor) -> Tensor:
    """Return the variance term plus 0.004 times the covariance term: feature whitening.

    Source: He, Du & Ma, NeurIPS 2024, section 5, which sets the factor.

    Args:
        embeddings (`Tensor` of shape `(B, d)`): Predictor outputs of one view on all processes, B ≥ 2.
    """
    return variance_term(embeddings) + 0.004 * covariance_term(embeddings)


def cross_correlation(first: Tensor, second: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return the correlation `(d, d)` over the batch between the dimensions of two views.

    Source: Barlow Twins, Zbontar et al. 2021, eq. 2.

    Args:
        first (`Tensor` of shape `(B, d)`): Embeddings of the first view.
        second (`Tensor` of shape `(B, d)`): Embeddings of the second view.
        epsilon (`float`, defaults to 1e-5): Added to the variances, as in batch norm.
    """
    scaled = []
    for embeddings in (first, second):
        centred = embeddings - embeddings.mean(dim=0)
        scaled.append(centred * torch.rsqrt(embeddings.var(dim=0, correction=0) + epsilon))
    return scaled[0].T @ scaled[1] / len(first)
