"""YAML, JSON and safetensors of unknown authors: read within bounds, as plain values, without running anything."""

import json
from typing import Any

import numpy as np
import yaml

from ..schema import Object, RejectedError, checked, shown

MAX_YAML = 2**18
MAX_EVENTS, MAX_DEPTH, MAX_PLAIN = 20_000, 30, 2_000
# The loader in C is twenty times faster, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(content: bytes | str, field: str) -> Any:
    """Return the plain values of a YAML text; raise `RejectedError` for any other.

    Aliases are rejected: no card needs them, and nine of them make a billion values. So is whatever is larger or deeper
    than a card or a result.
    """
    if len(content) > MAX_YAML:
        raise RejectedError(field, f"has more than {MAX_YAML >> 10} KiB of YAML")
    try:
        _check_events(content, field)
        return yaml.load(content, Loader=_LOADER)
    except RejectedError:
        raise
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError, LookupError, TypeError, AttributeError) as e:
        # Malformed dates and numbers, and keys that cannot be hashed.
        mark = getattr(e, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = shown(getattr(e, "problem", None) or str(e), 80)
        raise RejectedError(field, f"is not plain YAML: {problem}{where}") from None


def parse_json(content: bytes, field: str) -> Any:
    """Return the JSON value in a file; raise `RejectedError` where there is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RejectedError(field, f"is not JSON: {shown(str(error), 80)}") from None


def parse_object(content: bytes, field: str) -> dict[str, Any]:
    """Return the JSON object in a file; raise `RejectedError` where there is none."""
    return checked(Object, field, parse_json(content, field))


def parse_arrays(start: bytes, field: str) -> dict[str, np.ndarray]:
    """Return the float64 vectors that lie whole in the first bytes of a safetensors file, which may hold no others."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > len(start) - 8:
        raise RejectedError(field, "is not a safetensors file")
    header = parse_object(start[8 : 8 + length], field)
    header.pop("__metadata__", None)
    body, arrays = start[8 + length :], {}
    for name, about in header.items():
        match about:
            case {"dtype": "F64", "shape": [int(length)], "data_offsets": [int(first), int(end)]} if (
                first >= 0 and length >= 0 and end - first == 8 * length
            ):
                if end <= len(body):
                    arrays[name] = np.frombuffer(body, "<f8", length, first)
            case _:
                raise RejectedError(field, f"holds {shown(name)}, which is not a float64 vector")
    return arrays


def _check_events(content: bytes | str, field: str) -> None:
    depth = 0
    for number, event in enumerate(yaml.parse(content, Loader=_LOADER)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise RejectedError(field, "holds YAML anchors or aliases, which can expand a few lines to any size")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and event.style is None and len(event.value) > MAX_PLAIN:
            raise RejectedError(field, f"holds a plain value of more than {MAX_PLAIN:,} characters")
        tag = getattr(event, "tag", None)
        if tag and not tag.startswith("tag:yaml.org,2002:"):
            raise RejectedError(field, f"holds a YAML tag, {shown(tag)}")
        if tag and "python" in tag:
            raise RejectedError(field, f"asks for a Python object, {shown(tag)}, which is never made")
        if number > MAX_EVENTS or depth > MAX_DEPTH:
            raise RejectedError(field, f"has more than {MAX_EVENTS:,} values, or is nested more than {MAX_DEPTH} deep")
