"""The self-supervised losses of the theory: their constants, and their values for a linear encoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import as_float
from ..messages import describe, suggest

LOSSES = ("quartic", "infonce", "normalized", "spectral")
BIASES = ("none", "centred", "learnable")


@dataclass(frozen=True)
class Objective:
    r"""A self-supervised loss of a linear encoder f = Wx (+ bias), as a function of the covariances of two views.

    The loss is the population loss that a run minimizes, so that `weight_decay` and `gamma` mean the same as in the
    run: `(weight_decay / 2)·‖W‖²` and `gamma·‖WWᵀ − I‖²` are added to the loss as defined here. Σ is the covariance of
    a view, C the part of it that augmentation causes, M = WΣWᵀ, f⁺ the features of the other view of the same image,
    f′ those of a view of another image.

    - `"spectral"`: the spectral contrastive loss `−2·E[f·f⁺] + E[(f·f′)²]`, that is `−2·Tr[WBWᵀ] + Tr[M²]`. Exact
      for any data. Its batch form averages `f·f⁺` over the positive pairs and `(f·f′)²` over the pairs of two images.
    - `"infonce"`: SimCLR's loss with logits `−‖f − f′‖² / (2T)` instead of cosines. Exact for Gaussian views, where it
      is `Tr[WCWᵀ]/T − ½·Σ(log(1 + m/T) + (m/T)/(1 + m/T))` over the eigenvalues m of M, plus log(number of negatives),
      which does not affect the minimum.
    - `"normalized"`: SimCLR's loss with logits `z·z′ / T`, where T is the usual temperature. Mean
      field: z = f/√E‖f‖² replaces z = f/‖f‖, so that M has trace 1 and the loss is `−Tr[WBWᵀ]/T + Tr[M²]/(2T²)`. Exact
      for centred Gaussian views divided by their root mean square length. For cosines it is an approximation: against
      minimizing the cosine loss on 600 Gaussian images, the predicted eigenvalues (relative to their sum) had R²
      0.95–0.98 with 8 or more survivors at T ≥ 0.5, 0.83–0.85 with 3 or 4, and below 0.9 at T = 0.1 even with 25.
    - `"quartic"`: `−Tr[WBWᵀ] + kappa·Tr[M²]`. `kappa = ½` is the spectral loss halved, and InfoNCE with logits `f·f′`
      on Gaussian views; `kappa = ¾` is `"infonce"` near the origin, `¾/T` with a temperature once multiplied by T.

    Args:
        loss (`str`, defaults to `"quartic"`): One of the four losses above.
        alpha (`float`, defaults to 1.0): Weight, above 0, of the alignment ½·E‖f − f⁺‖² within the loss; it replaces B
            by Σ − alpha·C.
        weight_decay (`float`, defaults to 0.0): Weight decay, at least 0, as torch's optimizers define it. Not for
            `"normalized"`, which does not depend on the scale of W.
        temperature (`float`, defaults to 1.0): T above 0; of `"infonce"` and `"normalized"`.
        gamma (`float`, defaults to 0.0): Weight, at least 0, of the orthogonality penalty ‖WWᵀ − I‖².
        bias (`str`, defaults to `"none"`): `"none"`: f = Wx; `"centred"`: f = W(x − E[x]); `"learnable"`: f = Wx + b
            with b trained and not decayed. `"infonce"` depends on differences of features only, so that the three
            coincide.
        kappa (`float`, *optional*): κ above 0, of `"quartic"` only, where it defaults to ½.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, or the theory has no derivation for the combination.

    Source:
        "What shapes the loss landscape of self-supervised learning?" (Ziyin et al., ICLR 2023); the spectral loss is
        equation 6 of HaoChen et al. (NeurIPS 2021).

    Example:
        >>> Objective("infonce", alpha=1.5, temperature=0.5)
    """

    loss: str = "quartic"
    alpha: float = 1.0
    weight_decay: float = 0.0
    temperature: float = 1.0
    gamma: float = 0.0
    bias: str = "none"
    kappa: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("bias", BIASES)):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a name, got {describe(value)}: choose from {', '.join(known)}")
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: {suggest(value, known)}")
        for name in ("alpha", "temperature", "kappa"):
            if getattr(self, name) is not None or name != "kappa":
                object.__setattr__(self, name, as_float(name, getattr(self, name), above=0))
        for name in ("weight_decay", "gamma"):
            object.__setattr__(self, name, as_float(name, getattr(self, name), at_least=0))
        if self.kappa is not None and self.loss != "quartic":
            raise ValueError(f"kappa is a setting of loss='quartic': omit it with loss='{self.loss}'")
        if self.temperature != 1 and self.loss in ("quartic", "spectral"):
            raise ValueError(
                f"temperature = {self.temperature} is a setting of loss='infonce' and 'normalized': "
                f"omit it with loss='{self.loss}'"
            )
        if self.loss == "normalized" and self.weight_decay:
            raise ValueError(
                f"weight_decay = {self.weight_decay} has no effect to derive with loss='normalized', which does not "
                "depend on the scale of the weights: pass 0"
            )
        if self.bias == "learnable" and self.loss == "normalized":
            raise ValueError("bias='learnable' has no derivation with loss='normalized': pass bias='centred'")
        if self.bias == "learnable" and self.gamma and self.loss != "infonce":
            raise ValueError(
                f"bias='learnable' has no derivation with gamma = {self.gamma}: pass bias='centred' or gamma=0"
            )

    @property
    def uses_dot_products(self) -> bool:
        """Return whether the mean of the representation enters the loss."""
        return self.loss != "infonce"

    @property
    def slope(self) -> float:
        """Return c of the loss near the origin, −c·Tr[W(Σ − alpha·C)Wᵀ]; with `"normalized"`, at trace 1."""
        return {"quartic": 1.0, "spectral": 2.0}.get(self.loss, 1 / self.temperature)

    @property
    def curvature(self) -> float:
        """Return q of q·Tr[M²], the loss's quadratic part in M."""
        if self.loss == "quartic":
            return 0.5 if self.kappa is None else self.kappa
        return {"spectral": 1.0, "normalized": 0.5, "infonce": 0.75}[self.loss] / self.temperature**2

    def convex_part(self, eigenvalues: Tensor) -> Tensor:
        """Return ψ(m) of each eigenvalue m of M: the nonlinear part of the loss in M; ψ(0) = ψ′(0) = 0."""
        if self.loss != "infonce":
            return self.curvature * eigenvalues**2
        m = eigenvalues / self.temperature
        return m - 0.5 * (torch.log1p(m) + m / (1 + m))

    def convex_slope(self, eigenvalues: Tensor) -> Tensor:
        """Return ψ′(m) of each eigenvalue m of M."""
        if self.loss != "infonce":
            return 2 * self.curvature * eigenvalues
        t = 1 / (1 + eigenvalues / self.temperature)
        return (1 - 0.5 * (t + t**2)) / self.temperature


def landscape_loss(
    objective: Objective,
    weights: Tensor,
    surviving_covariance: Tensor,
    view_covariance: Tensor,
    mean: Tensor,
    offset: Tensor | None = None,
) -> Tensor:
    """Return the population loss of the linear encoder f = Wx + b; differentiable in `weights` and `offset`.

    All predictions are checked against this function.

    Args:
        objective ([`Objective`]): The loss.
        weights (`Tensor`): W of shape `(d, D)`.
        surviving_covariance (`Tensor`): B of shape `(D, D)`.
        view_covariance (`Tensor`): Σ of shape `(D, D)`.
        mean (`Tensor`): E[x] of shape `(D,)`.
        offset (`Tensor`, *optional*): b of shape `(d,)` with `bias="learnable"`, where it defaults to 0.

    Returns:
        `Tensor`: A scalar.
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


def gaussian_uniformity(covariance: Tensor) -> Tensor:
    """Return E log E′ exp(−½‖f − f′‖²) of a Gaussian f: −½·(log det(I + M) + Tr[M(I + M)⁻¹])."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor = torch.linalg.cholesky(identity + covariance)
    inverse_trace = torch.linalg.solve_triangular(factor, identity, upper=False).square().sum()
    return -factor.diagonal().log().sum() - 0.5 * (len(covariance) - inverse_trace)
