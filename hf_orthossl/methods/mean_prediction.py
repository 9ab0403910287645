"""Predict the mean embedding of an image's global views from each view: the part that LeJEPA and VISReg share."""

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .base import SSLMethod, SSLOutput
from .embedding_regularizers import EmbeddingRegularizer
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision


@dataclass
class MeanPredictionConfig(MethodConfig):
    """Hyper-parameters that LeJEPA and VISReg share."""

    hidden_dim: int = hyper(2048, "width of the projector's two hidden layers", at_least=1)
    output_dim: int = hyper(64, "width of the embedding", at_least=1)
    global_views: int = hyper(0, "number of global views; 0: all of the first one's size", at_least=0)


MeanPredictionT = TypeVar("MeanPredictionT", bound=MeanPredictionConfig)


class MeanPrediction(SSLMethod[MeanPredictionT]):
    """Predict the mean embedding of the global views from each view, and regularize the embeddings.

    L = (1 − λ)·[`prediction_term`] + λ·R(z). Views of one size pass through encoder and projector together, as in the
    authors' code, so that batch norm has the statistics of them all. A subclass sets the attributes below.

    Source: LeJEPA, Balestriero & LeCun, 2025, eq. 9 and Algorithm 2, arXiv 2511.08544.

    Attributes:
        projector (`nn.Module`): Maps representations `(B, D)` to embeddings `(B, d)`.
        regularizer ([`EmbeddingRegularizer`]): R, of the batch of all processes.
        weight (`float`): λ in [0, 1].
        term (`str`): The name under which R is logged.
    """

    family = "decorrelation"
    batch_coupled = True
    takes_local_views = True
    term: ClassVar[str]

    projector: nn.Module
    regularizer: EmbeddingRegularizer
    weight: float

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views, the first of which are global."""
        representations, embeddings = embed_by_size(encoder, self.projector, views)
        as_large = sum(view.shape == views[0].shape for view in views)
        prediction = prediction_term(embeddings, self.config.global_views or as_large)
        spread = self.regularizer(embeddings, self.progress.generator(embeddings[0].device))
        loss = (1 - self.weight) * prediction + self.weight * spread
        output = self.output(loss, representations, embeddings)
        output.parts |= {"prediction": prediction.detach(), self.term: spread.detach()}
        return output

    def check_batch(self, batch_size: int, views: int) -> None:
        """Reject a batch that this method cannot train on.

        Args:
            batch_size (`int`): Images per optimizer step over all processes and accumulation steps.
            views (`int`): Views per image.

        Raises:
            ValueError: If there are too few views.
        """
        super().check_batch(batch_size, views)
        if self.config.global_views > views:
            raise ValueError(
                f"global_views is {self.config.global_views}, but the recipe has {views} views per image: pass "
                f"--method_config global_views={views}, or 0 for those of full size"
            )


def embed_by_size(encoder: nn.Module, projector: nn.Module, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return representations and embeddings of each view; views of one size pass through the networks together.

    Args:
        encoder (`nn.Module`): Maps `(B, C, H, W)` to `(B, D)`.
        projector (`nn.Module`): Maps `(B, D)` to `(B, d)`.
        views (`list[Tensor]`): V tensors `(B, C, H, W)`, of any sizes H × W.
    """
    numbers: dict[torch.Size, list[int]] = {}
    for number, view in enumerate(views):
        numbers.setdefault(view.shape, []).append(number)
    representations: dict[int, Tensor] = {}
    embeddings: dict[int, Tensor] = {}
    for group in numbers.values():
        together = encoder(torch.cat([views[number] for number in group]))
        representations.update(zip(group, together.chunk(len(group)), strict=True))
        embeddings.update(zip(group, projector(together).chunk(len(group)), strict=True))
    return [representations[v] for v in range(len(views))], [embeddings[v] for v in range(len(views))]


@full_precision
def prediction_term(embeddings: list[Tensor], global_views: int) -> Tensor:
    """Return the mean squared difference between each view's embedding and the mean of the global views' ones.

    Source: LeJEPA, Balestriero & LeCun 2025, eq. 7, with the mean over dimensions of Algorithm 2.

    Args:
        embeddings (`list[Tensor]`): Embeddings `(B, d)` of each view, global views first.
        global_views (`int`): Number of global views, at least 1.
    """
    together = torch.stack(embeddings)
    return (together - together[:global_views].mean(dim=0)).square().mean()
