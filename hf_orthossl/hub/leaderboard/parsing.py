"""YAML, JSON and safetensors of strangers: read within bounds, as plain values, and nothing in them is run."""

import json
from typing import Any

import numpy as np
import yaml

from .values import Refused, shown

MAX_YAML = 2**18
MAX_EVENTS, MAX_DEPTH, MAX_PLAIN = 20_000, 30, 2_000
# The one in C is twenty times faster, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(content: bytes | str, field: str) -> Any:
    """Plain values of a YAML text.

    Aliases are refused, as nobody needs them in a card and nine of them make a billion values; so are other types than
    plain ones.

    Raises:
        Refused: it is not YAML, or larger, deeper or odder than a card or a result is.
    """
    if len(content) > MAX_YAML:
        raise Refused(field, f"has more than {MAX_YAML >> 10} KiB of YAML")
    try:
        _check_events(content, field)
        return yaml.load(content, Loader=_LOADER)
    except Refused:
        raise
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError, LookupError, TypeError, AttributeError) as e:
        # Dates and numbers that are none, and keys that cannot be.
        mark = getattr(e, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise Refused(field, f"is not plain YAML: {shown(getattr(e, 'problem', None) or str(e), 80)}{where}") from None


def parse_json(content: bytes, field: str) -> dict:
    """The JSON object in a file; raises `Refused`."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused(field, f"is not JSON: {shown(str(error), 80)}") from None
    if not isinstance(found, dict):
        raise Refused(field, f"must hold an object, got {shown(found)}")
    return found


def parse_arrays(start: bytes, field: str) -> dict[str, np.ndarray]:
    """The float64 vectors that lie whole in the first bytes of a safetensors file; raises `Refused`."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > len(start) - 8:
        raise Refused(field, "is not a safetensors file")
    header = parse_json(start[8 : 8 + length], field)
    header.pop("__metadata__", None)
    body, arrays = start[8 + length :], {}
    for name, about in header.items():
        offsets = about.get("data_offsets") if isinstance(about, dict) else None
        if not (
            isinstance(offsets, list)
            and len(offsets) == 2
            and all(type(offset) is int for offset in offsets)
            and 0 <= offsets[0] <= offsets[1]
            and about.get("dtype") == "F64"
            and about.get("shape") == [(offsets[1] - offsets[0]) // 8]
            and (offsets[1] - offsets[0]) % 8 == 0
        ):
            raise Refused(field, f"holds {shown(name)}, which is no float64 vector")
        if offsets[1] <= len(body):
            arrays[name] = np.frombuffer(body, "<f8", (offsets[1] - offsets[0]) // 8, offsets[0])
    return arrays


def _check_events(content: bytes | str, field: str) -> None:
    depth = 0
    for number, event in enumerate(yaml.parse(content, Loader=_LOADER)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise Refused(field, "holds YAML anchors or aliases, by which a few lines grow to any size")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and event.style is None and len(event.value) > MAX_PLAIN:
            raise Refused(field, f"holds a plain value of more than {MAX_PLAIN:,} characters")
        tag = getattr(event, "tag", None)
        if tag and not tag.startswith("tag:yaml.org,2002:"):
            raise Refused(field, f"holds a YAML tag, {shown(tag)}")
        if tag and "python" in tag:
            raise Refused(field, f"asks for a Python object, {shown(tag)}: nothing of the kind is made")
        if number > MAX_EVENTS or depth > MAX_DEPTH:
            raise Refused(field, f"has more than {MAX_EVENTS:,} values, or values nested over {MAX_DEPTH} deep")
