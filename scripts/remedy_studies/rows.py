"""Keep the raw rows of the studies: one line of JSON for each run, small enough to stand beside the report."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_orthossl.comparison.record import COMPARISON
from hf_orthossl.files import replace_file

from .plan import PIECES

ROWS = "rows.jsonl"
# Name in a row → keys in that of a comparison.
MEASURES = {
    "knn": ("knn",),
    "linear": ("linear",),
    "effective_rank": ("representation", "effective_rank"),
    "rankme": ("representation", "rankme"),
    "lidar": ("representation", "lidar"),
    "alpha_req": ("representation", "alpha_req"),
    "patch_rank": ("patch_tokens", "effective_rank"),
    "weights_rank": ("weights_relative_rank",),
    "weights_so": ("weights_so",),
    "gamma": ("settings", "gamma"),
    "seconds_per_step": ("seconds_per_step",),
    "peak_bytes": ("peak_bytes",),
    "version": ("settings", "version"),
    "commit": ("settings", "commit"),
    "score": ("score",),
    "failed": ("failed",),
}
# What a run is, and so a row of it.
KEY = ("study", "piece", "kind", "arm", "strength", "seed")


def collect(root: Path, earlier: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return the rows of all comparisons in a folder, in the order of the studies.

    Args:
        root (`Path`): Where the runs are.
        earlier (iterable of mappings): Rows that are kept unless a run replaces them.
    """
    rows = {tuple(row.get(name) for name in KEY): dict(row) for row in earlier}
    for study, pieces in PIECES.items():
        for piece in pieces:
            path = root / study / piece.name / COMPARISON
            if path.is_file():
                record = json.loads(path.read_text(encoding="utf-8"))
                for row in _rows_of(record):
                    row = {"study": study, "piece": piece.name, **row, **piece.about}
                    rows[tuple(row.get(name) for name in KEY)] = row
    place = {(study, piece.name): number for study in PIECES for number, piece in enumerate(PIECES[study])}
    studies = list(PIECES)
    return sorted(rows.values(), key=lambda row: (studies.index(row["study"]), place[row["study"], row["piece"]]))


def _rows_of(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    steps, images = record["options"]["max_steps"], record["data"]["images"]
    shared = {"steps": steps, "images": images}
    for arm in record["arms"]:
        for row in arm["tuning"]:
            yield _compact(row, "tuning") | shared | {"steps": record["tuning_steps"]}
    for kind, rows in (("untrained", record["untrained"]), ("run", record["runs"])):
        for row in rows:
            yield _compact(row, kind) | shared


def _compact(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    compact = {"kind": kind} | {name: row.get(name) for name in ("arm", "strength", "seed")}
    for name, keys in MEASURES.items():
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            compact[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    return compact


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the rows as a whole, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    return replace_file(folder / ROWS, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder; none if it has no file of them.

    Raises:
        ValueError: A line is no row.
    """
    path = folder / ROWS
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            known = any(piece.name == row["piece"] for piece in PIECES[row["study"]])
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"{path}: line {number} is not a row of these studies: remove it")
        rows.append(row)
    return rows
