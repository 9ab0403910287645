"""How penalties read matrices of shape `(..., input, output)`: the smaller side as rows, in full precision."""

import torch
from torch import Tensor


def check(W: Tensor) -> None:
    """Raises `ValueError` unless `W` is a matrix or a batch of them."""
    if W.dim() < 2:
        raise ValueError(f"W must be a matrix or a batch of matrices (..., input, output), got {tuple(W.shape)}")


def refuse_second_derivative() -> None:
    """Raises `RuntimeError` in a backward pass that is itself to be differentiated."""
    # Autograd would take the saved intermediates for constants and give a wrong second derivative in silence.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "so, sketched_so, srip and dso have no second derivative: differentiate without create_graph=True"
        )


def compute_dtype(W: Tensor) -> torch.dtype:
    """float32, float64 for float64 weights."""
    return torch.promote_types(W.dtype, torch.float32)


def full_precision(W: Tensor) -> torch.autocast:
    """Autocast turned off where `W` is."""
    return torch.autocast(W.device.type, enabled=False)


def rows(W: Tensor) -> Tensor:
    """`X`, the smaller side as rows, so that `G = XXᵀ`; a view."""
    return W if W.shape[-2] <= W.shape[-1] else W.mT


def like(W: Tensor, X: Tensor) -> Tensor:
    """Back from [`rows`], in the weight's dtype."""
    return (X if W.shape[-2] <= W.shape[-1] else X.mT).to(W.dtype)


def product_like(X: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in the memory order of `X`, so that accumulation into `.grad` needs no copy."""
    return left @ right if X.stride(-1) == 1 else (right.mT @ left.mT).mT
