"""Tables of results for a terminal: one line per model and protocol, averaged over seeds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from .results import Result

# Settings that distinguish the protocols of one task → their format in a table.
_WORDS = {
    "k": "k {}",
    "temperature": "T {}",
    "protocol": "{}",
    "label_noise": "label noise {}",
    "imbalance": "imbalance {:g}",
    "step": "step {}",
    "detector": "{}",
    "steps": "{} steps",
}


def results_table(results: Sequence[Result]) -> str:
    """Return a table of results: model, task, protocol and every metric, as mean ± standard deviation over seeds."""
    rows: dict[tuple, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        key = (result.protocol.get("model", ""), result.task, result.dataset, protocol(result))
        rows[key][result.metric].append(result)
    metrics = list(dict.fromkeys(result.metric for result in results))
    header = ["model", "task", "data", "protocol", *metrics]
    lines = [[*key, *(_cell(values.get(metric, [])) for metric in metrics)] for key, values in rows.items()]
    return _aligned(header, lines)


def transfer_table(results: Sequence[Result], failures: Mapping[tuple[str, str], str] | None = None) -> str:
    """Return a table of transfer results: a line per model and probe, a column per data set.

    Args:
        results (`Sequence[Result]`): Results of the task "transfer".
        failures (`Mapping`, *optional*): The reason of each missing result, by model and set.
    """
    failures = failures or {}
    rows: dict[tuple, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    heads: dict[str, str] = {}
    for result in results:
        name, metric = result.protocol["set"], result.metric
        heads[name] = name if metric == "top1" else f"{name} ({metric.replace('_', ' ')})"
        rows[result.protocol.get("model", ""), f"{result.protocol['probe']}, {protocol(result)}"][name].append(result)
    heads |= {name: name for _, name in failures if name not in heads}
    models = {model for model, _ in rows}
    for model, _ in failures:
        if model not in models:
            rows[model, "-"] = defaultdict(list)
    lines = [
        [*key, *("failed" if (key[0], name) in failures else _cell(values.get(name, [])) for name in heads)]
        for key, values in rows.items()
    ]
    return _aligned(["model", "probe", *heads.values()], lines)


def _aligned(header: list[str], lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in [header, rule, *lines])


def protocol(result: Result) -> str:
    """Return a short description of the settings that determine a result."""
    words = []
    for name, form in _WORDS.items():
        if name in result.protocol:
            value = result.protocol[name]
            words.append("plain vote" if name == "temperature" and value is None else form.format(value))
    return ", ".join(words)


def _cell(results: list[Result]) -> str:
    if not results:
        return "-"
    values = [result.value for result in results]
    if len(values) > 1:
        return f"{mean(values):.4f} ± {stdev(values):.4f} ({len(values)} seeds)"
    interval = results[0].protocol.get("interval")
    return f"{values[0]:.4f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
