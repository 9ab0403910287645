"""Find the directions that a network's norms remove by construction, so that they are not taken for a collapse.

A LayerNorm subtracts the mean over channels: divided by its weights, its outputs sum to the same value for every image.
One direction of D therefore never has variance, however well the network is trained. A GroupNorm does so in each group.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .covariance import StreamingCovariance

# The rounding errors of a sum of D numbers, relative to that of one.
_ERRORS = 64


def removed_by_norms(covariance: StreamingCovariance, *modules: nn.Module | None) -> int:
    """Return the number of directions without variance for which the norms of a network are the reason.

    Whatever lies between a norm and the features, a direction is counted only if the features have no variance in it.

    Args:
        covariance ([`StreamingCovariance`]): The covariance of the features `(D,)`, of 2 images or more.
        modules (`nn.Module`, *optional*): The network, and its projector if there is one.
    """
    if covariance.smallest_variance == float("inf"):
        # Nothing has any variance, which no norm explains.
        return 0
    found: list[Tensor] = []
    for module in modules:
        for directions in () if module is None else _directions(module, covariance.dim):
            directions = directions.to(covariance.device)
            found += [v for v in directions if not any(torch.allclose(v, known) for known in found)]
    return sum(_is_constant(covariance, direction) for direction in found)


def _directions(module: nn.Module, dim: int) -> Iterator[Tensor]:
    """Yield rows `(groups, D)` along which the outputs of each norm with D channels sum to a constant."""
    for norm in module.modules():
        # transformers and older releases of timm have LayerNorms of their own.
        if not isinstance(norm, nn.LayerNorm | nn.GroupNorm) and "LayerNorm" not in type(norm).__name__:
            continue
        groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
        weight = getattr(norm, "weight", None)
        shape = getattr(norm, "normalized_shape", None)
        width = norm.num_channels if isinstance(norm, nn.GroupNorm) else shape[0] if shape else None
        if isinstance(weight, Tensor):
            width = weight.numel() if weight.ndim == 1 else None
        if width != dim:
            continue
        scale = torch.ones(dim) if weight is None else weight.detach().cpu()
        # A channel of weight 0 is constant because of its weight, and the sum of the others is then free.
        if bool((scale != 0).all()):
            rows = scale.double().reciprocal()
            mask = torch.arange(groups).repeat_interleave(dim // groups) == torch.arange(groups)[:, None]
            rows = torch.where(mask, rows, 0)
            yield rows / rows.norm(dim=1, keepdim=True)


def _is_constant(covariance: StreamingCovariance, direction: Tensor) -> bool:
    # The squares of single features bound the rounding errors of their sum.
    squares = covariance.mean.square() + covariance.variances
    errors = float((direction.square() * squares).sum()) * covariance.eps**2 * _ERRORS
    return covariance.variance_along(direction) <= errors
