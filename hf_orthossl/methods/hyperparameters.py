"""Hyper-parameters of a method as a dataclass whose fields carry their own help text and range."""

import contextlib
import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Self

import yaml


def hyper(default, help: str, *, above=None, at_least=None, at_most=None, one_of=None):
    """A dataclass field with its help text and the range outside which it is refused.

    Args:
        default: The recipe's value; its type is the field's type.
        help (`str`): One line for `--help` and the documentation.
        above, at_least, at_most (`float`, *optional*): Exclusive lower, inclusive lower and inclusive upper bound.
        one_of (`tuple`, *optional*): The only values it takes.
    """
    limits = {"above": above, "at_least": at_least, "at_most": at_most, "one_of": one_of}
    return dataclasses.field(default=default, metadata={"help": help} | limits)


@dataclass
class MethodConfig:
    """Base of every method's hyper-parameters: checks ranges, reads mappings and `key=value` strings.

    Raises:
        ValueError: a value has the wrong type or lies outside its field's range, or a name is unknown.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            setattr(self, field.name, self._checked(field, getattr(self, field.name)))

    @staticmethod
    def _checked(field: dataclasses.Field, value: Any) -> Any:
        kind = type(field.default)
        # YAML reads "1e-3" (no dot) as text, and a recipe may write 1 for 1.0: both mean the number.
        if kind is float and not isinstance(value, bool):
            with contextlib.suppress(TypeError, ValueError):
                value = float(value)
        if type(value) is not kind:
            raise ValueError(
                f"{field.name} is {value!r}: it must be of type {kind.__name__}, as in {field.name}={field.default}"
            )
        limits = field.metadata
        for name, word, broken in (
            ("above", "above", lambda bound: not value > bound),
            ("at_least", "at least", lambda bound: not value >= bound),
            ("at_most", "at most", lambda bound: not value <= bound),
        ):
            bound = limits.get(name)
            if bound is not None and broken(bound):
                raise ValueError(f"{field.name} is {value}: it must be {word} {bound} (default {field.default})")
        if limits.get("one_of") is not None and value not in limits["one_of"]:
            raise ValueError(f"{field.name} is {value!r}: {nearest(value, list(limits['one_of']))}")
        return value

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> Self:
        """Builds the config from a mapping of names to values; names it does not have are refused."""
        values = dict(values or {})
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"method_config has no {name!r}: {nearest(name, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Reads `["temperature=0.2", "queue_size=4096"]` into a mapping, each value as YAML.

    Raises:
        ValueError: an entry is not of the form `key=value`.
    """
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"{text!r} is not of the form key=value, as in temperature=0.2")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{text!r}: the value is not valid YAML, as in channels=[8,16] or name=text") from error
    return values


def nearest(name: str, known: list[str]) -> str:
    """The end of a "no such name" message: the nearest known name, or all of them."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
