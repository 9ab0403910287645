"""Measurements of an encoder, in the one form that files, cards and boards read."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import replace_file

# Far above what any evaluation writes, and small enough to be read into memory.
MAX_BYTES = 16 * 2**20
MAX_TEXT = 1000


@dataclass(frozen=True)
class Result:
    """One number and what it measures.

    Args:
        task (`str`): "knn", "linear", "finetune", "transfer" or "detection".
        dataset (`str`): Name or Hub id of the data.
        split (`str`): The part measured on.
        metric (`str`): Such as "top1".
        value (`float`): The number; accuracies in [0, 1].
        settings (`dict`, *optional*): What else decides the number, such as `{"k": 200, "step": 0}`.
    """

    task: str
    dataset: str
    split: str
    metric: str
    value: float
    settings: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        fields = dataclasses.asdict(self)
        settings = fields.pop("settings")
        return fields | settings


def write_results(path: str | Path, results: list[Result]) -> Path:
    """Writes results as a JSON list of flat objects; an earlier file is replaced whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace_file(path, json.dumps([result.to_dict() for result in results], indent=2) + "\n")


def read_results(path: str | Path) -> list[Result]:
    """Reads what [`write_results`] wrote, checked: the file may come from anywhere.

    Args:
        path (`str` or `Path`): A JSON list of flat objects of at most 16 MiB; what is no field of [`Result`] is one of
            its `settings`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this form, a number is not finite, or a text is longer than 1,000 characters; names the
            entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: orthossl pretrain and orthossl evaluate write results.json")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than the {MAX_BYTES >> 20} MiB that results may have")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of results, got {type(entries).__name__}")
    return [_result(entry, f"{path}, result {number}") for number, entry in enumerate(entries)]


def _result(entry: Any, where: str) -> Result:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object, got {type(entry).__name__}")
    names = [spec.name for spec in dataclasses.fields(Result) if spec.name != "settings"]
    for name in names:
        if name not in entry:
            raise ValueError(f"{where} has no {name}")
        if name == "value" and (type(entry[name]) not in (int, float) or not _is_plain(entry[name])):
            raise ValueError(f"{where}: value must be a finite number, got {str(entry[name])[:80]!r}")
        if name != "value" and not (isinstance(entry[name], str) and _is_plain(entry[name])):
            raise ValueError(f"{where}: {name} must be text of at most {MAX_TEXT} characters")
    settings = {name: value for name, value in entry.items() if name not in names}
    for name, value in settings.items():
        if not _is_plain(name) or not _is_plain(value):
            raise ValueError(f"{where}: {name[:80]} must hold finite numbers or texts of at most {MAX_TEXT} letters")
    fields = {name: entry[name] for name in names}
    return Result(**fields | {"value": float(entry["value"])}, settings=settings)


def _is_plain(value: Any, depth: int = 4) -> bool:
    """Whether JSON's value is small and finite: Python reads NaN, and 1e999 as infinity."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, list | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(part, depth - 1) for part in parts)
    return value is None or isinstance(value, bool) or (abs(value) <= 1e300 and math.isfinite(value))
