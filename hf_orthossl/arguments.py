"""Validate the arguments of public functions: convert arrays and numbers, or raise a one-line error."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .messages import describe

# What public functions accept as an array: a tensor, a NumPy array, a pandas object or (nested) lists of numbers.
ArrayLike = Tensor | npt.ArrayLike


def as_tensor(
    name: str, value: Any, ndim: int | tuple[int, ...] | None = None, *, shape: str = "", finite: bool = True
) -> Tensor:
    """Convert an array to a tensor; a tensor is returned unchanged, with its gradient, dtype and device.

    Args:
        name (`str`): The argument's name, for the error.
        value (`Tensor`, `numpy.ndarray` or nested lists): The argument. Lists of numbers become float64 or int64.
        ndim (`int` or `tuple[int, ...]`, *optional*): The number of dimensions, or those that are allowed.
        shape (`str`, *optional*): The expected shape in words, for the error, as in `"(N, D)"`.
        finite (`bool`, defaults to `True`): Whether to refuse NaN and infinity.

    Returns:
        `Tensor`: On the device of `value` if it is a tensor, else on the CPU; NumPy's memory is shared.

    Raises:
        TypeError: `value` is not an array of real numbers.
        ValueError: `value` has the wrong number of dimensions, or contains NaN or infinity.

    Example:
        >>> as_tensor("B", np.eye(2), 2, shape="(D, D)").dtype
        torch.float64
    """
    tensor = value if isinstance(value, Tensor) else _from_array(name, value)
    if tensor.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}: pass its real part")
    if ndim is not None and tensor.ndim not in ((ndim,) if isinstance(ndim, int) else ndim):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: pass {shape or f'{ndim} dimensions'}")
    if finite and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: pass finite numbers")
    return tensor


def as_float(name: str, value: Any, *, above: float | None = None, at_least: float | None = None) -> float:
    """Convert a number to a finite `float`.

    Args:
        name (`str`): The argument's name, for the error.
        value (`float`): The argument; NumPy scalars are accepted too.
        above (`float`, *optional*): A bound that the number must exceed.
        at_least (`float`, *optional*): The smallest number allowed.

    Raises:
        TypeError: `value` is not a number.
        ValueError: `value` is not finite, or too small.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    number = float(value)
    bound = f" above {above:g}" if above is not None else f" of at least {at_least:g}" if at_least is not None else ""
    too_small = (above is not None and number <= above) or (at_least is not None and number < at_least)
    if not math.isfinite(number) or too_small:
        raise ValueError(f"{name} must be a finite number{bound}, got {value}")
    return number


def as_int(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """Convert a whole number to an `int`.

    Args:
        name (`str`): The argument's name, for the error.
        value (`int`): The argument; NumPy integers are accepted too.
        at_least (`int`, *optional*): The smallest number allowed.
        at_most (`int`, *optional*): The largest number allowed.

    Raises:
        TypeError: `value` is not a whole number.
        ValueError: `value` is out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {describe(value)}")
    number = int(value)
    if (at_least is not None and number < at_least) or (at_most is not None and number > at_most):
        lowest, highest = (None if bound is None else str(bound) for bound in (at_least, at_most))
        wanted = f"{lowest} to {highest}" if lowest and highest else f"at least {lowest}" if lowest else f"{highest}"
        raise ValueError(f"{name} must be {wanted if lowest else f'at most {wanted}'}, got {number}")
    return number


def _from_array(name: str, value: Any) -> Tensor:
    # Text and None would become arrays of objects, with an error that names neither the argument nor the remedy.
    wrong = f"{name} must be an array of numbers, got {describe(value)}: pass a tensor, a NumPy array or nested lists"
    if value is None or isinstance(value, str | bytes | dict | set):
        raise TypeError(wrong)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(wrong) from error
    if array.dtype.kind not in "biufc":
        raise TypeError(wrong)
    # torch supports neither foreign byte orders nor negative strides, and warns about read-only memory.
    if not array.dtype.isnative or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)
