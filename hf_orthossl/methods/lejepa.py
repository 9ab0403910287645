"""LeJEPA: all views predict the mean embedding of the global ones, and embeddings are isotropic Gaussian."""

from dataclasses import dataclass

from ..encoders import Encoder
from .base import TrainingRecipe, register_method
from .embedding_regularizers.sigreg import SIGReg
from .heads import mlp
from .hyperparameters import hyper
from .mean_prediction import MeanPrediction, MeanPredictionConfig


@dataclass
class LeJEPAConfig(MeanPredictionConfig):
    """Hyper-parameters of [`LeJEPA`]; the defaults are those that the paper recommends, and its best projector."""

    sigreg_weight: float = hyper(0.05, "weight λ of SIGReg; the prediction has 1 − λ", at_least=0, at_most=1)
    slices: int = hyper(1024, "number of random directions of SIGReg", at_least=1)
    points: int = hyper(17, "points of SIGReg's integral in [0, t_max]", at_least=2)
    t_max: float = hyper(5.0, "largest frequency of SIGReg's integral", above=0)


@register_method
class LeJEPA(MeanPrediction[LeJEPAConfig]):
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
    source = "arXiv 2511.08544"
    heads = "projector 2048(BN)→2048(BN)→64"
    recipe = TrainingRecipe("adamw_torch", 2e-3, 5e-4, views="cifar-lejepa", warmup_epochs=1)
    summary = "one trade-off to tune, any backbone; stable where others need schedules; uses local crops"
    term = "sigreg"

    def __init__(self, encoder: Encoder, config: LeJEPAConfig):
        super().__init__(encoder, config)
        self.projector = mlp(encoder.num_features, config.hidden_dim, config.hidden_dim, config.output_dim)
        self.regularizer, self.weight = SIGReg(config.slices, config.points, config.t_max), config.sigreg_weight
