"""Correlate measures without labels with the linear probe, by Spearman's ρ: how well do they rank runs?"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

# Title → what ranks a run: more is better.
RANKS = {
    "RankMe": lambda row: row["rankme"],
    "LiDAR": lambda row: row["lidar"],
    "α-ReQ": lambda row: -abs(row["alpha_req"] - 1),
    "effective rank": lambda row: row["effective_rank"],
}
KEYS = {"RankMe": "rankme", "LiDAR": "lidar", "α-ReQ": "alpha_req", "effective rank": "effective_rank"}
# Fewer runs of a method say nothing of their order.
FEWEST = 5


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ of a measure with the linear probe.

    Args:
        overall (`float`): Over all runs.
        low, high (`float`): The 95 % interval by Fisher's transform, with the variance of Bonett & Wright (2000).
        within (`dict`): Method → ρ over its runs.
    """

    overall: float
    low: float
    high: float
    within: Mapping[str, float]


def correlations(runs: Sequence[Mapping[str, Any]]) -> dict[str, Correlation]:
    """Return the correlation of each measure, over the runs that have it."""
    found = {}
    for title, rank in RANKS.items():
        have = [row for row in runs if KEYS[title] in row]
        if len(have) < 3:
            continue
        overall = _rho(have, rank)
        reach = stats.norm.ppf(0.975) * math.sqrt((1 + overall**2 / 2) / max(len(have) - 3, 1))
        middle = math.atanh(min(max(overall, -0.999999), 0.999999))
        groups = defaultdict(list)
        for row in have:
            groups[row["method"]].append(row)
        within = {method: _rho(rows, rank) for method, rows in groups.items() if len(rows) >= FEWEST}
        within = {method: rho for method, rho in within.items() if not math.isnan(rho)}
        found[title] = Correlation(overall, math.tanh(middle - reach), math.tanh(middle + reach), within)
    return found


def _rho(rows: Sequence[Mapping[str, Any]], rank: Any) -> float:
    return float(stats.spearmanr([rank(row) for row in rows], [row["linear"] for row in rows]).statistic)
