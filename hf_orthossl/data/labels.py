"""Labels of any kind as class indices: class names, integers of any size, text, or whole floating-point numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

# Integers up to this are class indices even if most of them do not occur; further ones are counted through.
_SMALL = 10_000


@dataclass(frozen=True)
class Classes:
    """The classes of a column of labels.

    Args:
        column (`str`): The column.
        names (`list[str]`, *optional*): The name of each class by index; `None` if the labels are nameless indices.
        numbers (`dict`, *optional*): The index of each label; `None` if the labels are the indices.
    """

    column: str
    names: list[str] | None = None
    numbers: Mapping[Any, int] | None = None

    def index(self, label: Any) -> int:
        """Return the class index of a label, or -1 if it is missing: null, NaN or -1.

        Raises:
            ValueError: The label is no class of the column.
        """
        if label is None or label != label or (label == -1 and not isinstance(label, str)):
            return -1
        if self.numbers is not None:
            number = self.numbers.get(label)
            if number is not None:
                return number
        elif not isinstance(label, str) and label == int(label) and 0 <= label < 2**63:
            if self.names is None or label < len(self.names):
                return int(label)
            raise ValueError(
                f"label_column {self.column!r} holds {label}, but has names of {len(self.names)} classes (0 to "
                f"{len(self.names) - 1}): correct the labels or pass another label_column"
            )
        raise ValueError(
            f"label_column {self.column!r} holds {label!r}, which is no class: pass a column of integers or text"
        )


def is_label(feature: object) -> bool:
    """Return whether a column of this type may hold labels."""
    return isinstance(feature, datasets.ClassLabel) or is_text(feature) or _is_number(feature)


def is_text(feature: object) -> bool:
    """Return whether a column contains text."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def is_integer(feature: object) -> bool:
    """Return whether a column contains class indices."""
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "bool"))


def holds_classes(parts: Iterable[Any], column: str) -> bool:
    """Return whether a column of numbers holds whole ones only, besides missing ones; `False` for a stream."""
    parts = list(parts)
    if not all(isinstance(part, datasets.Dataset) for part in parts):
        return False
    return all(isinstance(value, int) or float(value).is_integer() for value in _values(parts, column))


def classes_of(parts: Iterable[Any], column: str, feature: object, title: str) -> Classes:
    """Return the classes of a column, the same for every split of the data set.

    Args:
        parts (iterable of data sets): All splits whose labels mean the same.
        column (`str`): The column.
        feature: Its type, for which [`is_label`] is true.
        title (`str`): The name of the data set, for errors.

    Raises:
        ValueError: The column is text of a stream, or has numbers that are not whole or have no class name.
    """
    parts = list(parts)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if not all(isinstance(part, datasets.Dataset) for part in parts):
        if is_text(feature):
            raise ValueError(
                f"label_column {column!r} of data set {title} contains text: a stream needs integer classes, so load "
                "without streaming or pass another label_column"
            )
        return Classes(column, names)
    values = _values([part for part in parts if is_text(part.features.get(column)) == is_text(feature)], column)
    if is_text(feature):
        ordered: list[Any] = sorted(values)
        return Classes(column, ordered, {text: number for number, text in enumerate(ordered)})
    for value in values:
        if not isinstance(value, int) and not float(value).is_integer():
            raise ValueError(
                f"label_column {column!r} of data set {title} holds {value}: pass a column of whole numbers or text"
            )
    classes = Classes(column, names)
    indices = min(values, default=0) >= 0 and max(values, default=0) < max(2 * len(values), _SMALL)
    if names is not None or indices:
        for value in values:
            classes.index(value)
        return classes
    ordered = sorted(values)
    return Classes(column, [str(int(value)) for value in ordered], {value: n for n, value in enumerate(ordered)})


def _is_number(feature: object) -> bool:
    return is_integer(feature) or (isinstance(feature, datasets.Value) and feature.dtype.startswith("float"))


def _values(parts: list[Any], column: str) -> set[Any]:
    """Return the labels that occur, without missing ones."""
    # A data set with selected rows copies its other columns too if they are not left out.
    rows = [part.select_columns([column]) for part in parts if column in part.features]
    found = {value for part in rows for value in part.unique(column)}
    return {
        value for value in found if value is not None and value == value and (isinstance(value, str) or value != -1)
    }
