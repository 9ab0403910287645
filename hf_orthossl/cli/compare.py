"""`orthossl compare`: which way to prevent collapse works, on given data with a given method and backbone."""

from typing import Any

from ..comparison import run_comparison
from ..comparison.options import ComparisonOptions


def main(options: ComparisonOptions, given: dict[str, Any]) -> None:
    """Do the runs that are left, and write the report.

    Args:
        options ([`ComparisonOptions`]): What is compared, and how.
        given (`dict`): The options that the user set for all runs.
    """
    run_comparison(options, given)
