"""The spectra of a weight matrix and of a layer's features, with their measures."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..arguments import ArrayLike, as_tensor
from . import measures
from .covariance import SketchedCovariance, StreamingCovariance
from .eigenvalues import covariance_eigenvalues, normalize, singular_values, tolerance


@dataclass
class WeightSpectrum:
    """Spectrum of a weight matrix of shape `(input, output)`.

    Attributes:
        shape (`tuple[int, int]`): Number of inputs and of outputs.
        group (`str`): Kind of layer, see [`WeightMatrix`].
        num_positive (`int`): The number of `eigenvalues` that are positive beyond rounding.
        effective_rank (`float`): Roy & Vetterli's effective rank of `singular_values`.
        stable_rank (`float`): ‖W‖_F² / σ_max².
        condition_number (`float`): σ_max / σ_min; `inf` if singular.
        gram_frobenius (`float`): ‖G − I‖_F with G the Gram matrix of the smaller side; its square is the penalty SO.
        gram_sigma_max (`float`): σ_max(G − I), which the penalty SRIP estimates.
        eigenvalues (`Tensor`): Normalized eigenvalues (Definition 1), shape `(output,)`, float64, descending, in
            [0, 1].
        singular_values (`Tensor`): Singular values of the uncentred matrix, shape `(min(input, output),)`, float64,
            descending.
    """

    shape: tuple[int, int]
    group: str
    num_positive: int
    effective_rank: float
    stable_rank: float
    condition_number: float
    gram_frobenius: float
    gram_sigma_max: float
    eigenvalues: Tensor = field(repr=False)
    singular_values: Tensor = field(repr=False)

    @classmethod
    def from_matrix(cls, matrix: ArrayLike, group: str = "") -> "WeightSpectrum":
        """Return the spectrum of a matrix.

        Args:
            matrix (`Tensor` or array): Shape `(input, output)`.
            group (`str`, defaults to `""`): Kind of layer.

        Raises:
            TypeError: `matrix` is not an array of numbers.
            ValueError: `matrix` is not two-dimensional and non-empty, or holds NaN or infinity.

        Example:
            >>> WeightSpectrum.from_matrix(np.eye(3)).gram_frobenius
            0.0
        """
        weight = as_tensor("matrix", matrix, 2, shape="(input, output)", finite=False)
        eigenvalues = covariance_eigenvalues(weight)
        singular = singular_values(weight)
        deviation = singular.square() - 1
        return cls(
            shape=(weight.shape[0], weight.shape[1]),
            group=group,
            num_positive=measures.count_positive(eigenvalues, max(weight.shape)),
            effective_rank=measures.effective_rank(singular),
            stable_rank=measures.stable_rank(singular),
            condition_number=measures.condition_number(singular),
            gram_frobenius=float(deviation.norm()),
            gram_sigma_max=float(deviation.abs().max()),
            eigenvalues=normalize(eigenvalues),
            singular_values=singular,
        )

    @property
    def dim(self) -> int:
        """Return the number of outputs, D of Definition 1."""
        return self.shape[1]

    @property
    def most_positive(self) -> int:
        """Return the maximum number of positive `eigenvalues`: at most one less than the inputs, which are centred."""
        return min(self.dim, self.shape[0] - 1)

    @property
    def exact(self) -> bool:
        """Return `True`: spectra of weights are never estimated from a sketch."""
        return True


@dataclass
class FeatureSpectrum:
    """Spectrum of one layer's features over a set of images.

    Attributes:
        dim (`int`): D, after pooling.
        num_images (`int`): N.
        pool (`str`): The pooling to one vector per image: `"none"` (not needed), `"flatten"` or `"avg"`; `"each"` if
            every token is a vector by itself.
        exact (`bool`): `False` if D was too large for the `D x D` covariance. Then `eigenvalues` contains only the
            leading ones, estimated from a sketch, `effective_rank` and `rankme` are lower bounds, and
            `participation_ratio` and `alpha` are estimates.
        largest (`float`): The covariance's largest eigenvalue, by which all are divided.
        total_variance (`float`): The covariance's trace, always exact.
        num_positive (`int`): The number of `eigenvalues` that are positive beyond rounding, that of float32 if they
            were computed in it; at most `most_positive`, and 0 if nothing varies.
        removed_by_norm (`int`): The number of directions that have no variance by construction: 1 after a LayerNorm,
            which subtracts the mean over the D channels.
        effective_rank (`float`): Roy & Vetterli's effective rank of the centred feature matrix (square roots of the
            eigenvalues); 0 if nothing varies.
        rankme (`float`): RankMe of the uncentred feature matrix.
        participation_ratio (`float`): (Σ λ)² / Σ λ².
        alpha (`float`, *optional*): α-ReQ; `None` if fewer than three eigenvalues can be fitted.
        lidar (`float`, *optional*): LiDAR; `None` if no views were given.
        eigenvalues (`Tensor`): Normalized eigenvalues of the covariance, shape `(D,)` or `(top_k,)`, float64,
            descending.
        tokens_per_image (`int`, defaults to 1): The number of vectors of each image, those of its patches if `pool` is
            `"each"`.
    """

    dim: int
    num_images: int
    pool: str
    exact: bool
    largest: float
    total_variance: float
    num_positive: int
    removed_by_norm: int
    effective_rank: float
    rankme: float
    participation_ratio: float
    alpha: float | None
    lidar: float | None
    eigenvalues: Tensor = field(repr=False)
    tokens_per_image: int = 1

    @classmethod
    def from_covariance(
        cls,
        covariance: StreamingCovariance | SketchedCovariance,
        pool: str = "none",
        lidar: float | None = None,
        removed_by_norm: int = 0,
    ) -> "FeatureSpectrum":
        """Return the spectrum of all samples accumulated in a covariance.

        Args:
            covariance ([`StreamingCovariance`] or [`SketchedCovariance`]): The accumulated covariance.
            pool (`str`, defaults to `"none"`): The pooling to one vector per image.
            lidar (`float`, *optional*): LiDAR, if it was measured.
            removed_by_norm (`int`, defaults to 0): The number of directions that a norm removes.

        Raises:
            ValueError: There are fewer than 2 samples, or they contain NaN or infinity.
        """
        eigenvalues = covariance.eigenvalues()
        eigenvalues = torch.where(eigenvalues > covariance.smallest_variance, eigenvalues, 0)
        uncentred = covariance.uncentred_eigenvalues()
        size = max(covariance.dim, covariance.count)
        total = covariance.total_variance
        # Exclude rounding noise from the entropy: its square root is 1e-8 of the largest, times D values.
        clean = torch.where(eigenvalues > tolerance(eigenvalues, size), eigenvalues, 0)
        uncentred = torch.where(uncentred > tolerance(uncentred, size), uncentred, 0)
        if covariance.exact:
            participation = measures.participation_ratio(clean)
        else:
            # The remaining eigenvalues share the rest of the trace, and none is larger than the last one returned.
            squares = clean.square().sum() + clean[-1] * (total - clean.sum()).clamp(min=0)
            participation = float(total**2 / squares) if squares > 0 else 0.0
        return cls(
            dim=covariance.dim,
            num_images=covariance.count,
            pool=pool,
            exact=covariance.exact,
            largest=float(eigenvalues[0]),
            total_variance=total,
            num_positive=measures.count_positive(eigenvalues, size),
            removed_by_norm=removed_by_norm,
            effective_rank=measures.effective_rank(clean.sqrt()),
            rankme=measures.rankme(uncentred[: covariance.count].sqrt()),
            participation_ratio=participation,
            alpha=measures.alpha_req(clean),
            lidar=lidar,
            eigenvalues=normalize(eigenvalues),
        )

    @property
    def most_positive(self) -> int:
        """Return how many eigenvalues can be positive.

        At most one less than the vectors, since they are centred, and one for each dimension that no norm removes.
        """
        return min(self.dim - self.removed_by_norm, max(self.num_vectors - 1, 0))

    @property
    def num_vectors(self) -> int:
        """Return the number of vectors whose covariance was taken: one of each image, or of each of its tokens."""
        return self.num_images * self.tokens_per_image

    @property
    def num_non_positive(self) -> int | None:
        """Return how many of the D eigenvalues are not positive; `None` if not all were computed."""
        return self.dim - self.num_positive if self.exact else None
