"""Which loss is trained, with its constants, and the loss itself at any weights."""

import difflib
import math
from dataclasses import dataclass

import torch

LOSSES = ("quartic", "infonce", "normalized", "spectral")
BIASES = ("none", "centred", "learnable")


@dataclass(frozen=True)
class Objective:
    r"""
    A self-supervised loss of a linear encoder f = Wx (+ bias), as a function of the covariances of two views.

    The loss is what a run would minimize on infinitely many samples, so `weight_decay` and `gamma` mean what they mean
    in the run: `(weight_decay / 2)·‖W‖²` and `gamma·‖WWᵀ − I‖²` are added to the loss as stated here. Σ is
    the covariance of a view, C the part of it that augmentation makes, M = WΣWᵀ, f⁺ the other view of the same image,
    f′ a view of another image.

    - `"spectral"`: the spectral contrastive loss `−2·E[f·f⁺] + E[(f·f′)²]`, that is `−2·Tr[WBWᵀ] + Tr[M²]`. Exact
      for any data. Its batch form averages `f·f⁺` over the positive pairs and `(f·f′)²` over the pairs of two images.
    - `"infonce"`: SimCLR's loss with logits `−‖f − f′‖² / (2T)` instead of cosines. Exact for Gaussian views, where it
      is `Tr[WCWᵀ]/T − ½·Σ(log(1 + m/T) + (m/T)/(1 + m/T))` over the eigenvalues m of M, plus log(number of negatives),
      which does not move the minimum.
    - `"normalized"`: SimCLR's loss with logits `z·z′ / T`, where T is the temperature as every library writes it. Mean
      field: z = f/√E‖f‖² replaces z = f/‖f‖, so that M has trace 1 and the loss is `−Tr[WBWᵀ]/T + Tr[M²]/(2T²)`. Exact
      for centred Gaussian views divided by their root mean square length. For cosines it is an approximation: against
      minimizing the cosine loss on 600 Gaussian images, the predicted eigenvalues (relative to their sum) had R²
      0.95–0.98 with 8 or more survivors at T ≥ 0.5, 0.83–0.85 with 3 or 4, and below 0.9 at T = 0.1 even with 25.
    - `"quartic"`: `−Tr[WBWᵀ] + kappa·Tr[M²]`. `kappa = ½` is the spectral loss halved, and InfoNCE with logits `f·f′`
      on Gaussian views; `kappa = ¾` is `"infonce"` near the origin, `¾/T` with a temperature once multiplied by T.

    Args:
        loss (`str`, *optional*, defaults to `"quartic"`): One of the four above.
        alpha (`float`, *optional*, defaults to 1.0):
            Weight, > 0, of the alignment ½·E‖f − f⁺‖² within the loss; it turns B into Σ − alpha·C.
        weight_decay (`float`, *optional*, defaults to 0.0):
            At least 0, as torch's optimizers mean it. Not for `"normalized"`, which does not see the scale of W.
        temperature (`float`, *optional*, defaults to 1.0): T > 0 of `"infonce"` and `"normalized"`.
        gamma (`float`, *optional*, defaults to 0.0): Strength, at least 0, of the orthogonality penalty ‖WWᵀ − I‖².
        bias (`str`, *optional*, defaults to `"none"`):
            `"none"`: f = Wx; `"centred"`: f = W(x − E[x]); `"learnable"`: f = Wx + b with b trained and not decayed.
            `"infonce"` sees differences only, so that all three are the same to it.
        kappa (`float`, *optional*): > 0, of `"quartic"` only, where it defaults to ½.

    Raises:
        `ValueError`: for a value out of its range, or a combination for which there is no derivation.

    Source: "What shapes the loss landscape of self-supervised learning?" (Ziyin et al., ICLR 2023); the spectral loss
    is equation 6 of HaoChen et al. (NeurIPS 2021).
    """

    loss: str = "quartic"
    alpha: float = 1.0
    weight_decay: float = 0.0
    temperature: float = 1.0
    gamma: float = 0.0
    bias: str = "none"
    kappa: float | None = None

    def __post_init__(self) -> None:
        _choice("loss", self.loss, LOSSES)
        _choice("bias", self.bias, BIASES)
        for name in ("alpha", "temperature", "kappa"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} = {value} must be a finite number above 0")
        for name in ("weight_decay", "gamma"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value} must be a finite number of at least 0")
        if self.kappa is not None and self.loss != "quartic":
            raise ValueError(f"kappa belongs to loss='quartic': leave it out with loss='{self.loss}'")
        if self.temperature != 1 and self.loss in ("quartic", "spectral"):
            raise ValueError(
                f"temperature = {self.temperature} belongs to loss='infonce' and 'normalized': "
                f"leave it out with loss='{self.loss}'"
            )
        if self.loss == "normalized" and self.weight_decay:
            raise ValueError(
                f"weight_decay = {self.weight_decay} has no derivation with loss='normalized', which does not see "
                "the scale of the weights: pass 0"
            )
        if self.bias == "learnable" and self.loss == "normalized":
            raise ValueError("bias='learnable' has no derivation with loss='normalized': pass bias='centred'")
        if self.bias == "learnable" and self.gamma and self.loss != "infonce":
            raise ValueError(
                f"bias='learnable' has no derivation with gamma = {self.gamma}: pass bias='centred' or gamma=0"
            )

    @property
    def uses_dot_products(self) -> bool:
        """Whether the mean of the representation enters the loss."""
        return self.loss != "infonce"

    @property
    def slope(self) -> float:
        """c in the loss near the origin, −c·Tr[W(Σ − alpha·C)Wᵀ]; with `"normalized"`, at trace 1."""
        return {"quartic": 1.0, "spectral": 2.0}.get(self.loss, 1 / self.temperature)

    @property
    def curvature(self) -> float:
        """q in q·Tr[M²], the loss's quadratic part in M."""
        if self.loss == "quartic":
            return 0.5 if self.kappa is None else self.kappa
        return {"spectral": 1.0, "normalized": 0.5, "infonce": 0.75}[self.loss] / self.temperature**2

    def convex_part(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """ψ(m) of each eigenvalue m of M: what the loss adds to its part linear in M; ψ(0) = ψ′(0) = 0."""
        if self.loss != "infonce":
            return self.curvature * eigenvalues**2
        m = eigenvalues / self.temperature
        return m - 0.5 * (torch.log1p(m) + m / (1 + m))

    def convex_slope(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """ψ′(m) of each eigenvalue m of M."""
        if self.loss != "infonce":
            return 2 * self.curvature * eigenvalues
        t = 1 / (1 + eigenvalues / self.temperature)
        return (1 - 0.5 * (t + t**2)) / self.temperature


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f": did you mean '{close[0]}'?" if close else f": known are {', '.join(known)}"
        raise ValueError(f"{name}='{value}' is not known{hint}")


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
