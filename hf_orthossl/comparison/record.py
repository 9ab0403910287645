"""Write `comparison.json`: every run with the settings that ran, and how strengths were chosen."""

import json
from pathlib import Path
from typing import Any

from ..files import replace_file
from ..training.settings import as_json
from .images import ComparedImages
from .plan import Plan

COMPARISON = "comparison.json"
SCHEMA_VERSION = 1


def comparison_record(plan: Plan, images: ComparedImages) -> dict[str, Any]:
    """Return all that is known of a comparison, of the runs that have ended so far.

    Args:
        plan ([`Plan`]): The runs.
        images ([`ComparedImages`]): The images of the comparison.

    Returns:
        `dict`: JSON values: `schema_version`; `options` (those that all runs share, as given); `data`; `choose_by`,
        `tuning_steps` and `seeds`; `arms`, each with its `options`, the option of its `strength`, the one that was
        `chosen` and the `tuning` that chose it; `untrained` and `runs`, the rows of [`~runs.Run.complete`]; `left`, the
        number of runs that have not ended.
    """
    test, held_out = images.test, images.held_out
    data = {
        "name": images.train.name,
        "split": images.train.split,
        "images": images.train.num_rows,
        "test_split": None if test is None else test.split,
        "test_images": None if test is None else test.num_rows,
        "held_out_images": None if held_out is None else held_out.num_rows,
        "labelled": images.labelled,
    }
    arms = []
    for arm in plan.arms:
        tuning = [run.row for run in plan.candidates(arm) if run.is_measured]
        arms.append(
            {
                "name": arm.name,
                "options": as_json(arm.options),
                "strength": arm.strength,
                "candidates": list(arm.strengths),
                "chosen": plan.strength(arm)[1],
                "tuning": tuning,
            }
        )
    untrained = [plan.untrained(seed) for seed in range(plan.seeds)]
    return {
        "schema_version": SCHEMA_VERSION,
        "options": as_json({name: value for name, value in plan.options.items() if name != "dataset"}),
        "data": data,
        "choose_by": plan.choose_by if plan.choosing else None,
        "tuning_steps": plan.tuning["max_steps"] if plan.choosing else None,
        "seeds": plan.seeds,
        "arms": arms,
        "untrained": [run.row for run in untrained if run.is_measured],
        "runs": [run.row for run in plan.finals()],
        "left": plan.left(),
    }


def write_record(root: Path, record: dict[str, Any]) -> Path:
    """Write `comparison.json` as a whole, and return its path."""
    return replace_file(root / COMPARISON, json.dumps(record, indent=1) + "\n")
