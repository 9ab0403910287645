"""W-MSE: views that agree after their embeddings were whitened."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hyperparameters import hyper
from .base import EmbeddingRegularizer, register_embedding_regularizer


@register_embedding_regularizer
@dataclass
class WMSE(EmbeddingRegularizer):
    """The mean of 2 − 2·cos over all pairs of views, whose embeddings were whitened by the statistics of the batch.

    With Σ = LLᵀ the covariance of a view's embeddings, shrunk to (1 − ε)·Σ + ε·I, an embedding z becomes
    L⁻¹(z − mean). It is the whole objective of the paper: what prevents collapse is the whitening within it. Below
    d + 1 images Σ is singular; the paper takes 2d. Like the paper, `sub_batch` whitens random parts of the batch apart,
    the same images of all views together, `iterations` times.

    Source: Ermolov, Siarohin, Sangineto & Sebe, ICML 2021, section 3, arXiv 2007.06346.
    """

    name = "wmse"
    title = "W-MSE"
    summary = "pulls whitened views together, which need all directions; batches of 2d images or more"
    default_weight = 0.1
    source = "arXiv 2007.06346"
    views_needed = 2

    sub_batch: int = hyper(0, "images that are whitened together; 0: the whole batch", at_least=0)
    iterations: int = hyper(1, "random divisions into sub-batches, to average over", at_least=1)
    epsilon: float = hyper(0.0, "share ε of the identity in the covariance", at_least=0, at_most=1)

    def least_images(self, width: int) -> int:
        """Return one more than the width; with ε, which makes any covariance regular, 2."""
        return max(2 if self.epsilon else width + 1, self.sub_batch)

    def remedy_for_small_batches(self) -> str:
        """Return the option that makes a singular covariance regular."""
        return "" if self.epsilon else ", or --embedding_config epsilon=0.01"

    def check_batch(self, images: int, width: int, views: int) -> None:
        """Reject a batch or sub-batch for which the covariance is singular.

        Args:
            images (`int`): Images of a batch, over all processes.
            width (`int`): Width d of the embeddings.
            views (`int`): Views per image that have embeddings.

        Raises:
            ValueError: There are too few images or views; the message says how many are needed.
        """
        super().check_batch(images, width, views)
        if self.sub_batch and not self.epsilon and self.sub_batch <= width:
            raise ValueError(
                f"sub_batch is {self.sub_batch} and embeddings have a width of {width}: it must be {width + 1} or "
                "more, better twice the width, or pass --embedding_config epsilon=0.01"
            )

    def value(self, views: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the mean over pairs of views, and over divisions into sub-batches."""
        images = len(views[0])
        parts = images // self.sub_batch if self.sub_batch else 1
        total = views[0].new_zeros(())
        for _ in range(self.iterations if parts > 1 else 1):
            order = torch.randperm(images, generator=generator, device=generator.device).to(views[0].device)
            for rows in order.tensor_split(parts):
                whitened = torch.stack([F.normalize(whiten(z[rows], self.epsilon), dim=1) for z in views])
                total = total + _pair_distances(whitened).sum()
        return total / (images * (self.iterations if parts > 1 else 1))


def whiten(embeddings: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return centred embeddings whose covariance is the identity, by the Cholesky factor of their covariance.

    Args:
        embeddings (`Tensor` of shape `(B, d)`): Embeddings, in float32 or better.
        epsilon (`float`, defaults to 0): Share of the identity in the covariance.

    Raises:
        ValueError: The covariance is singular.
    """
    centred = embeddings - embeddings.mean(dim=0)
    covariance = centred.T @ centred / (len(centred) - 1)
    shrunk = (1 - epsilon) * covariance + epsilon * torch.eye(len(covariance)).to(covariance)
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    if failed:
        raise ValueError(
            f"wmse cannot whiten {len(embeddings)} embeddings of width {embeddings.shape[1]}, whose covariance is "
            f"singular (epsilon={epsilon:g}): pass --embedding_config epsilon=0.01, or a larger batch"
        )
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


def _pair_distances(unit: Tensor) -> Tensor:
    """Return the mean of 2 − 2·cos over all pairs of views, for each image of `(V, B, d)` of unit length."""
    views = len(unit)
    # The squared length of the sum is V plus twice the sum of all cosines.
    cosines = (unit.sum(dim=0).square().sum(dim=1) - unit.square().sum(dim=(0, 2))) / 2
    return 2 - 2 * cosines / (views * (views - 1) / 2)
