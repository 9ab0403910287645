"""Read what a training step of each method costs beside SimCLR's, as `scripts/benchmark.py costs` measured it."""

import functools
import json
from pathlib import Path
from typing import Any

COSTS = Path(__file__).with_name("costs.json")


@functools.cache
def measured_costs() -> dict[str, Any]:
    """Return `measured` and `machine` in words, and `costs`: `time` and `memory` in units of SimCLR's, by method."""
    return json.loads(COSTS.read_text(encoding="utf-8"))
