"""Orthogonality penalties on the weights of any `torch.nn.Module`."""

from .penalties import dso, mc, so
from .regularizer import KINDS, OrthogonalityRegularizer
from .selection import WeightMatrix, select_matrices
from .sketch import sketched_so
from .spectral_norm import power_iteration, srip

__all__ = [
    "KINDS",
    "OrthogonalityRegularizer",
    "WeightMatrix",
    "dso",
    "mc",
    "power_iteration",
    "select_matrices",
    "sketched_so",
    "so",
    "srip",
]
