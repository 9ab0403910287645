"""The losses of the linear theory, which act on the representation: they have no heads and no state."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.gather import all_gather
from .base import ConfigT, SSLMethod, SSLOutput, TrainingRecipe, register_method
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision, normalize, own_rows


class TheoryLoss(SSLMethod[ConfigT]):
    """A loss of representations `(B, D)` without a projector, for encoders that the theory describes.

    The theory writes a loss as α·alignment + uniformity, where alignment is ½E‖f − f⁺‖² over the two views of an image;
    α = 1 is the published loss.

    Source: Ziyin, Lubana, Ueda & Tanaka, ICLR 2023, arXiv 2210.00638.
    """

    family = "theory"
    batch_coupled = True
    heads = "none: acts on the representation"
    recipe = TrainingRecipe("adam", 3e-3, 0.0, views="cifar-simclr", lr_batch_size=None)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of the first two views."""
        representations = [encoder(view) for view in views[:2]]
        return self.output(self.loss(*representations), representations, representations)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of a batch of representations `(B, D)` of two views; subclasses must define it."""
        raise TypeError(f"{type(self).__name__} does not define loss(first, second)")


@dataclass
class InfoNCEConfig(MethodConfig):
    """Hyper-parameters of [`InfoNCE`]; the defaults are SimCLR's."""

    similarity: str = hyper(
        "cosine", "similarity from which the logits are computed", one_of=("cosine", "euclidean", "standardized")
    )
    temperature: float = hyper(0.5, "softmax temperature of the loss", above=0)
    alignment: float = hyper(1.0, "weight α of the positive pairs", above=0)


@register_method
class InfoNCE(TheoryLoss[InfoNCEConfig]):
    """SimCLR's loss on the representation, with one of three similarities.

    ℓ_i = −α·s(f_i, f_j)/T + log Σ_{k≠i} exp(s(f_i, f_k)/T), averaged over the 2B representations of both views of the
    batch, where j is the other view of i and k runs over both views of all images on all processes. `similarity` is

    - `"cosine"`: the cosine of each pair, as in NT-Xent (Chen et al. 2020, arXiv 2002.05709, eq. 1);
    - `"euclidean"`: −½‖f_i − f_k‖². At T = 1 and large B the loss is α·½E‖f − f⁺‖² + E log E exp(−½‖f − f′‖²) + log 2B,
      which the theory solves exactly for Gaussian views. This needs log 2B well above ½·Σ log(1 + m), where m are the
      eigenvalues of the covariance of f: the batch must contain the near neighbours that dominate the inner
      expectation;
    - `"standardized"`: f_i·f_k after centring the batch and dividing it by its root mean squared norm, one number for
      the whole batch. This is the theory's normalization, Tr M = 1 on average. Cosine similarity makes every single
      norm 1, which is not a linear operation, and follows the theory only as far as the norms are nearly equal.
    """

    name = "infonce"
    title = "InfoNCE"
    summary = "the contrastive loss of the forecast's theory, on the representation"
    source = "arXiv 2210.00638"

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of a batch of representations `(B, D)` of two views."""
        queries = torch.cat([first, second])
        everything = torch.cat([all_gather(first), all_gather(second)])
        rows, images = own_rows(len(first), first.device), len(everything) // 2
        itself, other = torch.cat([rows, rows + images]), torch.cat([rows + images, rows])
        logits = self._similarities(queries, everything) / self.config.temperature
        positives = logits.gather(1, other[:, None]).mean()
        logits = logits.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(logits, other) + (1 - self.config.alignment) * positives

    def _similarities(self, queries: Tensor, everything: Tensor) -> Tensor:
        if self.config.similarity == "cosine":
            return normalize(queries) @ normalize(everything).T
        # The other two similarities do not depend on the mean. Subtract it, so that differences of squares are exact.
        mean = everything.mean(dim=0)
        queries, everything = queries - mean, everything - mean
        squares = everything.square().sum(dim=1)
        if self.config.similarity == "standardized":
            return queries @ everything.T / squares.mean()
        return queries @ everything.T - 0.5 * (queries.square().sum(dim=1, keepdim=True) + squares)


@dataclass
class SpectralConfig(MethodConfig):
    """Hyper-parameters of [`SpectralContrastive`]."""

    alignment: float = hyper(1.0, "weight α of the positive pairs", above=0)
    centred: bool = hyper(False, "subtract the mean of the batch from the representations first")


@register_method
class SpectralContrastive(TheoryLoss[SpectralConfig]):
    """The spectral contrastive loss, whose minimum is a low-rank factorization of the augmentation graph.

    L = −2·E[f·f⁺] + E[(f·f′)²] over all processes, where f′ is a view of another image; with α ≠ 1, (α − 1)·E‖f − f⁺‖²
    is added. For linear encoders it is exactly −2·Tr[WBWᵀ] + Tr[(WΣWᵀ)²], whatever the distribution of views. With
    `centred`, the mean of the images is subtracted; without it, the mean takes up one dimension, unless the encoder has
    a bias that removes it.

    Source: HaoChen, Wei, Gaidon & Ma, NeurIPS 2021, eq. 6, arXiv 2106.04156.
    """

    name = "spectral"
    title = "Spectral contrastive"
    summary = "the spectral contrastive loss of the theory, whose minimum has a closed form"
    source = "arXiv 2106.04156"

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of a batch of representations `(B, D)` of two views, B ≥ 2."""
        first, second = all_gather(first), all_gather(second)
        if self.config.centred:
            mean = (first.mean(dim=0) + second.mean(dim=0)) / 2
            first, second = first - mean, second - mean
        products = first @ second.T
        positives, images = products.diagonal(), len(products)
        negatives = (products.square().sum() - positives.square().sum()) / (images * (images - 1))
        distances = (first - second).square().sum(dim=1).mean()
        return negatives - 2 * positives.mean() + (self.config.alignment - 1) * distances
