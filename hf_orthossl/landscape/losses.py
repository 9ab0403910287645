"""The landscape's losses, evaluated directly at any weights: what the predictions are checked against."""

import torch

from .objective import Objective


def landscape_loss(
    objective: Objective,
    weights: torch.Tensor,
    surviving_covariance: torch.Tensor,
    view_covariance: torch.Tensor,
    mean: torch.Tensor,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The loss of the linear encoder f = Wx + b over the whole population; differentiable in `weights` and `offset`.

    Args:
        objective (`Objective`): Which loss.
        weights (`torch.Tensor`): W of shape `(d, D)`.
        surviving_covariance (`torch.Tensor`): B of shape `(D, D)`.
        view_covariance (`torch.Tensor`): Σ of shape `(D, D)`.
        mean (`torch.Tensor`): E[x] of shape `(D,)`.
        offset (`torch.Tensor`, *optional*): b of shape `(d,)` with `bias="learnable"`, where it defaults to 0.

    Returns:
        `torch.Tensor`: a scalar.
    """
    covariance = weights @ view_covariance @ weights.T
    alignment = objective.alpha * (covariance.trace() - (weights @ surviving_covariance @ weights.T).trace())
    loss = 0.5 * objective.weight_decay * weights.square().sum()
    if objective.gamma:
        identity = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
        loss = loss + objective.gamma * (weights @ weights.T - identity).square().sum()

    if objective.loss == "infonce":
        return loss + alignment / objective.temperature + gaussian_uniformity(covariance / objective.temperature)

    moment = covariance
    if objective.bias != "centred":
        centre = weights @ mean
        if objective.bias == "learnable" and offset is not None:
            centre = centre + offset
        moment = covariance + torch.outer(centre, centre)
    linear, quadratic = alignment - moment.trace(), moment.square().sum()
    if objective.loss == "normalized":
        scale = moment.trace()
        linear, quadratic = linear / scale, quadratic / scale**2
    return loss + objective.slope * linear + objective.curvature * quadratic


def gaussian_uniformity(covariance: torch.Tensor) -> torch.Tensor:
    """E log E′ exp(−½‖f − f′‖²) of a Gaussian f: −½·(log det(I + M) + Tr[M(I + M)⁻¹])."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor = torch.linalg.cholesky(identity + covariance)
    inverse_trace = torch.linalg.solve_triangular(factor, identity, upper=False).square().sum()
    return -factor.diagonal().log().sum() - 0.5 * (len(covariance) - inverse_trace)
