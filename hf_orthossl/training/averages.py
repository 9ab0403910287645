"""Averages of what is logged, over steps and processes, that a checkpoint can hold."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..distributed.collectives import all_reduce_mean


class Averages:
    """Sums of detached scalars by name since the last log entry."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor, count: int = 1) -> None:
        """Adds a scalar that counts `count` times, 0 for a share of one that is added in parts."""
        value = value.detach().float()
        if name in self._sums:
            value = self._sums[name].to(value.device) + value
        self._sums[name] = value
        self._counts[name] = self._counts.get(name, 0) + count

    def drain(self) -> dict[str, float]:
        """Averages since the last call over all processes, by name; call it on all of them."""
        means = {name: all_reduce_mean(total / self._counts[name]).item() for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return means

    def state_dict(self) -> dict[str, list[float]]:
        """Sum and count by name, as JSON values."""
        return {name: [total.item(), self._counts[name]] for name, total in self._sums.items()}

    def load_state_dicts(self, states: Iterable[dict[str, list[float]]]) -> None:
        """Takes over the sums of one process, or the mean of those of several."""
        states = list(states)
        self._counts = {name: int(count) for name, (_, count) in states[0].items()}
        self._sums = {
            name: torch.tensor(sum(state[name][0] for state in states) / len(states)) for name in self._counts
        }
