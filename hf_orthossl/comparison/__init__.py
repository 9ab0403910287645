"""Compare ways to prevent collapse: arms of runs, paired by seed, with strengths chosen on held-out images."""

from ..lazy import lazy_names

# Public name → module that defines it.
_HOMES = {
    "Arm": "arms",
    "Comparison": "comparing",
    "ComparisonOptions": "options",
    "compare": "comparing",
    "run_comparison": "comparing",
}

__all__ = ["Arm", "Comparison", "ComparisonOptions", "compare", "run_comparison"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
