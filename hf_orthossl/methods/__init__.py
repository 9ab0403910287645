"""Self-supervised methods, one file each, and their registry."""

from .base import (
    METHODS,
    THEORY_LOSSES,
    Progress,
    SSLMethod,
    SSLOutput,
    TrainingRecipe,
    build_method,
    embedding_std,
    get_method,
    register_method,
)

# The order of the registry: contrastive, distillation, decorrelation, clustering.
from .simclr import SimCLR, SimCLRConfig  # isort: skip
from .dcl import DCL, DCLW, DCLConfig, DCLWConfig  # isort: skip
from .nnclr import NNCLR, NNCLRConfig  # isort: skip
from .mocov2plus import MoCoV2Plus, MoCoV2PlusConfig  # isort: skip
from .mocov3 import MoCoV3, MoCoV3Config  # isort: skip
from .byol import BYOL, BYOLConfig  # isort: skip
from .nnbyol import NNBYOL, NNBYOLConfig  # isort: skip
from .simsiam import SimSiam, SimSiamConfig  # isort: skip
from .dino import DINO, DINOConfig  # isort: skip
from .ibot import IBOT, IBOTConfig  # isort: skip
from .dinov2 import DINOv2, DINOv2Config  # isort: skip
from .distill import Distill, DistillConfig  # isort: skip
from .barlow_twins import BarlowTwins, BarlowTwinsConfig  # isort: skip
from .vicreg import VICReg, VICRegConfig  # isort: skip
from .lejepa import LeJEPA, LeJEPAConfig  # isort: skip
from .visreg import VISReg, VISRegConfig  # isort: skip
from .swav import SwAV, SwAVConfig  # isort: skip
from .mae import MAE, MAEConfig  # isort: skip
from .simmim import SimMIM, SimMIMConfig  # isort: skip
from .ijepa import IJEPA, IJEPAConfig  # isort: skip
from .theory_losses import InfoNCE, InfoNCEConfig, SpectralConfig, SpectralContrastive  # isort: skip
from .hyperparameters import MethodConfig, hyper  # isort: skip
from .gradient_cache import ChunkedEncoder  # isort: skip
from .embedding_regularizers import (  # isort: skip
    EMBEDDING_REGULARIZERS,
    EmbeddingRegularizer,
    get_embedding_regularizer,
    register_embedding_regularizer,
)

__all__ = [
    "BYOL",
    "DCL",
    "DCLW",
    "DINO",
    "EMBEDDING_REGULARIZERS",
    "IBOT",
    "IJEPA",
    "MAE",
    "METHODS",
    "NNBYOL",
    "NNCLR",
    "THEORY_LOSSES",
    "BYOLConfig",
    "BarlowTwins",
    "BarlowTwinsConfig",
    "ChunkedEncoder",
    "DCLConfig",
    "DCLWConfig",
    "DINOConfig",
    "DINOv2",
    "DINOv2Config",
    "Distill",
    "DistillConfig",
    "EmbeddingRegularizer",
    "IBOTConfig",
    "IJEPAConfig",
    "InfoNCE",
    "InfoNCEConfig",
    "LeJEPA",
    "LeJEPAConfig",
    "MAEConfig",
    "MethodConfig",
    "MoCoV2Plus",
    "MoCoV2PlusConfig",
    "MoCoV3",
    "MoCoV3Config",
    "NNBYOLConfig",
    "NNCLRConfig",
    "Progress",
    "SSLMethod",
    "SSLOutput",
    "SimCLR",
    "SimCLRConfig",
    "SimMIM",
    "SimMIMConfig",
    "SimSiam",
    "SimSiamConfig",
    "SpectralConfig",
    "SpectralContrastive",
    "SwAV",
    "SwAVConfig",
    "TrainingRecipe",
    "VICReg",
    "VICRegConfig",
    "VISReg",
    "VISRegConfig",
    "build_method",
    "embedding_std",
    "get_embedding_regularizer",
    "get_method",
    "hyper",
    "register_embedding_regularizer",
    "register_method",
]
