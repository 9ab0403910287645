"""Orthogonality penalties on the weights of any `torch.nn.Module`."""

from .penalties import PENALTIES, Penalty, get_penalty, register_penalty
from .regularizer import OrthogonalityRegularizer, check_options
from .selection import LeftOut, WeightMatrix, left_out, select_matrices

__all__ = [
    "PENALTIES",
    "LeftOut",
    "OrthogonalityRegularizer",
    "Penalty",
    "WeightMatrix",
    "check_options",
    "get_penalty",
    "left_out",
    "register_penalty",
    "select_matrices",
]
