"""Hyper-parameters: a dataclass whose fields have a help text and a range."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, cast

from ..messages import suggest

T = TypeVar("T")


def hyper(
    default: T,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    one_of: tuple[T, ...] | None = None,
) -> T:
    """Declare a hyper-parameter: a dataclass field with a help text and a range.

    Args:
        default (`T`): The recipe's value; its type is the type of the field.
        help (`str`): One line for `orthossl methods` and the documentation.
        above (`float`, *optional*): The value must be above this bound.
        at_least (`float`, *optional*): The smallest value allowed.
        at_most (`float`, *optional*): The largest value allowed.
        one_of (`tuple[T, ...]`, *optional*): The only values allowed.

    Returns:
        A dataclass field; type checkers see the type of `default`.

    Example:
        >>> @dataclass
        ... class MyConfig(MethodConfig):
        ...     temperature: float = hyper(0.5, "softmax temperature of the loss", above=0)
    """
    limits = {"above": above, "at_least": at_least, "at_most": at_most, "one_of": one_of}
    return cast(T, dataclasses.field(default=default, metadata={"help": help} | limits))


_BOUNDS: dict[str, tuple[str, Callable[[Any, float], bool]]] = {
    "above": ("above", lambda value, bound: value > bound),
    "at_least": ("at least", lambda value, bound: value >= bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
}


@dataclass
class Hyperparameters:
    """Base class of dataclasses whose fields are declared with [`hyper`]: checks ranges and reads mappings.

    Attributes:
        option (`str`): The name of the option by which users give them, for error messages.

    Raises:
        ValueError: If a value has the wrong type or lies outside the range of its field.
    """

    option: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, self._checked(field, getattr(self, field.name)))

    @staticmethod
    def _checked(field: dataclasses.Field, value: Any) -> Any:
        kind = type(field.default)
        # YAML reads "1e-3" (no dot) as text, and a recipe may contain 1 for 1.0: accept both as the number.
        if kind is float and not isinstance(value, bool):
            with contextlib.suppress(TypeError, ValueError):
                value = float(value)
        if type(value) is not kind:
            raise ValueError(
                f"{field.name} is {value!r}: it must be of type {kind.__name__}, as in {field.name}={field.default}"
            )
        limits = field.metadata
        for name, (words, holds) in _BOUNDS.items():
            bound = limits.get(name)
            if bound is not None and not holds(value, bound):
                raise ValueError(f"{field.name} is {value}: it must be {words} {bound} (default {field.default})")
        if limits.get("one_of") is not None and value not in limits["one_of"]:
            raise ValueError(f"{field.name} is {value!r}: {suggest(value, limits['one_of'])}")
        return value

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Self:
        """Build the config from a mapping of names to values.

        Args:
            values (`dict[str, Any]`, *optional*): Hyper-parameters that differ from the defaults.

        Raises:
            ValueError: If a name is unknown, or a value is invalid.
        """
        values = dict(values or {})
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown hyper-parameter {name!r} in {cls.option}: {suggest(name, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all hyper-parameters by name, including defaults."""
        return dataclasses.asdict(self)


@dataclass
class MethodConfig(Hyperparameters):
    """Base class of the hyper-parameters of a method."""

    option = "method_config"
