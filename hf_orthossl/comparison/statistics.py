"""Statistics of a few seeds: means, spreads, and differences paired by seed with their intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its interval.

    Args:
        mean (`float`): Of the differences.
        low, high (`float`): Ends of the interval by Student's t with n − 1 degrees of freedom; infinite for n = 1.
        count (`int`): n, the number of pairs.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def verdict(self) -> str:
        """Return "higher" or "lower" if the interval excludes 0, else "not told apart"."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not told apart"


def joint_verdict(differences: Sequence[Difference]) -> str:
    """Return what several measures, of which higher is better, say together of an arm.

    Returns:
        `str`: "helps" if one is higher and none lower, "harms" if one is lower and none higher, "helps and harms" if
        they disagree, "not told apart" if no interval excludes 0, "one seed" if there are no intervals.
    """
    if all(difference.count == 1 for difference in differences):
        return "one seed"
    verdicts = {difference.verdict for difference in differences}
    if {"higher", "lower"} <= verdicts:
        return "helps and harms"
    return "helps" if "higher" in verdicts else "harms" if "lower" in verdicts else "not told apart"


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; the latter is NaN for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def paired_difference(values: dict[int, float], reference: dict[int, float]) -> Difference:
    """Return `values` minus `reference` over the seeds that both have.

    Raises:
        ValueError: if no seed is in both.
    """
    pairs = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    if not pairs:
        raise ValueError("values and reference have no seed in common")
    mean, spread = mean_and_spread(pairs)
    if len(pairs) == 1:
        return Difference(mean, -math.inf, math.inf, 1)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1) * spread / math.sqrt(len(pairs))
    return Difference(mean, mean - reach, mean + reach, len(pairs))
