"""Orthogonality penalties on the weights of any `torch.nn.Module`."""

from .penalties import PENALTIES, Penalty, get_penalty, register_penalty
from .regularizer import OrthogonalityRegularizer, check_options
from .selection import WeightMatrix, select_matrices

__all__ = [
    "PENALTIES",
    "OrthogonalityRegularizer",
    "Penalty",
    "WeightMatrix",
    "check_options",
    "get_penalty",
    "register_penalty",
    "select_matrices",
]
