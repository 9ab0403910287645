"""The report: tables, verdicts and figures of the runs that have ended, and their raw numbers."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from hf_orthossl.comparison.statistics import Difference, mean_and_spread, paired_difference
from hf_orthossl.encoders import load_encoder
from hf_orthossl.files import replace_file

from .figures import plot_arms, plot_seeds
from .plan import Plan
from .runs import Run

TEMPLATE = Path(__file__).with_name("report_template.md")
SCORES = {"knn": "kNN", "linear": "the linear probe"}
MEASURES = (*SCORES, "representation_effective_rank", "weights_relative_rank", "so", "srip")


def agreement(differences: Sequence[Difference]) -> str:
    """Return whether several measures of one arm agree with the claim that it is higher, disagree, or leave it open."""
    verdicts = {difference.verdict for difference in differences}
    if {"higher", "lower"} <= verdicts:
        return "partly agrees, partly disagrees"
    return "agrees" if "higher" in verdicts else "disagrees" if "lower" in verdicts else "is left open"


def write_report(plans: Sequence[Plan], folder: Path) -> Path:
    """Write `README.md`, `runs.json` (raw numbers) and figures for the experiments that have measured runs.

    Args:
        plans (sequence of [`Plan`]): The experiments.
        folder (`Path`): Folder to write.

    Returns:
        `Path` of the page.

    Raises:
        ValueError: no run has been measured yet.
    """
    found = [(plan, [run for run in plan.runs() if run.is_measured]) for plan in plans]
    found = [(plan, runs) for plan, runs in found if runs]
    if not found:
        raise ValueError("no run has ended yet: leave out --report, and the same command runs what is missing")
    folder.mkdir(parents=True, exist_ok=True)
    experiments = [_experiment(plan, runs, folder) for plan, runs in found]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    path = folder / "README.md"
    raw = [run.measure() for _, runs in found for run in runs]
    # How busy it was differs from run to run.
    machines = sorted({re.sub(r", load [\d.]+", "", row["machine"]) for row in raw})
    replace_file(path, page.render(experiments=experiments, machines=machines) + "\n")
    replace_file(folder / "runs.json", json.dumps(raw, indent=2) + "\n")
    return path


def _experiment(plan: Plan, runs: list[Run], folder: Path) -> dict:
    """Return the values that the page shows for one experiment."""
    name, rows = plan.experiment.name, [run.measure() for run in runs]
    arms = [arm.name for arm in plan.experiment.arms if any(row["arm"] == arm.name for row in rows)]
    plot_seeds(rows, arms, folder / f"{name}-seeds.png")
    first = [run for run in runs if run.seed == runs[0].seed]
    plot_arms(first, folder, name)
    return {
        "plan": plan.experiment,
        "epochs": rows[0]["epochs"],
        "steps": runs[0].steps,
        "batch": plan.experiment.options["per_device_train_batch_size"],
        "million_parameters": sum(p.numel() for p in load_encoder(str(first[0].encoder)).parameters()) / 1e6,
        "seeds": sorted({run.seed for run in runs}),
        "scores": plan.scores(),
        "tuning_epochs": plan.tuning_epochs,
        "untrained": {key: mean_and_spread([r["untrained"][key] for r in rows if r["untrained"]]) for key in SCORES},
        "dim": rows[0]["representation_dim"],
        "arms": [_arm(rows, arm, arms[0]) for arm in arms],
    }


def _arm(rows: Sequence[dict], arm: str, reference: str) -> dict:
    """Means and spreads of one arm, and its differences from the one without a penalty."""
    own = [row for row in rows if row["arm"] == arm]
    return {
        "name": arm,
        "weight": own[0]["weight"],
        "count": len(own),
        "measures": {key: mean_and_spread([row[key] for row in own]) for key in MEASURES},
        "agreement": agreement([_difference(rows, arm, reference, key) for key in SCORES]),
        "differences": {} if arm == reference else {SCORES[k]: _difference(rows, arm, reference, k) for k in SCORES},
    }


def _difference(rows: Sequence[dict], arm: str, reference: str, key: str) -> Difference:
    by_seed = [{row["seed"]: row[key] for row in rows if row["arm"] == name} for name in (arm, reference)]
    return paired_difference(*by_seed)
