"""The format of every measured number: in `results.json`, in model cards and on the leaderboard.

This module does not import torch, because the leaderboard's page uses it too.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ..files import replace_file

# Name in a result → title in cards and on the board. Only these tasks and metrics are ranked.
TASKS = {
    "knn": "kNN classification",
    "linear": "linear probe",
    "finetune": "fine-tuning",
    "transfer": "transfer",
    "detection": "object detection",
    "segmentation": "segmentation, linear probe",
}
METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_per_class": "mean accuracy per class",
    "mIoU": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    **{name: name for name in ("AP", "AP50", "AP75", "VOC07_AP50", "VOC12_AP50")},
}
# Those of cards only: how far the representations of a run have moved from those it started from.
UNRANKED_TASKS = {"drift": "drift from the start"}
UNRANKED_METRICS = {"linear_cka": "linear CKA with the start", "mean_cosine": "mean cosine with the start"}
# Entries of a protocol that describe one run of a measurement and do not affect its outcome.
PER_RUN = frozenset(
    ("seed", "seeds", "std", "interval", "per_class", "mean_per_class", "validation_top1", "best_epoch", "epochs_run")
)
# Local names of models and files, which do not affect the outcome and are never published.
PRIVATE = frozenset(("model", "run", "notes"))
# The number of images behind a result, not the way it was measured.
COUNTS = frozenset(
    ("train_images", "test_images", "bank", "queries", "unreadable_train_images", "unreadable_test_images")
)

# Far above the size of any evaluation's results, and small enough to read into memory.
MAX_BYTES = 16 * 2**20
MAX_TEXT = 1000

# A split as 🤗 Datasets names it: "train", "train[:80%]".
_PART = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<low>-?\d+%?)?:(?P<high>-?\d+%?)?\])?")
_Part = tuple[str, str | None, str | None, bool]
Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Result:
    """One number, what it measures and how it was measured.

    Args:
        task (`str`): A key of `TASKS`.
        dataset (`str`): Name or Hub id of the data.
        split (`str`): The split of the data that was used.
        metric (`str`): A key of `METRICS`.
        value (`float`): The number; accuracies and average precisions are in [0, 1].
        protocol (`dict`, defaults to `{}`): How it was measured, such as `{"k": 200, "temperature": 0.07}`. `step` is
            the training step of the weights; without it, or with "end", they are the final ones. Entries named in
            `PER_RUN`, such as `seed` and `interval` (95 %, `[low, high]`), describe the run only and are not part of
            `key`.
    """

    task: str
    dataset: str
    split: str
    metric: str
    value: float
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Return the identity of the measurement without its value: the same in every file and on the board."""
        return self.key_without(frozenset())

    def key_without(self, names: frozenset[str]) -> Key:
        """Return `key` without some entries of the protocol."""
        left_out = PER_RUN | PRIVATE | names | {"set"} | ({"step"} if self.is_final else set())
        decides = {name: _plain(value) for name, value in self.protocol.items() if name not in left_out}
        return self.task, self.dataset.lower(), self.split, self.metric, json.dumps(decides, sort_keys=True)

    @property
    def is_final(self) -> bool:
        """Return whether the final weights were measured, rather than those of an earlier training step."""
        return self.protocol.get("step") in (None, "end")

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the value, or `None` if none was measured."""
        bounds = self.protocol.get("interval")
        if isinstance(bounds, list | tuple) and len(bounds) == 2 and all(type(v) in (int, float) for v in bounds):
            return float(bounds[0]), float(bounds[1])
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the flat object of `results.json`: the fields, then the entries of the protocol."""
        flat = asdict(self)
        return flat | flat.pop("protocol")

    @classmethod
    def from_dict(cls, entry: Any, where: str) -> Self:
        """Check and read a flat object of `results.json`.

        Args:
            entry: Any JSON value.
            where (`str`): The location of the entry, for the error message.

        Raises:
            ValueError: The entry does not have this format, a number is not finite, or a text is too long.
        """
        if not isinstance(entry, dict):
            raise ValueError(f"{where} must be an object, got {type(entry).__name__}")
        names = [spec.name for spec in fields(Result) if spec.name != "protocol"]
        for name in names:
            if name not in entry:
                raise ValueError(f"{where} has no {name}")
            if name == "value" and (type(entry[name]) not in (int, float) or not _is_bounded(entry[name])):
                raise ValueError(f"{where}: value must be a finite number, got {str(entry[name])[:80]!r}")
            if name != "value" and not (isinstance(entry[name], str) and _is_bounded(entry[name])):
                raise ValueError(f"{where}: {name} must be text of at most {MAX_TEXT} characters")
        # A flat object may name its probe "protocol", which is an entry of the protocol like any other.
        protocol = {name: value for name, value in entry.items() if name not in names}
        for name, value in protocol.items():
            if not _is_bounded(name) or not _is_bounded(value):
                raise ValueError(
                    f"{where}: {name[:80]} must hold finite numbers or text of at most {MAX_TEXT} characters"
                )
        known = {name: entry[name] for name in names} | {"value": float(entry["value"])}
        return cls(**known, protocol=protocol)


def write_results(path: str | Path, results: list[Result]) -> Path:
    """Write results atomically as a JSON list of flat objects."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace_file(path, results_json(results))


def results_json(results: list[Result]) -> str:
    """Return results as the text of `results.json`."""
    return json.dumps([result.to_dict() for result in results], indent=2) + "\n"


def read_results(path: str | Path) -> list[Result]:
    """Read and validate a file of [`write_results`] from an untrusted source.

    Args:
        path (`str` or `Path`): A JSON list of flat objects, at most 16 MiB; every key that is not a field of
            [`Result`] becomes an entry of its `protocol`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file does not have this format, a number is not finite, or a text is longer than 1,000
            characters; the message names the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: orthossl pretrain and orthossl evaluate write results.json")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is too large: results must be at most {MAX_BYTES >> 20} MiB")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must contain a list of results, got {type(entries).__name__}")
    return [Result.from_dict(entry, f"{path}, result {number}") for number, entry in enumerate(entries)]


def _is_bounded(value: Any, depth: int = 4) -> bool:
    """Return whether a JSON value is small and finite; Python accepts NaN and reads 1e999 as infinity."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, list | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_bounded(part, depth - 1) for part in parts)
    return value is None or isinstance(value, bool) or (abs(value) <= 1e300 and math.isfinite(value))


def _plain(value: Any) -> Any:
    """Return a number in the form on which JSON and YAML agree: 20.0 as 20."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def unreadable_counts(train: int, test: int) -> dict[str, int]:
    """Return the entries of a protocol for the images that could not be read and were left out; none for none."""
    counts = {"unreadable_train_images": train, "unreadable_test_images": test}
    return {name: count for name, count in counts.items() if count}


def overlap(one: str, other: str) -> bool:
    """Return whether two splits, such as "train[:80%]" and "train[80%:]+test", may share images.

    Slices in different units, images and percent, may share some; "all" shares images with any split.
    """
    return any(_share(_part(a), _part(b)) for a in one.split("+") for b in other.split("+"))


def learned_from(split: str, pretrained: str | None) -> bool:
    """Return whether a probe learned from a split, or an encoder whose split of the same data is `pretrained`."""
    names = [part.strip().lower() for part in split.split("+")]
    # A slice of the training images may be what was held out for testing: its bounds then say so.
    whole = any(name.startswith(("train", "all")) and "[" not in name for name in names)
    return whole or (pretrained is not None and overlap(split, pretrained))


def _part(text: str) -> _Part:
    """Return the name of a split, the bounds of its slice, and whether it could be read."""
    match = _PART.fullmatch(text.strip().lower())
    if match is None:
        return text.split("[")[0].strip().lower(), None, None, False
    return match["name"].strip(), match["low"], match["high"], True


def _share(one: _Part, other: _Part) -> bool:
    if "all" in (one[0], other[0]):
        return True
    if one[0] != other[0]:
        return False
    # Disjoint only if one ends before the other begins, both counted in the same unit.
    return not (_ends_before(one, other) or _ends_before(other, one))


def _ends_before(one: _Part, other: _Part) -> bool:
    high, low = one[2], other[1]
    if not (one[3] and other[3]) or high is None or low is None or "-" in high + low:
        return False
    return high.endswith("%") == low.endswith("%") and int(high.rstrip("%")) <= int(low.rstrip("%"))
