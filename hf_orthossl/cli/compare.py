"""`orthossl compare`: find which remedy against collapse works, on given data with a given method and backbone."""

import os
from typing import Any

from ..comparison.options import ComparisonOptions


def main(options: ComparisonOptions, given: dict[str, Any]) -> None:
    """Do the runs that are left, and write the report.

    Args:
        options ([`ComparisonOptions`]): What is compared, and how.
        given (`dict`): The options that the user set for all runs.
    """
    # Else its profiler says on stderr that it does not know the memory allocated before it began. Read at import.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ..comparison import run_comparison

    run_comparison(options, given)
