"""The runs of an experiment, and the choice of γ for each arm."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_orthossl.files import replace_file

from .presets import Arm, Experiment
from .runs import Run

# Of the runs that choose γ: none of those that count.
TUNING_SEED = 100
TUNED = "tuned.json"


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment, in folders below `root`.

    Args:
        experiment ([`Experiment`]): What is compared.
        dataset (`str`): Hub id or folder of CIFAR-10.
        root (`Path`): Where its runs go.
        seeds (sequence of `int`): A run of each arm from each.
        epochs (`float`, *optional*): Of every run that counts, instead of the experiment's; those that choose γ keep
            their share of it.
        device (`str`): Where it runs.
    """

    experiment: Experiment
    dataset: str
    root: Path
    seeds: Sequence[int]
    epochs: float | None
    device: str

    def tune(self) -> None:
        """Do the runs that choose γ: one for each candidate, from one seed, scored on held-out training images."""
        for arm in self.experiment.arms:
            for run in self._candidates(arm):
                path = run.folder / TUNED
                if not path.is_file():
                    run.train()
                    replace_file(path, json.dumps({"weight": run.weight, "knn": run.score()}) + "\n", durable=True)

    def scores(self) -> dict[str, dict[float, float]]:
        """Return the kNN top-1 on the validation split by arm and γ, for the candidates that have been run."""
        found = {}
        for arm in self.experiment.arms:
            paths = {run.weight: run.folder / TUNED for run in self._candidates(arm)}
            read = {
                weight: json.loads(path.read_text(encoding="utf-8"))["knn"]
                for weight, path in paths.items()
                if path.is_file()
            }
            found |= {arm.name: read} if read else {}
        return found

    def runs(self) -> list[Run]:
        """Return the runs to report of all arms whose γ has been chosen, all arms of a seed before the next seed."""
        scores, epochs = self.scores(), self.epochs or self.experiment.epochs
        chosen = {}
        for arm in self.experiment.arms:
            known = scores.get(arm.name, {})
            if len(arm.weights) < 2:
                chosen[arm] = next(iter(arm.weights), None)
            elif len(known) == len(arm.weights):
                chosen[arm] = max(known, key=known.get)
        return [
            self._run(arm, weight, seed, epochs, self.root / f"{arm.name}-seed{seed}")
            for seed in self.seeds
            for arm, weight in chosen.items()
        ]

    def left(self) -> int:
        """Return the number of runs that count and have not been measured."""
        return len(self.seeds) * len(self.experiment.arms) - sum(run.is_measured for run in self.runs())

    @property
    def tuning_epochs(self) -> float:
        """Of the runs that choose γ."""
        share = self.experiment.tuning_epochs / self.experiment.epochs
        return share * (self.epochs or self.experiment.epochs)

    def _candidates(self, arm: Arm) -> list[Run]:
        return [
            self._run(arm, weight, TUNING_SEED, self.tuning_epochs, self.root / "tuning" / f"{arm.name}-{weight:g}")
            for weight in (arm.weights if len(arm.weights) > 1 else ())
        ]

    def _run(self, arm: Arm, weight: float | None, seed: int, epochs: float, folder: Path) -> Run:
        return Run(self.experiment, arm, weight, seed, epochs, self.dataset, folder, self.device)
