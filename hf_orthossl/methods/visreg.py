"""VISReg: LeJEPA's prediction, with a regularizer that treats scale, shape and centre of the embeddings apart."""

from dataclasses import dataclass

from torch import nn

from ..encoders import Encoder
from .base import TrainingRecipe, register_method
from .embedding_regularizers.visreg import VISRegSketching
from .heads import mlp
from .hyperparameters import hyper
from .mean_prediction import MeanPrediction, MeanPredictionConfig

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass
class VISRegConfig(MeanPredictionConfig):
    """Hyper-parameters of [`VISReg`]; the defaults are the authors' for small data sets (Imagenette)."""

    output_dim: int = hyper(128, "width of the embedding", at_least=1)
    activation: str = hyper("relu", "activation of the projector", one_of=("relu", "gelu"))
    sketching_weight: float = hyper(0.6, "weight λ of the regularizer; 0.9 for large data", at_least=0, at_most=1)
    slices: int = hyper(4096, "number of random directions", at_least=1)
    scale_weight: float = hyper(1.0, "weight of the standard deviations' distance from 1", at_least=0)
    shape_weight: float = hyper(1.0, "weight of the shape; raise it for long-tailed data", at_least=0)
    centre_weight: float = hyper(1.0, "weight of the squared mean", at_least=0)


@register_method
class VISReg(MeanPrediction[VISRegConfig]):
    """Predict the mean embedding of the global views from each view, and regularize scale, shape and centre.

    L = (1 − λ)·mean over views v of MSE(z_v, μ) + λ·mean over views v of R(z_v), with LeJEPA's prediction
    ([`~mean_prediction.prediction_term`]), and R, of the batch of all processes, as in [`VISRegSketching`]. Its
    gradient stays large when embeddings collapse, where that of SIGReg vanishes. Views of one size are processed
    together.

    Source: Wu, Balestriero & Levine, 2026, eq. 1–9, arXiv 2606.02572.
    """

    name = "visreg"
    title = "VISReg"
    source = "arXiv 2606.02572"
    heads = "projector 2048(BN)→2048(BN)→128"
    recipe = TrainingRecipe("adamw_torch", 1e-3, 5e-4, views="cifar-lejepa", warmup_epochs=1)
    summary = "as LeJEPA, and recovers from collapse; small, long-tailed or low-rank data; uses local crops"
    term = "sketching"

    def __init__(self, encoder: Encoder, config: VISRegConfig):
        super().__init__(encoder, config)
        widths = (encoder.num_features, config.hidden_dim, config.hidden_dim, config.output_dim)
        self.projector = mlp(*widths, activation=ACTIVATIONS[config.activation])
        weights = config.scale_weight, config.shape_weight, config.centre_weight
        self.regularizer, self.weight = VISRegSketching(config.slices, *weights), config.sketching_weight
