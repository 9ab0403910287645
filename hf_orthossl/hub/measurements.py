"""Results as cards and the Hub show them: seeds averaged, the protocol in words."""

import dataclasses
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, constants, eval_result_entries_to_yaml

from ..evaluation import Result, read_results
from .client import hub_id, public_name
from .escaping import clean
from .words import METRICS, TASKS

RESULTS = "results.json"
# How the Hub spells a metric, where it has a word for it.
_METRIC_IDS = {"top1": "accuracy"}
# Said elsewhere in a row, or too long for one.
PER_RUN = (
    *("seed", "interval", "per_class", "mean_per_class"),
    *("validation_top1", "best_epoch", "epochs_run"),  # of fine-tuning
)
# What only this machine can make use of: names of models here, keys of the transfer suite, sentences with paths.
_PRIVATE = ("model", "run", "notes")
_NO_PROTOCOL = (*PER_RUN, "step", "model", "set", "run", "notes")


@dataclass(frozen=True)
class Measurement:
    """One number with what a reader needs to judge it.

    Args:
        task, dataset, split, metric (`str`): As in [`Result`]; of a local folder only its name.
        value (`float`): The number, the mean over seeds if there are several.
        spread (`str`): "± 0.003 (3 seeds)", "(0.91 to 0.94)" for a 95 % interval, or nothing.
        when (`str`): "before training", "after training", "after 100 steps", or nothing.
        protocol (`str`): Such as "k = 20, temperature = 0.07".
        is_final (`bool`): Whether it is of the published weights, not of a training step before them.
    """

    task: str
    dataset: str
    split: str
    metric: str
    value: float
    spread: str
    when: str
    protocol: str
    is_final: bool

    @property
    def task_name(self) -> str:
        return TASKS.get(self.task, self.task)

    @property
    def metric_name(self) -> str:
        return METRICS.get(self.metric, self.metric)

    def as_model_index(self) -> EvalResult:
        """An entry of `model-index`, the older of the Hub's two forms.

        The Hub's client puts all numbers of one data set under the task name of the first: each says its own.
        """
        args = {"task": clean(self.task, 60)}
        return EvalResult(
            task_type="object-detection" if self.task == "detection" else "image-classification",
            task_name=clean(self.task_name, 60),
            dataset_type=clean(self.dataset, 96),
            dataset_name=clean(self.dataset, 96),
            dataset_split=clean(self.split, 60),
            metric_type=clean(_METRIC_IDS.get(self.metric, self.metric), 60),
            metric_name=clean(f"{self.metric_name}, {self.task_name}", 60),
            metric_value=self.value,
            metric_args=args | ({"protocol": self.protocol} if self.protocol else {}),
        )


def public_result(result: Result) -> Result:
    """A result that may leave the machine: folders go by their own name, see [`public_name`]."""
    settings = {name: value for name, value in result.settings.items() if name not in _PRIVATE}
    if isinstance(settings.get("set"), str):
        settings["set"] = public_name(settings["set"])
    return dataclasses.replace(result, dataset=public_name(result.dataset), settings=settings)


def merge_results(earlier: list[Result], later: list[Result]) -> list[Result]:
    """All results, without those of `earlier` that `later` measured again, whatever came out."""
    measured = {_key(result) for result in later}
    return [result for result in earlier if _key(result) not in measured] + later


def load_measurements(folder: str | Path) -> list[Measurement]:
    """The measurements of an encoder folder, in order; none without `results.json`.

    Raises:
        ValueError: the file is not of this form.
    """
    path = Path(folder) / RESULTS
    return measurements_of(read_results(path)) if path.is_file() else []


def measurements_of(results: list[Result]) -> list[Measurement]:
    """Results in order, those that differ by their seed alone as one."""
    groups: dict[tuple, list[Result]] = defaultdict(list)
    for number, result in enumerate(results):
        same = {name: value for name, value in result.settings.items() if name not in PER_RUN}
        run = None if "seed" in result.settings else number
        about = repr(sorted(same.items()))
        groups[result.task, result.dataset, result.split, result.metric, about, run].append(result)
    return [_measurement(group) for group in groups.values()]


def eval_result_files(folder: str | Path, *, repo_id: str, results: list[Result] | None = None) -> dict[str, str]:
    """The measurements of an encoder folder as `.eval_results/*.yaml`, from which the Hub fills its leaderboards.

    Only measurements of the published weights on data with a Hub id `owner/name` have such a file, as the form names
    the data by that id. `digits` and local folders have none: their numbers stand in `results.json`, the card and its
    `model-index`.

    Args:
        folder (`str` or `Path`): Encoder folder; without `results.json` there are no files.
        repo_id (`str`): Where it is published; named as the source of the numbers.
        results (`list[Result]`, *optional*): In place of the folder's.

    Returns:
        `dict[str, str]`: Text by path in the repository, one file for each data set and task.

    Raises:
        ValueError: `results.json` is not of this form.
    """
    entries: dict[str, dict[str, EvalResultEntry]] = defaultdict(dict)
    for measurement in load_measurements(folder) if results is None else measurements_of(results):
        dataset = hub_id(measurement.dataset)
        if dataset is None or not measurement.is_final:
            continue
        file = entries[f".eval_results/{_slug(dataset)}-{_slug(measurement.task)}.yaml"]
        task = f"{_slug(measurement.task)}_{_slug(measurement.metric)}"
        # One id for each protocol: the first one's is the plain name.
        task = task if task not in file else f"{task}_{_slug(measurement.protocol)}"
        split = f"split = {clean(measurement.split, 60)}"
        file[task] = EvalResultEntry(
            dataset_id=dataset,
            task_id=task,
            value=measurement.value,
            source_url=f"{constants.ENDPOINT}/{repo_id}",
            source_name="Model card",
            notes=", ".join(part for part in (split, measurement.protocol, measurement.spread) if part),
        )
    return {
        path: yaml.safe_dump(eval_result_entries_to_yaml([*file.values()]), sort_keys=False, allow_unicode=True)
        for path, file in entries.items()
    }


def names_source(text: str, url: str) -> bool:
    """Whether all numbers of an `.eval_results/*.yaml` have `url` as their source."""
    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return False
    sources = [
        entry.get("source") if isinstance(entry, dict) else None
        for entry in (entries if isinstance(entries, list) else [])
    ]
    return bool(sources) and all(isinstance(source, dict) and source.get("url") == url for source in sources)


def _key(result: Result) -> str:
    """What was measured and how, without what came out."""
    how = {name: value for name, value in result.settings.items() if name == "seed" or name not in PER_RUN}
    return json.dumps([result.task, result.dataset, result.split, result.metric, how], sort_keys=True)


def _measurement(group: list[Result]) -> Measurement:
    first, values = group[0], [result.value for result in group]
    spread, interval = "", first.settings.get("interval")
    if len(values) > 1:
        spread = f"± {stdev(values):.3f} ({len(values)} seeds)"
    elif isinstance(interval, list | tuple) and len(interval) == 2 and all(isinstance(v, float) for v in interval):
        spread = f"({interval[0]:.3f} to {interval[1]:.3f})"
    step = first.settings.get("step")
    when = {None: "", "end": "after training", 0: "before training"}.get(
        step if isinstance(step, str | int | None) else "", f"after {clean(step, 20)} steps"
    )
    return Measurement(
        task=first.task,
        dataset=public_name(first.dataset),
        split=first.split,
        metric=first.metric,
        value=mean(values),
        spread=spread,
        when=when,
        protocol=_protocol(first.settings),
        is_final=step in (None, "end"),
    )


def _protocol(settings: dict) -> str:
    words = []
    for name, value in settings.items():
        if name == "temperature" and value is None:
            words.append("plain vote")
        elif name not in _NO_PROTOCOL and isinstance(value, str | int | float):
            # Results of others may hold anything; these texts go into YAML and tables.
            words.append(clean(value, 60) if name == "protocol" else f"{clean(name, 30)} = {clean(value, 60)}")
    return ", ".join(words)


def _slug(text: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", clean(text, 60)).strip("._")
    return slug or "unnamed"
