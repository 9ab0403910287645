"""LeJEPA: all views predict the mean embedding of the global ones, and embeddings are isotropic Gaussian."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .embedding_regularizers.sigreg import SIGReg
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .losses import full_precision


@dataclass
class LeJEPAConfig(MethodConfig):
    """Hyper-parameters of [`LeJEPA`]; the defaults are those that the paper recommends, and its best projector."""

    hidden_dim: int = hyper(2048, "width of the projector's two hidden layers", at_least=1)
    output_dim: int = hyper(64, "width of the embedding", at_least=1)
    sigreg_weight: float = hyper(0.05, "weight λ of SIGReg; the prediction has 1 − λ", at_least=0, at_most=1)
    slices: int = hyper(1024, "number of random directions of SIGReg", at_least=1)
    points: int = hyper(17, "points of SIGReg's integral in [0, t_max]", at_least=2)
    t_max: float = hyper(5.0, "largest frequency of SIGReg's integral", above=0)
    global_views: int = hyper(0, "number of global views; 0: all of the first one's size", at_least=0)


@register_method
class LeJEPA(SSLMethod[LeJEPAConfig]):
    """Predict the mean embedding of the global views from each view, and make embeddings isotropic Gaussian.

    L = (1 − λ)·mean over views v of MSE(z_v, μ) + λ·mean over views v of SIGReg(z_v), where μ is the mean embedding of
    the image's global views, with its gradient, and [`SIGReg`] takes the batch of all processes. There is no target
    network, no predictor and no stopped gradient. MSE is the mean over dimensions too, as in the paper's Algorithm 2;
    its eq. 6 has the sum. Further views are local crops. The encoder processes all views of one size together, as the
    authors' code does, so that batch norm has the statistics of them all.

    Source: Balestriero & LeCun, 2025, eq. 9, Algorithms 1 and 2, arXiv 2511.08544.
    """

    name = "lejepa"
    title = "LeJEPA"
    family = "decorrelation"
    source = "arXiv 2511.08544"
    heads = "projector 2048(BN)→2048(BN)→64"
    recipe = TrainingRecipe("adamw_torch", 2e-3, 5e-4, views="cifar-lejepa", warmup_epochs=1)
    summary = "one trade-off to tune, any backbone; stable where others need schedules; uses local crops"
    batch_coupled = True
    takes_local_views = True

    def __init__(self, encoder: Encoder, config: LeJEPAConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.hidden_dim, config.output_dim)
        self.sigreg = SIGReg(config.slices, config.points, config.t_max)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views, the first of which are global."""
        representations, embeddings = embed_by_size(encoder, self.projector, views)
        prediction = prediction_term(embeddings, count_global(views, self.config.global_views))
        sigreg = self.sigreg(embeddings, self.progress.generator(embeddings[0].device))
        weight = self.config.sigreg_weight
        output = self.output((1 - weight) * prediction + weight * sigreg, representations, embeddings)
        output.parts |= {"prediction": prediction.detach(), "sigreg": sigreg.detach()}
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
        check_global(self.config.global_views, views)


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


def count_global(views: list[Tensor], count: int) -> int:
    """Return the number of global views, which come first: `count`, or if that is 0, those as large as the first."""
    return count or sum(view.shape == views[0].shape for view in views)


def check_global(count: int, views: int) -> None:
    """Raise a `ValueError` if a method is to take more views as global than there are."""
    if count > views:
        raise ValueError(
            f"global_views is {count}, but the recipe has {views} views per image: pass --method_config "
            f"global_views={views}, or 0 for those of full size"
        )


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
