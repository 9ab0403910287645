"""Define the options of a comparison, without torch, and refuse those of a run that it does not take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..messages import describe, suggest
from ..training.inherited import refusal as training_refusal
from ..training.options import OPTION_CLASSES

# The seed of the runs that choose strengths: none of those that count.
TUNING_SEED = 100
# Options of `orthossl pretrain` that an arm decides,
ARM_OPTIONS = (
    *("regularizer", "gamma", "penalty_mode", "strength", "whitening", "embedding_regularizer", "embedding_weight"),
    "constrain",
)
# and those that the comparison itself decides.
OWN_OPTIONS = (
    *("seed", "resume", "overwrite_output", "streaming", "knn_images", "disable_tqdm"),
    *("save_strategy", "save_steps", "save_total_limit", "spectra_threshold", "select_by", "stop_on_collapse"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision"),
    "hub_token",
)
# Where runs go is part of neither the runs nor the comparison; one may be continued with more arms, seeds or minutes.
NOT_COMPARED = ("output_dir", "arms", "seeds", "strengths", "max_minutes")


@dataclass
class ComparisonOptions:
    """Options of `orthossl compare` besides those of the runs."""

    _argument_group_name = "comparison"

    arms: list[str] = field(
        default_factory=lambda: ["none", "so"],
        metadata={"metavar": "NAME", "help": "what to compare, with the first, as in none so muon+so"},
    )
    seeds: int = field(default=3, metadata={"help": "runs of each arm, from the seeds 0, 1, …"})
    strengths: dict | None = field(default=None, metadata={"help": "candidates, as in so=1e-4,1e-3 (default: by arm)"})
    tuning_steps: float = field(
        default=round(1 / 3, 4), metadata={"help": "steps, or share, of a run that chooses; 0: none"}
    )
    choose_by: Literal["knn", "effective_rank", "rankme", "lidar", "alpha_req"] | None = field(
        default=None, metadata={"metavar": "NAME", "help": "knn, rankme, lidar, … (default: knn, if labels)"}
    )
    images: int | None = field(default=None, metadata={"help": "images to train on, at random (default: all)"})
    test_split: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "split to measure with (default: test or validation)"}
    )
    max_minutes: float | None = field(default=None, metadata={"help": "stop then; the same command goes on"})
    output_dir: str = field(default="runs/comparison", metadata={"metavar": "DIR", "help": "folder of the comparison"})

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= TUNING_SEED:
            raise ValueError(f"seeds is {self.seeds}: it must be a number of runs from 1 to {TUNING_SEED}")
        if not 0 <= self.tuning_steps < math.inf or (self.tuning_steps > 1 and self.tuning_steps % 1):
            raise ValueError(
                f"tuning_steps is {self.tuning_steps:g}: it must be a whole number of steps, a share of a run up to 1, "
                "or 0 for no choice"
            )
        if self.images is not None and self.images < 2:
            raise ValueError(f"images is {self.images}: it must be 2 or more, or left out for all images")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes is {self.max_minutes:g}: it must be above 0, or left out")
        if not self.output_dir.strip():
            raise ValueError("output_dir is empty: pass the folder of the comparison, as in runs/comparison")
        self.strengths = {name: _numbers(name, value) for name, value in (self.strengths or {}).items()}


def _numbers(name: str, value: Any) -> list[float]:
    """Return the strengths given for an arm: a number, a list of them, or text with commas."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"strengths has {name}={describe(value)}: it must be numbers above 0, as in {name}=1e-4,1e-3")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"strengths has {name}={describe(value)}: pass each number once")
    return numbers


def refusal(name: str) -> str | None:
    """Return why `orthossl compare` does not take an option, or `None`."""
    if name in ARM_OPTIONS:
        return "an arm decides it, as in --arms none so so:decoupled; --strengths so=1e-3 gives its strength"
    if name in OWN_OPTIONS:
        return "a comparison decides it for all of its runs: leave it out"
    return training_refusal(name)


def check_taken(names: Mapping[str, Any]) -> None:
    """Refuse options of a run that a comparison does not take.

    Raises:
        ValueError: With the reason, or the nearest name.
    """
    known = [spec.name for kind in (*OPTION_CLASSES, ComparisonOptions) for spec in fields(kind) if spec.init]
    for name in names:
        if reason := refusal(name):
            raise ValueError(f"{name} cannot be used: {reason}")
        if name not in known:
            raise ValueError(f"unknown option {name!r}: {suggest(name, known)}")
