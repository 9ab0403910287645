"""Write the page of a comparison: tables, differences from the first arm with intervals, a verdict on each arm."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..files import replace_file
from .arms import SYMBOLS
from .figures import FIGURES, MOST_SPECTRA
from .statistics import Difference, joint_verdict, mean_and_spread, paired_difference

REPORT = "README.md"
TEMPLATE = Path(__file__).with_name("report_template.md")


class Measure:
    """A number of a row, as tables show it.

    Args:
        title (`str`): Heading of its column.
        path (`str`): Its keys in a row, joined by dots.
        form (`str`): Format of one value.
        scale (`float`, defaults to 1): Multiplies the value.
    """

    def __init__(self, title: str, path: str, form: str, scale: float = 1.0):
        self.title, self.path, self.form, self.scale = title, path, form, scale

    def of(self, row: Mapping[str, Any]) -> float | None:
        """Return the number of a row, `None` if it has none."""
        value: Any = row
        for key in self.path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None else self.scale * value

    def text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Return mean and standard deviation over rows, as text."""
        values = [value for row in rows if (value := self.of(row)) is not None]
        if not values:
            return "–"
        mean, spread = mean_and_spread(values)
        return f"{mean:{self.form}}" + ("" if math.isnan(spread) else f" ± {spread:{self.form}}")


ACCURACY = (Measure("kNN, %", "knn", ".1f", 100), Measure("linear, %", "linear", ".1f", 100))
RANK = Measure("effective rank", "representation.effective_rank", ".1f")
LABEL_FREE = (
    RANK,
    Measure("RankMe", "representation.rankme", ".1f"),
    Measure("LiDAR", "representation.lidar", ".1f"),
    Measure("α-ReQ", "representation.alpha_req", ".2f"),
    Measure("effective rank of patch tokens", "patch_tokens.effective_rank", ".1f"),
)
WEIGHTS = (
    Measure("relative rank of the weights", "weights_relative_rank", ".3f"),
    Measure("Σ SO of the weights", "weights_so", ".4g"),
)
COSTS = (
    Measure("seconds a step", "seconds_per_step", ".3g"),
    Measure("memory of a step, MB", "peak_bytes", ".0f", 1e-6),
)


def write_report(record: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a comparison as a whole.

    Args:
        record (`dict`): The content of `comparison.json`, with at least one run.
        folder (`Path`): Folder of the page, and of the figures that it shows.

    Returns:
        `Path`: The page.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return replace_file(folder / REPORT, page.render(**page_values(record, folder)).rstrip() + "\n")


def page_values(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the values that the page shows."""
    rows, names = record["runs"], [arm["name"] for arm in record["arms"]]
    good = [row for row in rows if "failed" not in row]
    first = good[0]["settings"] if good else None
    labelled = any("linear" in row for row in good)
    compared = ACCURACY if labelled else (RANK,)
    arms = [_arm(arm, good, rows, names[0], compared) for arm in record["arms"]]
    tables = {"accuracy": ACCURACY if labelled else (), "label_free": LABEL_FREE, "weights": (*WEIGHTS, *COSTS)}
    shown = {
        name: [measure for measure in measures if any(measure.of(row) is not None for row in good)]
        for name, measures in tables.items()
    }
    return {
        "record": record,
        "reference": names[0],
        "arms": arms,
        "untrained": record["untrained"],
        "settings": first,
        "labelled": labelled,
        "tables": shown,
        "seeds_done": sorted({row["seed"] for row in rows}),
        "machines": sorted({row["machine"] for row in good}),
        "tuned": [arm for arm in record["arms"] if arm["tuning"]],
        "symbols": SYMBOLS,
        "edges": [arm["name"] for arm in record["arms"] if _at_edge(arm)],
        "most_spectra": MOST_SPECTRA,
        "figures": {name: file for name, file in FIGURES.items() if (folder / file).is_file()},
    }


def _arm(
    arm: Mapping[str, Any],
    good: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    reference: str,
    compared: Sequence[Measure],
) -> dict[str, Any]:
    """Return what the page says of one arm."""
    own = [row for row in good if row["arm"] == arm["name"]]
    base = [row for row in good if row["arm"] == reference]
    differences = {}
    if arm["name"] != reference:
        for measure in compared:
            by_seed = [
                {row["seed"]: value for row in part if (value := measure.of(row)) is not None} for part in (own, base)
            ]
            if by_seed[0].keys() & by_seed[1].keys():
                differences[measure] = paired_difference(*by_seed)
    failed = [row for row in rows if row["arm"] == arm["name"] and "failed" in row]
    shown = "–" if arm["chosen"] is None else f"{SYMBOLS[arm['strength']]} = {arm['chosen']:g}"
    return {
        "name": arm["name"],
        "strength": shown,
        "rows": own,
        "failed": failed,
        "differences": differences,
        "verdict": _verdict(arm["name"], reference, differences, own, failed, compared),
    }


def _verdict(
    name: str,
    reference: str,
    differences: Mapping[Measure, Difference],
    own: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, Any]],
    compared: Sequence[Measure],
) -> str:
    """Return one sentence on an arm."""
    lost = f" {len(failed)} of {len(own) + len(failed)} runs failed: their loss was not finite." if failed else ""
    if not differences:
        return f"**{name}** has no run beside one of {reference} from the same seed yet.{lost}"
    parts = [f"{_short(measure)} {change(measure, found)}" for measure, found in differences.items()]
    joint = joint_verdict(list(differences.values()))
    if compared == (RANK,):
        words = {
            "helps": "raises",
            "harms": "lowers",
            "not told apart": "is not told apart in",
            "one seed": "has in one seed",
        }
        return f"**{name}** {words[joint]} the effective rank of the representation: {parts[0]}.{lost}"
    if joint == "one seed":
        return f"**{name}** has one seed, which shows no interval: {', '.join(parts)}.{lost}"
    words = {"not told apart": f"is not told apart from {reference}"}
    return f"**{name}** {words.get(joint, joint)}: {', '.join(parts)}.{lost}"


def change(measure: Measure, found: Difference) -> str:
    """Return a difference and its interval, as in "+1.2 (0.3 to 2.1)"."""
    if found.count == 1:
        return f"{found.mean:+{measure.form}}"
    return f"{found.mean:+{measure.form}} ({found.low:+{measure.form}} to {found.high:+{measure.form}})"


def _short(measure: Measure) -> str:
    return measure.title.replace(", %", "")


def _at_edge(arm: Mapping[str, Any]) -> bool:
    """Return whether the choice is the smallest or largest candidate, beyond which a better one may lie."""
    tried = sorted(run["strength"] for run in arm["tuning"])
    return len(tried) > 1 and arm["chosen"] in (tried[0], tried[-1])
