"""Format results for cards and the Hub: average seeds, and describe the protocol in words.

The text is generated from [`Result`] and never parsed.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, constants, eval_result_entries_to_yaml

from ..evaluation import Result, read_results
from ..evaluation.results import COUNTS, METRICS, PER_RUN, PRIVATE, TASKS, UNRANKED_METRICS, UNRANKED_TASKS
from .client import hub_id, public_name
from .escaping import clean

RESULTS = "results.json"
# The Hub's name of a metric, if it has one.
HUB_METRICS = {"top1": "accuracy"}
# The Hub's name of a task, if it is not the classification of images.
HUB_TASKS = {"detection": "object-detection", "segmentation": "image-segmentation"}
# The Hub's client drops nulls from `model-index`; a plain vote of neighbours has the temperature `None`.
HUB_NONE = "none"
_NOT_IN_WORDS = PER_RUN | PRIVATE | {"step", "set"}


@dataclass(frozen=True)
class CardRow:
    """A row of a card's table of results, as text.

    Args:
        task_name, dataset, split, metric_name (`str`): What was measured.
        before (`str`): The number before training, for the same images and protocol; empty if it was not measured.
        value (`str`): The number, the mean over seeds if there are several, with "± 0.003 (3 seeds)" or a 95 %
            interval; empty if only the start was measured.
        protocol (`str`): The protocol, such as "k = 20, temperature = 0.07".
    """

    task_name: str
    dataset: str
    split: str
    metric_name: str
    before: str
    value: str
    protocol: str


def public_result(result: Result) -> Result:
    """Return a result that may be published, with folders reduced to their name, see [`public_name`]."""
    protocol = {name: value for name, value in result.protocol.items() if name not in PRIVATE}
    if isinstance(protocol.get("set"), str):
        protocol["set"] = public_name(protocol["set"])
    return dataclasses.replace(result, dataset=public_name(result.dataset), protocol=protocol)


def merge_results(earlier: list[Result], later: list[Result]) -> list[Result]:
    """Return all results, without those of `earlier` that were measured again in `later`."""
    measured = {(result.key, result.protocol.get("seed")) for result in later}
    return [result for result in earlier if (result.key, result.protocol.get("seed")) not in measured] + later


def load_results(folder: str | Path) -> list[Result]:
    """Read the results of an encoder folder, averaged over seeds; empty without `results.json`.

    Raises:
        ValueError: The file does not have this format.
    """
    path = Path(folder) / RESULTS
    return average_seeds(read_results(path)) if path.is_file() else []


def average_seeds(results: Iterable[Result]) -> list[Result]:
    """Return results in order, with those that differ only in their seed averaged.

    The mean of several seeds has the entries `seeds`, their number, and `std`, their standard deviation.
    """
    groups: dict[tuple, list[Result]] = defaultdict(list)
    for number, result in enumerate(results):
        groups[result.key, None if "seed" in result.protocol else number].append(result)
    return [_mean(group) for group in groups.values()]


def card_rows(results: list[Result]) -> list[CardRow]:
    """Return the rows of a card's table: each measurement once, in the order of `TASKS`, `METRICS` and data sets.

    What was measured before training in the same way stands beside what was measured after it. Of equal measurements on
    fewer and on more images, the one on more images comes first.

    Args:
        results (`list[Result]`): From [`average_seeds`].
    """
    groups: dict[tuple, dict[str, Result]] = defaultdict(dict)
    for result in results:
        at_start = result.protocol.get("step") == 0
        timeless = {name: value for name, value in result.protocol.items() if name != "step"}
        key = dataclasses.replace(result, protocol=timeless).key if at_start else result.key
        groups[key]["before" if at_start else "after"] = result
    ordered = sorted(groups.values(), key=lambda group: _place(group.get("after") or group["before"]))
    return [_card_row(group.get("before"), group.get("after")) for group in ordered]


def _card_row(before: Result | None, after: Result | None) -> CardRow:
    result = after or before
    assert result is not None
    when = when_text(result) if result.protocol.get("step") not in (None, "end", 0) else ""
    return CardRow(
        (TASKS | UNRANKED_TASKS).get(result.task, result.task),
        public_name(result.dataset),
        result.split,
        (METRICS | UNRANKED_METRICS).get(result.metric, result.metric),
        "" if before is None else _number_text(before),
        "" if after is None else _number_text(after),
        ", ".join(part for part in (when, protocol_text(result)) if part),
    )


def _number_text(result: Result) -> str:
    return " ".join(part for part in (f"{result.value:.3f}", spread_text(result)) if part)


def _place(result: Result) -> tuple:
    """Return what a card's table is sorted by; unknown tasks and metrics come last."""
    tasks, metrics = ([*names] for names in (TASKS | UNRANKED_TASKS, METRICS | UNRANKED_METRICS))
    counted = [value for name, value in result.protocol.items() if name in COUNTS and isinstance(value, int | float)]
    return (
        tasks.index(result.task) if result.task in tasks else len(tasks),
        result.dataset,
        result.split,
        metrics.index(result.metric) if result.metric in metrics else len(metrics),
        -sum(counted),
    )


def protocol_text(result: Result) -> str:
    """Return the protocol in words, such as "k = 20, temperature = 0.07"."""
    words = []
    for name, value in result.protocol.items():
        if name == "temperature" and value is None:
            words.append("plain vote")
        elif name not in _NOT_IN_WORDS and isinstance(value, str | int | float):
            # Untrusted results may contain any text, which is written into YAML and tables.
            words.append(clean(value, 300) if name == "protocol" else f"{clean(name, 30)} = {clean(value, 60)}")
    return ", ".join(words)


def spread_text(result: Result) -> str:
    """Return the uncertainty of a result: over seeds, or its 95 % interval; empty if neither is known."""
    seeds, std, interval = result.protocol.get("seeds"), result.protocol.get("std"), result.interval
    if isinstance(seeds, int) and isinstance(std, float):
        return f"± {std:.3f} ({seeds} seeds)"
    return "" if interval is None else f"({interval[0]:.3f} to {interval[1]:.3f})"


def when_text(result: Result) -> str:
    """Return when during training the weights were measured; empty for published weights."""
    step = result.protocol.get("step")
    known = {None: "", "end": "after training", 0: "before training"}
    return known.get(step if isinstance(step, str | int | None) else "", f"after {clean(step, 20)} steps")


def notes_text(result: Result) -> str:
    """Return split, protocol and spread in one line, the `notes` of an `.eval_results/*.yaml`."""
    split = f"split = {clean(result.split, 60)}"
    return ", ".join(part for part in (split, protocol_text(result), spread_text(result)) if part)


def task_ids(result: Result) -> tuple[str, str]:
    """Return the `task_id` of an `.eval_results/*.yaml`: the plain one, and one that names the protocol too."""
    plain = f"{_slug(result.task)}_{_slug(result.metric)}"
    return plain, f"{plain}_{_slug(protocol_text(result))}"


def model_index_entry(result: Result) -> EvalResult:
    """Return an entry of `model-index`, the older of the Hub's two forms; its `args` are the task and the protocol.

    The Hub's client puts all numbers of one data set under the task name of the first, so each names its own.
    """
    task_name = TASKS.get(result.task, result.task)
    dataset = clean(public_name(result.dataset), 96)
    args: dict[str, Any] = {"task": clean(result.task, 60)}
    for name, value in result.protocol.items():
        if name not in _NOT_IN_WORDS and name not in args and isinstance(value, str | int | float | None):
            plain = HUB_NONE if value is None else value
            args[clean(name, 30)] = clean(plain, 300) if isinstance(plain, str) else plain
    return EvalResult(
        task_type=HUB_TASKS.get(result.task, "image-classification"),
        task_name=clean(task_name, 60),
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split=clean(result.split, 60),
        metric_type=clean(HUB_METRICS.get(result.metric, result.metric), 60),
        metric_name=clean(f"{METRICS.get(result.metric, result.metric)}, {task_name}", 60),
        metric_value=result.value,
        metric_args=args,
    )


def eval_result_files(folder: str | Path, *, repo_id: str, results: list[Result] | None = None) -> dict[str, str]:
    """Render the results of an encoder folder as `.eval_results/*.yaml`, from which the Hub fills its leaderboards.

    Only results of the published weights on data with a Hub id `owner/name` have such a file, since the format
    identifies the data by that id. Results on `digits` and on local folders are in `results.json`, the card and its
    `model-index`.

    Args:
        folder (`str` or `Path`): Encoder folder; without `results.json` there are no files.
        repo_id (`str`): Repository of the encoder, named as the source of the numbers.
        results (`list[Result]`, *optional*): Results to use instead of those in the folder.

    Returns:
        `dict[str, str]`: Text by path in the repository, one file for each data set and task.

    Raises:
        ValueError: `results.json` does not have this format.
    """
    entries: dict[str, dict[str, EvalResultEntry]] = defaultdict(dict)
    for result in load_results(folder) if results is None else average_seeds(results):
        dataset = hub_id(public_name(result.dataset))
        if dataset is None or not result.is_final or result.task in UNRANKED_TASKS:
            continue
        file = entries[f".eval_results/{_slug(dataset)}-{_slug(result.task)}.yaml"]
        # One id for each protocol; the first one has the plain name.
        plain, with_protocol = task_ids(result)
        task = with_protocol if plain in file else plain
        file[task] = EvalResultEntry(
            dataset_id=dataset,
            task_id=task,
            value=result.value,
            source_url=f"{constants.ENDPOINT}/{repo_id}",
            source_name="Model card",
            notes=notes_text(result),
        )
    return {
        path: yaml.safe_dump(eval_result_entries_to_yaml([*file.values()]), sort_keys=False, allow_unicode=True)
        for path, file in entries.items()
    }


def names_source(text: str, url: str) -> bool:
    """Return whether all numbers of an `.eval_results/*.yaml` have `url` as their source."""
    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return False
    sources = [
        entry.get("source") if isinstance(entry, dict) else None
        for entry in (entries if isinstance(entries, list) else [])
    ]
    return bool(sources) and all(isinstance(source, dict) and source.get("url") == url for source in sources)


def _mean(group: list[Result]) -> Result:
    if len(group) == 1:
        return group[0]
    values = [result.value for result in group]
    # The interval of one seed does not apply to their mean.
    protocol = {name: value for name, value in group[0].protocol.items() if name not in PER_RUN}
    return dataclasses.replace(
        group[0], value=mean(values), protocol=protocol | {"seeds": len(values), "std": stdev(values)}
    )


def _slug(text: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", clean(text, 60)).strip("._")
    return slug or "unnamed"
