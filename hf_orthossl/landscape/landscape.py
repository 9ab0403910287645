"""The landscape of self-supervised losses for a linear encoder, in closed form from two covariances of views."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..arguments import ArrayLike, as_float, as_int, as_tensor
from .covariance_pair import CovariancePair, check_covariances, check_spans
from .imbalance import ClassDirections, class_directions
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
    """Predict what a linear encoder learns, and which directions of its input it loses, before training.

    All predictions follow from the canonical correlations k between two views of an image: the share of each direction
    that augmentation does not change. Methods that take `loss` and `**settings` pass them to [`Objective`], which
    defines the losses; they raise `ValueError` if the theory has no derivation. Computations run in float64 on Sigma's
    device.

    Args:
        B (`Tensor` or array): Covariance Cov(E[x | image]) of what survives augmentation, shape `(D, D)`: the
            symmetrized covariance between two views.
        Sigma (`Tensor` or array): Covariance Cov(x) of views, shape `(D, D)`.
        mean (`Tensor` or array, *optional*): E[x] of shape `(D,)`, defaults to 0. It has an effect only without a bias.
        tol (`float`, defaults to 1e-9): Directions in which the variance of views is below `tol` times the largest are
            dropped.
        slack (`float`, defaults to 1e-6): Tolerance for rounding: how far canonical correlations, which are clipped,
            may lie outside [0, 1], and how asymmetric the matrices may be relative to their largest entry.

    Attributes:
        canonical_correlations (`Tensor`): k, shape `(rank,)`, descending, in [0, 1].
        filters (`Tensor`): w of shape `(rank, D)`, wΣwᵀ = 1: the encoder rows that extract the directions.

    Raises:
        TypeError: An argument is not an array of numbers.
        ValueError: A matrix is not square, symmetric, finite and positive semi-definite, or B exceeds Σ, by more than
            `slack`.

    Source:
        "What shapes the loss landscape of self-supervised learning?" (Ziyin et al., ICLR 2023, arXiv 2210.00638).

    Example:
        Three directions of unit variance, of which augmentation preserves 90, 50 and 10 %:

        >>> landscape = LinearLandscape(np.diag([0.9, 0.5, 0.1]), np.eye(3))
        >>> minimum = landscape.minimum("spectral", alpha=1.5)
        >>> minimum.surviving, minimum.critical_correlation
        (2, 0.33333333333333337)
        >>> landscape.gamma_to_revive(loss="spectral", alpha=1.5)
        0.3500000000000001
    """

    def __init__(
        self,
        B: ArrayLike,
        Sigma: ArrayLike,
        *,
        mean: ArrayLike | None = None,
        tol: float = 1e-9,
        slack: float = 1e-6,
    ) -> None:
        self.tol, slack = as_float("tol", tol, at_least=0), as_float("slack", slack, at_least=0)
        self.B, self.Sigma = check_covariances(B, Sigma, slack)
        self.mean = self._mean(mean)
        pair = CovariancePair(self.B, self.Sigma, self.tol)
        check_spans(pair, slack)
        self.canonical_correlations = pair.correlations.clamp(0, 1)
        self.filters = pair.filters
        if bool((pair.correlations != self.canonical_correlations).any()):
            self.B = self.patterns.T @ (self.canonical_correlations[:, None] * self.patterns)

    @property
    def dimension(self) -> int:
        """Return D, the number of inputs."""
        return len(self.Sigma)

    @property
    def rank(self) -> int:
        """Return the number of dimensions in which views vary."""
        return len(self.canonical_correlations)

    @property
    def dropped(self) -> int:
        """Return D − rank, the number of dimensions in which views do not vary."""
        return self.dimension - self.rank

    @property
    def noise(self) -> Tensor:
        """Return C = Σ − B of shape `(D, D)`: what augmentation changes."""
        return self.Sigma - self.B

    @cached_property
    def patterns(self) -> Tensor:
        """Return Σw of shape `(rank, D)`: the canonical directions as inputs, for display; B = Σ k·p·pᵀ."""
        return self.filters @ self.Sigma

    def loss(
        self, weights: ArrayLike, loss: str = "quartic", *, offset: ArrayLike | None = None, **settings: Any
    ) -> Tensor:
        """Return the loss at any weights, differentiable.

        Args:
            weights (`Tensor` or array): W of shape `(dim, D)`.
            loss (`str`, defaults to `"quartic"`): A loss of [`Objective`].
            offset (`Tensor` or array, *optional*): b of shape `(dim,)` with `bias="learnable"`, where it defaults to 0.
            **settings (`float` or `str`): Its settings, as in [`Objective`].

        Returns:
            `Tensor`: A scalar.

        Raises:
            TypeError: An argument is not an array of numbers.
            ValueError: The shapes do not match, or a setting is out of range.
        """
        objective = self._objective(loss, settings)
        matrix = as_tensor("weights", weights, 2, shape=f"(dim, {self.dimension})", finite=False).to(self.Sigma)
        if matrix.shape[1] != self.dimension:
            raise ValueError(f"weights has shape {tuple(matrix.shape)}: pass (dim, {self.dimension})")
        bias = None
        if offset is not None:
            bias = as_tensor("offset", offset, 1, shape=f"({len(matrix)},)", finite=False).to(matrix)
            if len(bias) != len(matrix):
                raise ValueError(f"offset has shape {tuple(bias.shape)}: pass ({len(matrix)},)")
        return landscape_loss(objective, matrix, self.B, self.Sigma, self.mean, bias)

    def minimum(self, loss: str = "quartic", *, dim: int | None = None, **settings: Any) -> Minimum:
        """Return the global minimum, which determines the spectrum of the representation.

        Without the penalty there is a closed form. With `gamma > 0` there is one if the outputs suffice for all
        directions that can survive, and either B_eff and Σ commute or all directions survive; otherwise the minimum is
        the best of several L-BFGS runs.

        Args:
            loss (`str`, defaults to `"quartic"`): A loss of [`Objective`].
            dim (`int`, *optional*): The number of outputs of the encoder, at least 1, defaults to D. Outputs past D
                remain 0.
            **settings (`float` or `str`): Its settings, as in [`Objective`].

        Returns:
            [`Minimum`]: Eigenvalues, weights, surviving directions and the loss.

        Raises:
            ValueError: A setting is out of range, the theory has no derivation for the combination, or the loss has no
                minimum.

        Example:
            >>> LinearLandscape(np.diag([0.9, 0.1]), np.eye(2)).minimum("infonce", alpha=2.0).alive
            tensor([ True, False])
        """
        objective = self._objective(loss, settings)
        pair, canonical = self._pair(objective)
        outputs = self._outputs(dim)
        if objective.gamma:
            return find_penalized_minimum(objective, pair, outputs, mean=self.mean, patterns=self.patterns)
        correlations = self.canonical_correlations if canonical else None
        return find_minimum(objective, pair, outputs, mean=self.mean, patterns=self.patterns, correlations=correlations)

    def stationary_points(
        self, loss: str = "quartic", *, dim: int | None = None, limit: int | None = 100, **settings: Any
    ) -> Iterator[StationaryPoint]:
        """Yield the points at which the gradient vanishes, lowest loss first.

        There is one for each set of at most `dim` surviving directions: the first is the minimum, all others are
        saddles, at which training can stall.

        Args:
            loss (`str`, defaults to `"quartic"`): A loss of [`Objective`]; not `"normalized"`, and no `gamma`.
            dim (`int`, *optional*): The number of outputs of the encoder, at least 1, defaults to D.
            limit (`int`, *optional*, defaults to 100): Maximum number of points to yield; `None` for all of up to 2^D.
            **settings (`float` or `str`): Its settings, as in [`Objective`].

        Yields:
            [`StationaryPoint`]: Its surviving directions, weights, loss, and number of downward directions.

        Raises:
            ValueError: A setting is out of range, or the theory has no derivation for the combination.

        Example:
            >>> landscape = LinearLandscape(np.diag([0.9, 0.5]), np.eye(2))
            >>> for point in landscape.stationary_points("spectral"):
            ...     print(point.directions, point.kind, point.index, round(point.value, 2))
            (0, 1) minimum 0 -1.06
            (0,) saddle 1 -0.81
            (1,) saddle 2 -0.25
            () saddle 4 0
        """
        objective = self._objective(loss, settings)
        most = None if limit is None else as_int("limit", limit, at_least=1)
        return stationary_points(objective, self._pair(objective)[0], self._outputs(dim), most)

    def hessian_at_origin(self, loss: str = "quartic", **settings: Any) -> OriginHessian:
        """Return the Hessian at W = 0, complete collapse: a minimum if it has no negative eigenvalue.

        Args:
            loss (`str`, defaults to `"quartic"`): A loss of [`Objective`]; not `"normalized"`.
            **settings (`float` or `str`): Its settings, as in [`Objective`].

        Returns:
            [`OriginHessian`]: Its D eigenvalues, each of which belongs to every output.

        Raises:
            ValueError: A setting is out of range, or the theory has no derivation for the combination.

        Example:
            >>> LinearLandscape(np.diag([0.9, 0.1]), np.eye(2)).hessian_at_origin(alpha=20.0).kind
            'minimum'
        """
        objective = self._objective(loss, settings)
        return hessian_at_origin(objective, self._pair(objective)[0])

    def collapse_threshold(self, setting: str, loss: str = "quartic", **settings: Any) -> CollapseThreshold:
        """Return the value of one setting from which each direction collapses, with all other settings fixed.

        Args:
            setting (`str`): `"alpha"`, `"weight_decay"` or, with `loss="normalized"`, `"temperature"`.
            loss (`str`, defaults to `"quartic"`): A loss of [`Objective`]; no `gamma`.
            **settings (`float` or `str`): Its settings, as in [`Objective`].

        Returns:
            [`CollapseThreshold`]: One value for each direction, and the value from which none survives.

        Raises:
            ValueError: A setting is out of range or unknown, or the theory has no derivation for the combination.

        Example:
            >>> LinearLandscape(np.diag([0.9, 0.5]), np.eye(2)).collapse_threshold("alpha").values
            tensor([10.0000,  2.0000], dtype=torch.float64)
        """
        settings.pop(setting, None)
        objective = self._objective(loss, settings)
        return collapse_threshold(setting, objective, self._pair(objective)[0])

    def gamma_to_revive(self, direction: int | None = None, loss: str = "quartic", **settings: Any) -> float:
        """Return the smallest weight of the orthogonality penalty that revives a direction, with D or more outputs.

        If B_eff and Σ commute this is −b/2 for the quartic loss, with b the eigenvalue of B_eff along the direction.
        Otherwise directions mix, and a direction counts as surviving if half of its variance is captured; γ then has
        three correct digits.

        Args:
            direction (`int`, *optional*): Index of a canonical direction; by default, all of them must survive.
            loss (`str`, defaults to `"quartic"`): A loss of [`Objective`]; not `"normalized"`.
            **settings (`float` or `str`): Its settings, as in [`Objective`].

        Returns:
            `float`: γ, or 0 if the direction survives without the penalty; it collapses just below.

        Raises:
            ValueError: There is no such direction, a setting is out of range, or the theory has no derivation for the
                combination.

        Example:
            >>> LinearLandscape(np.diag([0.9, 0.1]), np.eye(2)).gamma_to_revive(1, alpha=2.0)
            0.4
        """
        settings.pop("gamma", None)
        objective = self._objective(loss, settings)
        if direction is not None:
            direction = as_int("direction", direction, at_least=0, at_most=self.rank - 1)
        return smallest_reviving_gamma(objective, self._pair(objective)[0], self.patterns, direction)

    def surviving_under_temperature(self, temperature: float, *, alpha: float = 1.0, dim: int | None = None) -> int:
        """Return how many directions normalized features keep: all r with Σ_{i≤r} temperature·alpha·(k_i − k_r) < 1.

        Args:
            temperature (`float`): T > 0 of the cosine logits.
            alpha (`float`, defaults to 1.0): The weight of the alignment, as in [`Objective`].
            dim (`int`, *optional*): The number of outputs of the encoder, at least 1, defaults to D.

        Raises:
            ValueError: A setting is out of range.
        """
        objective = Objective("normalized", temperature=temperature, alpha=alpha)
        return surviving_dimensions(objective, self.canonical_correlations, self._outputs(dim))

    def label_signal(
        self, class_means: ArrayLike, shares: ArrayLike, alive: ArrayLike, *, images: int | None = None
    ) -> LabelSignal:
        """Return whether the predicted collapse affects the labels: the function [`label_signal`] with these filters.

        Args:
            class_means (`Tensor` or array): Mean view of each class, shape `(classes, D)`, at least two classes.
            shares (`Tensor` or array): Share of each class, shape `(classes,)`; scaled to a sum of 1.
            alive (`Tensor` or array): Mask of the surviving directions, shape `(rank,)`, as in `Minimum.alive`.
            images (`int`, *optional*): The number of images behind the means.
        """
        return label_signal(self.filters, class_means, shares, alive, images=images)

    def class_directions(
        self, class_means: ArrayLike, shares: ArrayLike, alive: ArrayLike, *, images: int | None = None
    ) -> ClassDirections:
        """Return which classes keep a direction: the function [`class_directions`] with these filters and correlations.

        Args:
            class_means (`Tensor` or array): Mean view of each class, shape `(classes, D)`, at least two classes.
            shares (`Tensor` or array): Share of each class, shape `(classes,)`; scaled to a sum of 1.
            alive (`Tensor` or array): Mask of the surviving directions, shape `(rank,)`, as in `Minimum.alive`.
            images (`int`, *optional*): The number of images behind the means.
        """
        return class_directions(self.filters, self.canonical_correlations, class_means, shares, alive, images=images)

    def _mean(self, mean: ArrayLike | None) -> Tensor:
        if mean is None:
            return self.Sigma.new_zeros(len(self.Sigma))
        vector = as_tensor("mean", mean, 1, shape=f"({self.dimension},)").detach()
        if len(vector) != self.dimension:
            raise ValueError(f"mean has shape {tuple(vector.shape)}: pass ({self.dimension},)")
        return vector.to(self.Sigma)

    def _objective(self, loss: str, settings: dict[str, Any]) -> Objective:
        objective = Objective(loss, **settings)
        if objective.loss == "normalized" and objective.bias == "none" and bool(self.mean.any()):
            raise ValueError(
                "bias='none' has no derivation with loss='normalized' and a mean: pass bias='centred', or no mean"
            )
        return objective

    def _outputs(self, dim: int | None) -> int:
        return self.dimension if dim is None else as_int("dim", dim, at_least=1)

    def _pair(self, objective: Objective) -> tuple[CovariancePair, bool]:
        """Return B_eff and Σ of the loss, and whether they have the same canonical directions as B and Σ."""
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
