"""Which layers of several models belong side by side: by name, or by position in architectures that differ."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from .stages import EMBEDDING, INPUT, REPRESENTATION, last_weights

ENDS = (INPUT, REPRESENTATION, EMBEDDING)
# A spectrum, or what a page draws of one.
S = TypeVar("S")
# What to call a row or panel → the spectra of the models that have it, by the model's position.
Matched = list[tuple[str, dict[int, S]]]


def short_name(name: str, longest: int = 30) -> str:
    """A parameter's or module's name without what all of them share."""
    name = re.sub(r"^backbone\.|\.weight(?=$|\[)", "", name)
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def match_weights(runs: Sequence[Mapping[str, S]]) -> Matched[S]:
    """The last weight matrix of each stage, in order."""
    return _by_position(runs, [last_weights(run) for run in runs])


def match_features(runs: Sequence[Mapping[str, S]]) -> Matched[S]:
    """Input, stages in order, representation, embedding."""
    middle = _by_position(runs, [[layer for layer in run if layer not in ENDS] for run in runs])
    fixed = {end: {i: run[end] for i, run in enumerate(runs) if end in run} for end in ENDS}
    rows = [("input pixels", fixed[INPUT]), *middle, *((end, fixed[end]) for end in ENDS[1:])]
    return [(title, spectra) for title, spectra in rows if spectra]


def match_names(runs: Sequence[Mapping[str, S]]) -> Matched[S]:
    """Every name that any of the models has."""
    names = dict.fromkeys(name for run in runs for name in run)
    return [(short_name(name, 40), {i: run[name] for i, run in enumerate(runs) if name in run}) for name in names]


def _by_position(runs: Sequence[Mapping[str, S]], chosen: Sequence[Sequence[str]]) -> Matched[S]:
    depth = max(map(len, chosen), default=0)
    names = [{i: own[position] for i, own in enumerate(chosen) if position < len(own)} for position in range(depth)]
    titles = [{short_name(name) for name in row.values()} for row in names]
    # Where names differ, the name of a row that only the deepest has would say nothing of its place.
    alike, most = all(len(title) == 1 for title in titles), sum(map(bool, chosen))
    rows = []
    for position, (row, title) in enumerate(zip(names, titles, strict=True)):
        named = len(title) == 1 and (alike or len(row) == most)
        spectra = {i: runs[i][name] for i, name in row.items()}
        rows.append((title.pop() if named else f"stage {position + 1}", spectra))
    return rows
