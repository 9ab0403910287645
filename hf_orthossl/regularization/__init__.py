"""Orthogonality penalties on the weights of any `torch.nn.Module`."""

from .constraint import OrthogonalConstraint
from .decoupled import check_decoupled, without_step
from .penalties import MAX_STRENGTH, PENALTIES, Penalty, get_penalty, register_penalty
from .regularizer import OrthogonalityRegularizer, check_options
from .selection import LeftOut, WeightMatrix, left_out, select_matrices

__all__ = [
    "MAX_STRENGTH",
    "PENALTIES",
    "LeftOut",
    "OrthogonalConstraint",
    "OrthogonalityRegularizer",
    "Penalty",
    "WeightMatrix",
    "check_decoupled",
    "check_options",
    "get_penalty",
    "left_out",
    "register_penalty",
    "select_matrices",
    "without_step",
]
