"""What would keep the directions that a forecast sees die."""

import math
from dataclasses import asdict

from .linear import LinearLandscape
from .minima import Minimum
from .objective import Objective


def gamma_to_revive(landscape: LinearLandscape, objective: Objective, minimum: Minimum) -> float | None:
    """γ above which all live; of InfoNCE by its quartic part, as its own is a search of minutes; `None` without one."""
    if objective.loss == "normalized":
        return None
    if minimum.surviving == landscape.rank:
        return 0.0
    T = objective.temperature
    if objective.loss == "infonce":
        objective = Objective(alpha=objective.alpha, weight_decay=objective.weight_decay * T, kappa=0.75 / T)
        return landscape.gamma_to_revive(**asdict(objective)) / T
    return landscape.gamma_to_revive(**asdict(objective))


def temperature_to_revive(landscape: LinearLandscape, objective: Objective) -> float | None:
    """Temperature below which normalized features keep all directions; `None` for other losses."""
    if objective.loss != "normalized":
        return None
    value = float(landscape.collapse_threshold("temperature", **asdict(objective)).values.min())
    return value if math.isfinite(value) else None


def alpha_to_collapse(landscape: LinearLandscape, objective: Objective) -> float | None:
    """Weight of the alignment from which nothing lives; `None` where there is none, or no formula for it."""
    if objective.loss == "normalized" or objective.weight_decay:
        return None
    value = landscape.collapse_threshold("alpha", **asdict(objective)).complete
    return value if math.isfinite(value) else None
