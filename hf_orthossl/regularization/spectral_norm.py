"""SRIP, the spectral norm of `G − I`, by power iteration."""

import torch
from torch import Tensor
from torch.autograd import Function

from .matrices import check, compute_dtype, full_precision, like, product_like, refuse_second_derivative, rows
from .power import gradient_factors, iterate
from .products import WholeProducts


def srip(
    W: Tensor, iterations: int = 2, start: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Spectral restricted isometry property, `σ_max(G − I)`, by power iteration from a normal random vector.

    With `x_0 = start` and `x_k = (G − I) x_{k−1}`, the penalty is `‖x_n‖ / ‖x_{n−1}‖` for `n = iterations`;
    the paper's u and v are `x_1` and `x_2`. It is a lower bound of `σ_max` that grows towards it with `n`.
    `G` is never formed: every product is two matrix–vector products.

    The gradient is that of the estimate, as autograd through all `n` products gives it (the paper's code does
    not detach any), the start vector being a constant. It is computed in closed form, as one product of rank
    `2n`. A matrix that is orthonormal to the last bit has penalty and gradient 0. A second derivative is not
    offered: asking for one raises `RuntimeError`.

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): the matrices.
        iterations (`int`, *optional*, defaults to `2`): number of products with `G − I`, ≥ 1.
        start (`torch.Tensor` of shape `(..., min(input, output))`, *optional*): start vectors, of any
            non-zero length; drawn from a normal distribution when not given.
        generator (`torch.Generator`, *optional*): source of the start vectors; torch's own when not given.

    Returns:
        `torch.Tensor` of shape `(...)`, ≥ 0. Not squared (Bansal et al.'s code squares it).

    Raises:
        ValueError: if `W` has fewer than two dimensions, `iterations` < 1, or `start` has another shape.

    Source: Bansal et al., NeurIPS 2018; two iterations and the smaller side as He, Du, Ma, NeurIPS
    2024.
    """
    check(W)
    if start is None:
        device = W.device if generator is None else generator.device
        start = torch.randn(*W.shape[:-2], min(W.shape[-2:]), generator=generator, device=device)
    return power_iteration(W, start, iterations)[0]


def power_iteration(W: Tensor, start: Tensor, iterations: int = 2) -> tuple[Tensor, Tensor]:
    """[`srip`] together with the vector it ended at, from which a later call may go on.

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): the matrices.
        start (`torch.Tensor` of shape `(..., min(input, output))`): start vectors.
        iterations (`int`, *optional*, defaults to `2`): number of products with `G − I`, ≥ 1.

    Returns:
        the penalties, of shape `(...)`, and unit vectors of the shape of `start`, which carry no gradient
        (`start` normalized, where the penalty is 0).

    Raises:
        ValueError: as [`srip`].
    """
    check(W)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    expected = (*W.shape[:-2], min(W.shape[-2:]))
    if tuple(start.shape) != expected:
        raise ValueError(f"start has shape {tuple(start.shape)}; matrices {tuple(W.shape)} need {expected}")
    return _PowerIteration.apply(W, start.to(W.device, compute_dtype(W)), iterations)


class _PowerIteration(Function):
    @staticmethod
    def forward(ctx, W: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        with full_precision(W):
            X = WholeProducts(rows(W).to(start.dtype))
            units, images, norms = iterate(X, start.unsqueeze(-2), iterations)
            last = torch.where(norms[-1] > 0, units[-1], units[0]).squeeze(-2)
        ctx.save_for_backward(W, *units, *images, *norms)
        ctx.mark_non_differentiable(last)
        return norms[-1][..., 0, 0], last

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        W, *saved = ctx.saved_tensors
        n = len(saved) // 3
        units, images, norms = saved[: n + 1], saved[n + 1 : 2 * n + 1], saved[2 * n + 1 :]
        with full_precision(W):
            X = rows(W).to(units[0].dtype)
            left, right = gradient_factors(WholeProducts(X), units, images, norms)
            return like(W, product_like(X, (left * grad[..., None, None]).mT, right)), None, None
