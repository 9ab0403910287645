"""Plan a comparison: which runs there are, in which order, and what the strength of each arm is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .arms import Arm
from .options import TUNING_SEED
from .runs import UNTRAINED, Run, UntrainedRun


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison, in folders below `root`.

    First come the runs that choose strengths, one candidate of each arm in turn, then all arms of the first seed, all
    of the second and so on: wherever it is stopped, the arms have as many runs as each other, from the same seeds.

    Args:
        arms (sequence of [`Arm`]): What is compared; the others are compared with the first.
        seeds (`int`): Runs of each arm, from the seeds 0, 1, …
        options (`dict`): The options of `orthossl pretrain` that all runs share.
        tuning (`dict`): Those of them that differ in runs that choose a strength: the steps. Empty if none chooses.
        choose_by (`str`): The measure by which strengths are chosen.
        root (`Path`): The folder of the comparison.
    """

    arms: Sequence[Arm]
    seeds: int
    options: Mapping[str, Any]
    tuning: Mapping[str, Any]
    choose_by: str
    root: Path

    @property
    def choosing(self) -> bool:
        """Return whether any strength is chosen."""
        return any(self.candidates(arm) for arm in self.arms)

    def candidates(self, arm: Arm) -> list[Run]:
        """Return the runs that choose the strength of an arm: none for an arm with a single one, or without any."""
        if not self.tuning or len(arm.strengths) < 2:
            return []
        options, folder = {**self.options, **self.tuning}, self.root / "runs" / arm.folder / "tuning"
        return [
            Run(arm, strength, TUNING_SEED, options, folder / f"{strength:g}", self.choose_by)
            for strength in arm.strengths
        ]

    def strength(self, arm: Arm) -> tuple[bool, float | None]:
        """Return whether the strength of an arm is known, and the strength.

        Of candidates with equal scores, as of arms that all diverged, the weakest is taken. Without a choice, that in
        the middle is.
        """
        candidates = self.candidates(arm)
        if not candidates:
            return True, sorted(arm.strengths)[(len(arm.strengths) - 1) // 2] if arm.strengths else None
        if not all(run.is_measured for run in candidates):
            return False, None
        ordered = sorted(candidates, key=lambda run: run.strength or 0.0)
        return True, max(ordered, key=lambda run: run.row.get("score", float("-inf"))).strength

    def final(self, arm: Arm, seed: int) -> Run | None:
        """Return the run of an arm that counts, from one seed; `None` while its strength is not chosen."""
        known, strength = self.strength(arm)
        folder = self.root / "runs" / arm.folder / f"seed-{seed}"
        return Run(arm, strength, seed, self.options, folder) if known else None

    def untrained(self, seed: int) -> UntrainedRun:
        """Return the encoder that all arms of a seed begin with."""
        first = Run(self.arms[0], None, seed, self.options, self.root / "runs" / self.arms[0].folder / f"seed-{seed}")
        return UntrainedRun(first, self.root / "runs" / UNTRAINED / f"seed-{seed}")

    def all_candidates(self) -> list[Run]:
        """Return the runs that choose strengths, one of each arm in turn."""
        rounds = zip_longest(*(self.candidates(arm) for arm in self.arms))
        return [run for turn in rounds for run in turn if run is not None]

    def in_order(self) -> Iterator[Run | UntrainedRun | None]:
        """Yield all runs in order; `None` stands for one that cannot begin yet, because its strength is not chosen."""
        yield from self.all_candidates()
        for seed in range(self.seeds):
            yield self.untrained(seed)
            for arm in self.arms:
                yield self.final(arm, seed)

    def finals(self) -> list[Run]:
        """Return the runs that count and are measured, all arms of a seed before the next seed."""
        runs = [self.final(arm, seed) for seed in range(self.seeds) for arm in self.arms]
        return [run for run in runs if run is not None and run.is_measured]

    def left(self) -> int:
        """Return the number of runs that count and are not measured yet."""
        return self.seeds * len(self.arms) - len(self.finals())
