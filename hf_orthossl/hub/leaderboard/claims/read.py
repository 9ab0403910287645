"""Read the results that an author published: `results.json`, and the Hub's two forms of the same.

Numbers of `results.json` and of `model-index` state their protocol as data, and are one claim where their keys agree.
An `.eval_results/*.yaml` states it in a sentence. That sentence is never parsed: it belongs to a known claim if it is
the very sentence that this package writes of that claim, and else it is a claim whose protocol is the sentence.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ....evaluation.results import METRICS, PER_RUN, PRIVATE, TASKS, Key, Result, learned_from
from ...measurements import HUB_METRICS, HUB_NONE, average_seeds, notes_text, task_ids
from ..schema import (
    MAX_CLAIMS,
    BoardResult,
    CheckedResult,
    Object,
    RejectedError,
    Rejection,
    Sequence,
    checked,
    shown,
)
from .parse import parse_json, parse_yaml

MAX_IN_FILE, MAX_IN_RESULTS = 100, 2_000
EVAL_RESULTS, MODEL_INDEX, RESULTS = ".eval_results", "model-index", "results.json"
# The split of an `.eval_results` claim, as that form has no place for it; such a claim does not rank.
NOT_STATED = "not stated"
_TASK_IDS = {f"{task}_{metric}": (task, metric) for task in TASKS for metric in METRICS}
_METRICS = {theirs: ours for ours, theirs in HUB_METRICS.items()}
# Two spellings of one number in decimal text differ by less.
SAME = 1e-9


class Claims:
    """Collect the claims of one commit of a repository, and what was rejected of them, with the reasons."""

    def __init__(self, repo_id: str, revision: str):
        self.repo_id, self.revision = repo_id, revision
        # Data and split that the encoder learned from, in lower case; empty if unknown.
        self.trained_on = ("", "")
        self.rejected: list[Rejection] = []
        # By what was measured and how, and where it is stated.
        self._stated: dict[Key, dict[str, BoardResult]] = {}
        self._on_training: set[Key] = set()
        # Data, task id and sentence of an `.eval_results` entry, as this package writes them, of each claim above.
        self._sentences: dict[tuple[str, str, str], Key] = {}

    def reject(self, field: str, reason: str) -> None:
        """List something as rejected."""
        self.rejected.append(Rejection(self.repo_id, self.revision, field[:120], reason))

    def attempt(self, read: Callable[..., Any], *args: Any, prefix: str = "") -> Any:
        """Return `read(*args)`, or `None` where that raises `RejectedError`, which is listed."""
        try:
            return read(*args)
        except RejectedError as error:
            self.reject(prefix or error.field, f"{error.field}: {error.reason}" if prefix else error.reason)
            return None

    def add_results_json(self, content: bytes) -> None:
        """Add the results of a `results.json` that are of the published weights, seeds averaged."""
        parts = self._limited(RESULTS, checked(Sequence, RESULTS, parse_json(content, RESULTS)), MAX_IN_RESULTS)
        final = []
        for number, part in enumerate(parts, 1):
            result = self.attempt(_flat_result, part, self.revision, prefix=f"{RESULTS}, result {number}")
            final += [result] if result is not None and result.is_final else []
        for result in average_seeds(final):
            self.attempt(self._add, RESULTS, on_board(result, revision=self.revision), result, prefix=RESULTS)

    def add_model_index(self, content: Any) -> None:
        """Add the parsed `model-index` of a card."""
        if content is None:
            return
        parts = self.attempt(_metrics, content, prefix=MODEL_INDEX)
        for number, part in enumerate(self._limited(MODEL_INDEX, parts or [], MAX_IN_FILE), 1):
            claim = self.attempt(_of_model_index, part, self.revision, prefix=f"{MODEL_INDEX}, result {number}")
            if claim is not None:
                self.attempt(self._add, MODEL_INDEX, claim, prefix=f"{MODEL_INDEX}, result {number}")

    def add_eval_file(self, path: str, text: bytes) -> None:
        """Add an `.eval_results/*.yaml`, after the other forms."""
        content = parse_yaml(text, path)
        if not isinstance(content, list) or len(content) > MAX_IN_FILE:
            self.reject(path, f"must hold a list of at most {MAX_IN_FILE} results, got {shown(content)}")
            return
        for number, part in enumerate(content, 1):
            self.attempt(self._add_eval_entry, part, prefix=f"{path}, result {number}")

    def merged(self) -> list[BoardResult]:
        """Return all claims, each once; where two numbers are stated for one thing, both are rejected."""
        results = []
        for stated in self._stated.values():
            values, first = [result.value for result in stated.values()], next(iter(stated.values()))
            if max(values) - min(values) > SAME:
                numbers = ", ".join(f"{where} says {stated[where].value:g}" for where in sorted(stated))
                self.reject(f"{first.task} {first.metric} on {first.dataset}", f"contradicts itself: {numbers}")
                continue
            date = next((result.date for result in stated.values() if result.date), None)
            results.append(dataclasses.replace(first, date=date))
        return self._limited("results", results, MAX_CLAIMS)

    def _limited(self, field: str, parts: list, limit: int) -> list:
        if len(parts) > limit:
            self.reject(field, f"has {len(parts)} numbers, {limit} are read")
        return parts[:limit]

    def _add_eval_entry(self, part: Any) -> None:
        entry = checked(Object, "result", part)
        about, notes = checked(Object, "dataset", entry.get("dataset")), entry.get("notes")
        dataset, task_id = about.get("id"), about.get("task_id")
        if not isinstance(notes, str) or not notes.strip():
            raise RejectedError("protocol", f"notes must say how it was measured, got {shown(notes)}")
        fields = {"dataset": dataset, "value": entry.get("value"), "date": entry.get("date"), "revision": self.revision}
        key = self._sentences.get((str(dataset).lower(), str(task_id), notes))
        if key in self._on_training:
            # Rejected in another form.
            return
        if key is not None:
            known = vars(next(iter(self._stated[key].values()))) | {"low": None, "high": None}
        elif isinstance(task_id, str) and task_id in _TASK_IDS:
            task, metric = _TASK_IDS[task_id]
            known = {"task": task, "metric": metric, "split": NOT_STATED, "protocol": {"protocol": notes}}
        else:
            raise RejectedError("task", f"{shown(task_id)} is not ranked by this board; knn_top1 is, for example")
        self._add(EVAL_RESULTS, checked(CheckedResult, "result", known | fields))

    def _add(self, where: str, claim: BoardResult, result: Result | None = None) -> None:
        if where != EVAL_RESULTS:
            for task_id in task_ids(result or claim):
                self._sentences.setdefault((claim.dataset.lower(), task_id, notes_text(result or claim)), claim.key)
        dataset, split = self.trained_on
        if learned_from(claim.split, split if split and claim.dataset.lower() == dataset else None):
            if claim.key in self._on_training:
                # The same claim in another form.
                return
            self._on_training.add(claim.key)
            what = f"{claim.task} {claim.metric} on {claim.dataset}"
            raise RejectedError("split", f"{what} is of {shown(claim.split)}, which was learned from")
        stated = self._stated.setdefault(claim.key, {})
        if where in stated and abs(stated[where].value - claim.value) > SAME:
            # A second number in the same form contradicts the first as one in another form does.
            where = f"{where} again"
        stated.setdefault(where, claim)


def on_board(result: Result, **more: Any) -> BoardResult:
    """Return a result in the board's form, checked; raise `RejectedError`."""
    decides = {n: v for n, v in result.protocol.items() if n not in PER_RUN | PRIVATE | {"set", "step"}}
    low, high = result.interval or (None, None)
    fields = {name: getattr(result, name) for name in ("task", "dataset", "split", "metric", "value")}
    return checked(CheckedResult, "result", fields | {"protocol": decides, "low": low, "high": high} | more)


def _flat_result(part: Any, revision: str) -> Result:
    try:
        result = Result.from_dict(part, "the entry")
    except ValueError as error:
        raise RejectedError("result", str(error)) from None
    on_board(result, revision=revision)
    return result


def _metrics(content: Any) -> list[dict]:
    """Return one flat mapping for each metric in a `model-index`."""
    flat = []
    for model in checked(Sequence, MODEL_INDEX, content):
        for part in checked(Sequence, "results", checked(Object, "model", model).get("results")):
            result = checked(Object, "result", part)
            for metric in checked(Sequence, "metrics", result.get("metrics")):
                flat.append({"dataset": result.get("dataset"), "metric": metric})
    return flat


def _of_model_index(part: dict, revision: str) -> BoardResult:
    dataset, metric = (checked(Object, name, part[name]) for name in ("dataset", "metric"))
    kind, args = metric.get("type"), metric.get("args")
    args = args if isinstance(args, dict) else {}
    protocol = {name: None if value == HUB_NONE else value for name, value in args.items()}
    # The task name above the metrics is that of the first of several.
    task = protocol.pop("task", None)
    if not isinstance(task, str) or task not in TASKS:
        raise RejectedError("task", f"args must name a task that this board ranks, such as linear, got {shown(task)}")
    named: Any = _METRICS.get(kind, kind) if isinstance(kind, str) else kind
    result = Result(task, dataset.get("type"), dataset.get("split"), named, metric.get("value"), protocol)
    return on_board(result, revision=revision)
