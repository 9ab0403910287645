"""Results that an author published, in the Hub's two forms, as one list of the board's."""

import re
from collections.abc import Iterator
from typing import Any

from . import values
from .board_json import measured_from
from .schema import METRICS, MOST_CLAIMS, TASKS, Aside, Measured
from .splits import learned_from
from .values import Refused, shown

MOST_IN_FILE = 100
_METRIC_NAMES = {"accuracy": "top1"}
_NOTES = re.compile(r"split = (?P<split>[^,]{1,60})(?:, (?P<rest>.*))?", re.DOTALL)
_SPREAD = re.compile(r"(?:^|, )(?:± [\d.]{1,12} \(\d{1,6} seeds\)|\((?P<low>[\d.]{1,12}) to (?P<high>[\d.]{1,12})\))$")
# Two spellings of one number in decimal text differ by less.
_SAME = 1e-9


class Results:
    """Collects results of one encoder, and what is wrong with others.

    Args:
        repo_id, revision (`str`): Where they are from.

    Attributes:
        trained_on (`tuple[str, str]`): Data and split that the encoder learned from, in lower case; empty if not told.
    """

    def __init__(self, repo_id: str, revision: str):
        self.repo_id, self.revision = repo_id, revision
        self.trained_on = ("", "")
        self.asides: list[Aside] = []
        # By what was measured, and where it was said.
        self.found: dict[tuple, dict[str, Measured]] = {}

    def aside(self, field: str, reason: str) -> None:
        self.asides.append(Aside(self.repo_id, self.revision, values.text("field", field, 120), reason))

    def add_eval_file(self, path: str, content: Any) -> None:
        """One `.eval_results/*.yaml`, parsed."""
        if not isinstance(content, list) or len(content) > MOST_IN_FILE:
            self.aside(path, f"must hold a list of at most {MOST_IN_FILE} results, got {shown(content)}")
            return
        for number, part in enumerate(content):
            self._add(f"{path}, result {number + 1}", ".eval_results", _of_eval_entry, part)

    def add_model_index(self, content: Any) -> None:
        """The `model-index` of a card, parsed."""
        if content is None:
            return
        try:
            parts = list(_metrics(content))
        except Refused as error:
            self.aside("model-index", f"{error.field}: {error.reason}")
            return
        for number, part in enumerate(parts[:MOST_IN_FILE]):
            self._add(f"model-index, result {number + 1}", "model-index", _of_model_index, part)
        if len(parts) > MOST_IN_FILE:
            self.aside("model-index", f"has {len(parts)} results, {MOST_IN_FILE} are read")

    def merged(self) -> list[Measured]:
        """All results, each once; what says two numbers of one thing goes aside."""
        results = []
        for said in self.found.values():
            numbers = [measured.value for measured in said.values()]
            if max(numbers) - min(numbers) > _SAME:
                first = next(iter(said.values()))
                told = ", ".join(f"{where} says {measured.value:g}" for where, measured in said.items())
                self.aside(f"{first.task} {first.metric} on {first.dataset}", f"contradicts itself: {told}")
                continue
            # The newer form knows the interval.
            results.append(max(said.values(), key=lambda measured: measured.low is not None))
        if len(results) > MOST_CLAIMS:
            self.aside("results", f"has {len(results)} numbers, {MOST_CLAIMS} are kept")
        return results[:MOST_CLAIMS]

    def _add(self, field: str, where: str, read: Any, part: Any) -> None:
        try:
            measured = measured_from(read(part) | {"revision": self.revision})
            dataset, split = self.trained_on
            if learned_from(measured.split, split if split and measured.dataset.lower() == dataset else None):
                what = f"{measured.task} {measured.metric} on {measured.dataset}"
                raise Refused("split", f"{what} is of {shown(measured.split)}, which was learned from")
        except Refused as error:
            self.aside(field, f"{error.field}: {error.reason}")
            return
        said = self.found.setdefault(measured.key, {})
        if where in said and abs(said[where].value - measured.value) > _SAME:
            # A second number in the same form is as contradictory as one in the other.
            where = f"{where} again"
        said.setdefault(where, measured)


def _of_eval_entry(part: Any) -> dict:
    part = values.mapping("result", part)
    about = values.mapping("dataset", part.get("dataset"))
    task, metric = _task_and_metric(about.get("task_id"))
    notes = part.get("notes")
    found = _NOTES.fullmatch(notes) if isinstance(notes, str) and len(notes) <= 2000 else None
    if found is None:
        raise Refused(
            "protocol", f"notes must say split and protocol, as in 'split = test, k = 20', got {shown(notes)}"
        )
    rest = found["rest"] or ""
    spread = _SPREAD.search(rest)
    return {
        "task": task,
        "dataset": about.get("id"),
        "split": found["split"],
        "metric": metric,
        "value": part.get("value"),
        "protocol": rest[: spread.start()] if spread else rest,
        "low": _bound(spread, "low"),
        "high": _bound(spread, "high"),
        "date": part.get("date"),
    }


def _task_and_metric(task_id: Any) -> tuple[str, str]:
    if isinstance(task_id, str):
        for task in TASKS:
            rest = task_id.removeprefix(f"{task}_")
            # The longest first: "AP50" is not "AP" under another protocol.
            for metric in sorted(METRICS, key=len, reverse=True):
                if rest != task_id and (rest == metric or rest.startswith(f"{metric}_")):
                    return task, metric
    raise Refused("task", f"{shown(task_id)} is none that this board ranks, such as knn_top1")


def _metrics(content: Any) -> Iterator[dict]:
    """One flat mapping for each metric in a `model-index`."""
    for model in values.sequence("model-index", content):
        for result in values.sequence("results", values.mapping("model", model).get("results")):
            result = values.mapping("result", result)
            for metric in values.sequence("metrics", result.get("metrics")):
                yield {"dataset": result.get("dataset"), "metric": metric}


def _of_model_index(part: dict) -> dict:
    dataset, metric = (values.mapping(name, part[name]) for name in ("dataset", "metric"))
    kind, args = metric.get("type"), metric.get("args")
    args = args if isinstance(args, dict) else {}
    # The name of the task above is that of the first of several.
    if args.get("task") not in TASKS:
        raise Refused(
            "task", f"args must name one that this board ranks, such as linear, got {shown(args.get('task'))}"
        )
    if not args.get("protocol"):
        raise Refused("protocol", "is missing: a number without its protocol cannot be compared")
    return {
        "task": args["task"],
        "dataset": dataset.get("type"),
        "split": dataset.get("split"),
        "metric": _METRIC_NAMES.get(kind, kind) if isinstance(kind, str) else kind,
        "value": metric.get("value"),
        "protocol": args.get("protocol"),
    }


def _bound(spread: re.Match | None, side: str) -> float | None:
    try:
        return float(spread[side]) if spread and spread[side] else None
    except ValueError:
        raise Refused("interval", f"must be numbers, got {shown(spread[0])}") from None
