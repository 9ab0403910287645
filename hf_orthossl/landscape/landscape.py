"""The landscape of self-supervised losses for a linear encoder, in closed form from two covariances of views."""

from collections.abc import Iterator
from functools import cached_property

import torch

from .covariance_pair import CovariancePair, check_covariances, check_mean, check_spans
from .label_signal import LabelSignal, label_signal
from .minimum import Minimum, find_minimum
from .objective import Objective, landscape_loss
from .penalized import find_penalized_minimum, smallest_reviving_gamma
from .stationary import (
    CollapseThreshold,
    OriginHessian,
    StationaryPoint,
    collapse_threshold,
    hessian_at_origin,
    stationary_points,
    surviving_dimensions,
)


class LinearLandscape:
    """
    Predicts what a linear encoder learns, and which directions of its input it loses, before training.

    All predictions follow from the canonical correlations k between two views of an image: the share of each direction
    that augmentation leaves alone. Methods that take `loss` and `settings` pass them to [`Objective`], which says what
    each loss is; they raise `ValueError` where there is no derivation. Computations run in float64 on Sigma's device.

    Args:
        B (`torch.Tensor`):
            Covariance Cov(E[x | image]) of what survives augmentation, shape `(D, D)`: the symmetrized covariance
            between two views.
        Sigma (`torch.Tensor`): Covariance Cov(x) of views, shape `(D, D)`.
        mean (`torch.Tensor`, *optional*): E[x] of shape `(D,)`, defaults to 0. Matters without a bias only.
        tol (`float`, *optional*, defaults to 1e-9):
            Directions in which the variance of views is below `tol` of the largest are dropped.
        slack (`float`, *optional*, defaults to 1e-6):
            How far canonical correlations may leave [0, 1], and how asymmetric the matrices may be relative to their
            largest entry, before it is an error and not rounding; they are clipped.

    Attributes:
        canonical_correlations (`torch.Tensor`): k, shape `(rank,)`, descending, in [0, 1].
        filters (`torch.Tensor`): w of shape `(rank, D)`, wΣwᵀ = 1: the encoder rows that read the directions.
        patterns (`torch.Tensor`): Σw of shape `(rank, D)`: the directions as inputs, for display; B = Σ k·p·pᵀ.
        rank (`int`): Dimensions in which views vary.
        dropped (`int`): D − rank.
        noise (`torch.Tensor`): C = Σ − B of shape `(D, D)`: what augmentation moves.

    Raises:
        `ValueError`:
            if a matrix is not square, symmetric, finite and positive semi-definite, or B not below Σ, beyond `slack`.

    Source: "What shapes the loss landscape of self-supervised learning?" (Ziyin et al., ICLR 2023, arXiv 2210.00638).
    """

    def __init__(
        self,
        B: torch.Tensor,
        Sigma: torch.Tensor,
        *,
        mean: torch.Tensor | None = None,
        tol: float = 1e-9,
        slack: float = 1e-6,
    ) -> None:
        self.B, self.Sigma = check_covariances(B, Sigma, slack)
        self.mean = check_mean(mean, self.Sigma)
        self.tol = tol
        pair = CovariancePair(self.B, self.Sigma, tol)
        check_spans(pair, slack)
        self.canonical_correlations = pair.correlations.clamp(0, 1)
        self.filters = pair.filters
        if bool((pair.correlations != self.canonical_correlations).any()):
            self.B = self.patterns.T @ (self.canonical_correlations[:, None] * self.patterns)

    @property
    def dimension(self) -> int:
        """D, the number of inputs."""
        return len(self.Sigma)

    @property
    def rank(self) -> int:
        return len(self.canonical_correlations)

    @property
    def dropped(self) -> int:
        return self.dimension - self.rank

    @property
    def noise(self) -> torch.Tensor:
        return self.Sigma - self.B

    @cached_property
    def patterns(self) -> torch.Tensor:
        return self.filters @ self.Sigma

    def loss(
        self, weights: torch.Tensor, loss: str = "quartic", *, offset: torch.Tensor | None = None, **settings
    ) -> torch.Tensor:
        """
        The loss at any weights, differentiable.

        Args:
            weights (`torch.Tensor`): W of shape `(dim, D)`, in float64.
            loss (`str`, *optional*, defaults to `"quartic"`): As [`Objective`], like `settings`.
            offset (`torch.Tensor`, *optional*): b of shape `(dim,)` with `bias="learnable"`, where it defaults to 0.

        Returns:
            `torch.Tensor`: a scalar.
        """
        objective = self._objective(loss, settings)
        if weights.ndim != 2 or weights.shape[1] != self.dimension:
            raise ValueError(f"weights has shape {tuple(weights.shape)}: pass (dim, {self.dimension})")
        return landscape_loss(objective, weights, self.B, self.Sigma, self.mean, offset)

    def minimum(self, loss: str = "quartic", *, dim: int | None = None, **settings) -> Minimum:
        """
        The global minimum: what the representation's spectrum will be.

        Without the penalty it is a closed form. With `gamma > 0` it is one where the outputs suffice for all directions
        that want to live, and B_eff and Σ commute or all of them do; otherwise it is the best of several L-BFGS runs.

        Args:
            loss (`str`, *optional*, defaults to `"quartic"`): As [`Objective`], like `settings`.
            dim (`int`, *optional*): Outputs of the encoder, at least 1, defaults to D. Outputs past D stay 0.

        Returns:
            `Minimum`: eigenvalues, weights, survivors, value.
        """
        objective = self._objective(loss, settings)
        pair, canonical = self._pair(objective)
        dim, shared = self._outputs(dim), {"mean": self.mean, "patterns": self.patterns}
        if objective.gamma:
            return find_penalized_minimum(objective, pair, dim, **shared)
        correlations = self.canonical_correlations if canonical else None
        return find_minimum(objective, pair, dim, correlations=correlations, **shared)

    def stationary_points(
        self, loss: str = "quartic", *, dim: int | None = None, limit: int | None = 100, **settings
    ) -> Iterator[StationaryPoint]:
        """
        The points where the gradient vanishes, lowest loss first: one for each set of at most `dim` living directions.

        Args:
            loss (`str`, *optional*, defaults to `"quartic"`): As [`Objective`]; not `"normalized"`, no `gamma`.
            dim (`int`, *optional*): Outputs of the encoder, at least 1, defaults to D.
            limit (`int`, *optional*, defaults to 100): Stop after so many; `None` for all of up to 2^D.

        Yields:
            `StationaryPoint`: the first is the minimum, the others are saddles.
        """
        objective = self._objective(loss, settings)
        pair, _ = self._pair(objective)
        return stationary_points(objective, pair, self._outputs(dim), limit)

    def hessian_at_origin(self, loss: str = "quartic", **settings) -> OriginHessian:
        """
        The Hessian at W = 0, where all has collapsed: a minimum if it has no negative eigenvalue.

        Args:
            loss (`str`, *optional*, defaults to `"quartic"`): As [`Objective`]; not `"normalized"`, never there.

        Returns:
            `OriginHessian`: its D eigenvalues, each of which belongs to every output.
        """
        objective = self._objective(loss, settings)
        return hessian_at_origin(objective, self._pair(objective)[0])

    def collapse_threshold(self, setting: str, loss: str = "quartic", **settings) -> CollapseThreshold:
        """
        The value of one setting from which each direction is dead, the others held.

        Args:
            setting (`str`): `"alpha"`, `"weight_decay"` or, with `loss="normalized"`, `"temperature"`.
            loss (`str`, *optional*, defaults to `"quartic"`): As [`Objective`], like `settings`; no `gamma`.

        Returns:
            `CollapseThreshold`: one value for each direction, and the value from which nothing lives.
        """
        settings.pop(setting, None)
        objective = self._objective(loss, settings)
        return collapse_threshold(setting, objective, self._pair(objective)[0])

    def gamma_to_revive(self, direction: int | None = None, loss: str = "quartic", **settings) -> float:
        """
        The smallest strength of the orthogonality penalty at which a direction lives, with at least D outputs.

        Where B_eff and Σ commute this is −b/2 for the quartic loss, b the eigenvalue of B_eff along the direction.
        Otherwise directions mix, and a direction counts as alive when half of its variance is captured; γ is then good
        to three digits.

        Args:
            direction (`int`, *optional*): Index of a canonical direction; without it, for all of them to live.
            loss (`str`, *optional*, defaults to `"quartic"`): As [`Objective`]; not `"normalized"`.

        Returns:
            `float`: γ, 0 if it lives without; it is dead just below.
        """
        settings.pop("gamma", None)
        objective = self._objective(loss, settings)
        if direction is not None and not 0 <= direction < self.rank:
            raise ValueError(f"direction = {direction} is not one of the canonical directions 0 to {self.rank - 1}")
        return smallest_reviving_gamma(objective, self._pair(objective)[0], self.patterns, direction)

    def surviving_under_temperature(self, temperature: float, *, alpha: float = 1.0, dim: int | None = None) -> int:
        """
        How many directions normalized features keep: all r with Σ_{i≤r} temperature·alpha·(k_i − k_r) < 1.

        Args:
            temperature (`float`): T > 0 of the cosine logits.
            alpha (`float`, *optional*, defaults to 1.0): As [`Objective`].
            dim (`int`, *optional*): Outputs of the encoder, at least 1, defaults to D.
        """
        objective = Objective("normalized", temperature=temperature, alpha=alpha)
        return surviving_dimensions(objective, self.canonical_correlations, self._outputs(dim))

    def label_signal(
        self, class_means: torch.Tensor, shares: torch.Tensor, alive: torch.Tensor, *, images: int | None = None
    ) -> LabelSignal:
        """
        Whether the predicted collapse spares the labels: the function [`label_signal`] on this landscape's filters,
        where `alive` is [`Minimum.alive`].
        """
        return label_signal(self.filters, class_means, shares, alive, images=images)

    def _objective(self, loss: str, settings: dict) -> Objective:
        objective = Objective(loss, **settings)
        if objective.loss == "normalized" and objective.bias == "none" and bool(self.mean.any()):
            raise ValueError(
                "bias='none' has no derivation with loss='normalized' and a mean: pass bias='centred', or no mean"
            )
        return objective

    def _outputs(self, dim: int | None) -> int:
        if dim is not None and dim < 1:
            raise ValueError(f"dim = {dim} must be at least 1")
        return self.dimension if dim is None else dim

    def _pair(self, objective: Objective) -> tuple[CovariancePair, bool]:
        """B_eff and Σ as the loss sees them, and whether the canonical directions are theirs as well."""
        mean = self.mean if objective.uses_dot_products and objective.bias == "none" else torch.zeros_like(self.mean)
        decay = objective.weight_decay / (2 * objective.slope)
        if not decay and not bool(mean.any()):
            correlations = 1 - objective.alpha * (1 - self.canonical_correlations)
            effective = self.B if objective.alpha == 1 else self.Sigma - objective.alpha * self.noise
            return CovariancePair(effective, self.Sigma, self.tol, known=(correlations, self.filters)), True
        moment = torch.outer(mean, mean)
        effective = self.Sigma - objective.alpha * self.noise + moment
        effective.diagonal().sub_(decay)
        return CovariancePair(effective, self.Sigma + moment, self.tol), False
