"""VISReg: LeJEPA's prediction, with a regularizer that treats scale, shape and centre of the embeddings apart."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..encoders import Encoder
from .base import SSLMethod, SSLOutput, TrainingRecipe, register_method
from .embedding_regularizers.visreg import VISRegSketching
from .heads import mlp
from .hyperparameters import MethodConfig, hyper
from .lejepa import check_global, count_global, embed_by_size, prediction_term

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass
class VISRegConfig(MethodConfig):
    """Hyper-parameters of [`VISReg`]; the defaults are the authors' for small data sets (Imagenette)."""

    hidden_dim: int = hyper(2048, "width of the projector's two hidden layers", at_least=1)
    output_dim: int = hyper(128, "width of the embedding", at_least=1)
    activation: str = hyper("relu", "activation of the projector", one_of=("relu", "gelu"))
    sketching_weight: float = hyper(0.6, "weight λ of the regularizer; 0.9 for large data", at_least=0, at_most=1)
    slices: int = hyper(4096, "number of random directions", at_least=1)
    scale_weight: float = hyper(1.0, "weight of the standard deviations' distance from 1", at_least=0)
    shape_weight: float = hyper(1.0, "weight of the shape; raise it for long-tailed data", at_least=0)
    centre_weight: float = hyper(1.0, "weight of the squared mean", at_least=0)
    global_views: int = hyper(0, "number of global views; 0: all of the first one's size", at_least=0)


@register_method
class VISReg(SSLMethod[VISRegConfig]):
    """Predict the mean embedding of the global views from each view, and regularize scale, shape and centre.

    L = (1 − λ)·mean over views v of MSE(z_v, μ) + λ·mean over views v of R(z_v), with LeJEPA's prediction
    ([`~lejepa.prediction_term`]), and R, of the batch of all processes, as in [`VISRegSketching`]. Its gradient stays
    large when embeddings collapse, where that of SIGReg vanishes. Views of one size are processed together.

    Source: Wu, Balestriero & Levine, 2026, eq. 1–9, arXiv 2606.02572.
    """

    name = "visreg"
    title = "VISReg"
    family = "decorrelation"
    source = "arXiv 2606.02572"
    heads = "projector 2048(BN)→2048(BN)→128"
    recipe = TrainingRecipe("adamw_torch", 1e-3, 5e-4, views="cifar-lejepa", warmup_epochs=1)
    summary = "as LeJEPA, and recovers from collapse; small, long-tailed or low-rank data; uses local crops"
    batch_coupled = True
    takes_local_views = True

    def __init__(self, encoder: Encoder, config: VISRegConfig):
        super().__init__(encoder, config)
        widths = (encoder.num_features, config.hidden_dim, config.hidden_dim, config.output_dim)
        self.projector = mlp(*widths, activation=ACTIVATIONS[config.activation])
        self.sketching = VISRegSketching(config.slices, config.scale_weight, config.shape_weight, config.centre_weight)

    def forward(self, encoder: nn.Module, views: list[Tensor]) -> SSLOutput:
        """Return the loss of all views, the first of which are global."""
        representations, embeddings = embed_by_size(encoder, self.projector, views)
        prediction = prediction_term(embeddings, count_global(views, self.config.global_views))
        sketching = self.sketching(embeddings, self.progress.generator(embeddings[0].device))
        weight = self.config.sketching_weight
        output = self.output((1 - weight) * prediction + weight * sketching, representations, embeddings)
        output.parts |= {"prediction": prediction.detach(), "sketching": sketching.detach()}
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
