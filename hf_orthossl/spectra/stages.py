"""Recognize a network's stages by the names of its layers, and match the layers and weights of several models.

Works only on names, without torch.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

# Layers of every network, in addition to its stages.
INPUT, REPRESENTATION, EMBEDDING = "input", "representation", "embedding"
# Further layers of vision transformers, after the stages.
CLASS_TOKEN, PATCH_TOKENS = "class_token", "patch_tokens"
ENDS = (INPUT, CLASS_TOKEN, PATCH_TOKENS, REPRESENTATION, EMBEDDING)
_NUMBERED = re.compile(r"(?P<head>(?:.*\.)?)(?P<kind>layer|stage|block|group|stages|blocks|layers|features)\.?\d+")
# In networks with more blocks than this (ViTs), the last block of each quarter of the depth is a stage.
_MAX_STAGES = 6
_QUARTERS = 4

# A spectrum, or the data of one that a page draws.
S = TypeVar("S")
# The title of a row or panel → the spectra of the models that have it, by the position of the model.
Matched = list[tuple[str, dict[int, S]]]


def guess_stages(names: Iterable[str]) -> list[str]:
    """Return the stages of a network: the outermost series of numbered modules, such as `layer1` … or `blocks.0` ….

    Args:
        names (iterable of `str`): Qualified module names, in order.

    Returns:
        `list[str]`: All modules of a series of at most six, else the last of each quarter; empty without a series.

    Example:
        >>> guess_stages(["conv1", "layer1", "layer1.0", "layer2"])
        ['layer1', 'layer2']
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
    """Return all of at most six items, else the last of each quarter."""
    if len(items) <= _MAX_STAGES:
        return list(items)
    return [items[round(len(items) * (i + 1) / _QUARTERS) - 1] for i in range(_QUARTERS)]


def last_weights(weights: Iterable[str]) -> list[str]:
    """Return the last weight of each stage on the main path (in a ResNet the last convolution), as in the paper.

    Args:
        weights (iterable of `str`): Qualified parameter names, in order.

    Returns:
        `list[str]`: One name per stage; weights spread evenly over the depth if no stages are recognized.
    """
    names = [name for name in weights if not re.search(r"downsample|shortcut", name)]
    parents = dict.fromkeys(
        ".".join(parts[:i]) for parts in (name.split(".") for name in names) for i in range(1, len(parts))
    )
    stages = guess_stages(parents)
    if not stages:
        return quarters(names)
    inside = ([name for name in names if name.startswith(f"{stage}.")] for stage in stages)
    return [members[-1] for members in inside if members]


def short_name(name: str, longest: int = 30) -> str:
    """Return a short name of a parameter or module, without the common suffix."""
    name = re.sub(r"\.weight(?=$|\[)", "", name)
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def match_weights(runs: Sequence[Mapping[str, S]]) -> Matched[S]:
    """Return the last weight matrix of each stage of several models, in order, side by side.

    Stages are matched by position, since architectures differ.

    Args:
        runs (sequence of mappings): Spectra by parameter name, one mapping for each model.
    """
    return _by_position(runs, [last_weights(run) for run in runs])


def match_features(runs: Sequence[Mapping[str, S]]) -> Matched[S]:
    """Return input, stages in order, tokens, representation and embedding of several models, side by side.

    Args:
        runs (sequence of mappings): Spectra by layer, one mapping for each model.
    """
    middle = _by_position(runs, [[layer for layer in run if layer not in ENDS] for run in runs])
    fixed = {end: {i: run[end] for i, run in enumerate(runs) if end in run} for end in ENDS}
    rows = [("input pixels", fixed[INPUT]), *middle, *((end, fixed[end]) for end in ENDS[1:])]
    return [(title, spectra) for title, spectra in rows if spectra]


def match_names(runs: Sequence[Mapping[str, S]]) -> Matched[S]:
    """Return every name that any of the models has, side by side.

    Args:
        runs (sequence of mappings): Spectra by name, one mapping for each model.
    """
    names = dict.fromkeys(name for run in runs for name in run)
    return [(short_name(name, 40), {i: run[name] for i, run in enumerate(runs) if name in run}) for name in names]


def _by_position(runs: Sequence[Mapping[str, S]], chosen: Sequence[Sequence[str]]) -> Matched[S]:
    depth = max(map(len, chosen), default=0)
    names = [{i: own[position] for i, own in enumerate(chosen) if position < len(own)} for position in range(depth)]
    titles = [{short_name(name) for name in row.values()} for row in names]
    # If names differ, the name of a row that only the deepest model has would not show its position.
    alike, most = all(len(title) == 1 for title in titles), sum(map(bool, chosen))
    rows = []
    for position, (row, title) in enumerate(zip(names, titles, strict=True)):
        named = len(title) == 1 and (alike or len(row) == most)
        spectra = {i: runs[i][name] for i, name in row.items()}
        rows.append((title.pop() if named else f"stage {position + 1}", spectra))
    return rows
