"""Which modules and which weights stand for the stages of a network, from names alone, without torch."""

import re
from collections.abc import Iterable, Sequence

# Layers of every network, beside its stages.
INPUT, REPRESENTATION, EMBEDDING = "input", "representation", "embedding"
_NUMBERED = re.compile(r"(?P<head>(?:.*\.)?)(?P<kind>layer|stage|block|group|stages|blocks|layers|features)\.?\d+")
# Networks with more blocks than this (ViTs) are read at the end of each quarter of their depth.
_MAX_STAGES = 6
_QUARTERS = 4


def guess_stages(names: Iterable[str]) -> list[str]:
    """
    The stages of a network: the outermost series of numbered modules, `layer1` … `layer4`, `stages.0` …, `blocks.0` ….

    Args:
        names (iterable of `str`): qualified module names, in order.

    Returns:
        `list[str]`: all of a series of at most six, else the last of each quarter; empty if there is no series.
    """
    series: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            series.setdefault((match["head"], match["kind"]), []).append(name)
    longer = [key for key, members in series.items() if len(members) > 1]
    if not longer:
        return []
    return quarters(series[min(longer, key=lambda key: key[0].count("."))])


def quarters(items: Sequence[str]) -> list[str]:
    """At most six items as they are; of more, the last of each quarter."""
    if len(items) <= _MAX_STAGES:
        return list(items)
    return [items[round(len(items) * (i + 1) / _QUARTERS) - 1] for i in range(_QUARTERS)]


def last_weights(weights: Iterable[str]) -> list[str]:
    """
    The last weight of each stage on the main path (the last convolution, in a ResNet), as the paper's figures show.

    Args:
        weights (iterable of `str`): qualified parameter names, in order.

    Returns:
        `list[str]`: one name per stage; weights spread evenly over the depth if no stages are recognized.
    """
    weights = [name for name in weights if not re.search(r"downsample|shortcut", name)]
    parents = dict.fromkeys(
        ".".join(parts[:i]) for parts in (name.split(".") for name in weights) for i in range(1, len(parts))
    )
    stages = guess_stages(parents)
    if not stages:
        return quarters(weights)
    inside = ([name for name in weights if name.startswith(f"{stage}.")] for stage in stages)
    return [members[-1] for members in inside if members]
