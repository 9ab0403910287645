"""Measures of representations as modules of `evaluate`, one folder each, ready to be a Space of the Hub."""

from pathlib import Path

import evaluate

from ..messages import suggest

METRICS = ("effective_rank", "rankme", "alpha_req", "knn_accuracy", "voc_ap")


def load_metric(name: str, **kwargs) -> evaluate.EvaluationModule:
    """One of [`METRICS`], without the Hub; the same as `evaluate.load` with its folder.

    Args:
        name (`str`): Such as "rankme".
        kwargs: Further arguments of `evaluate.load`.

    Raises:
        ValueError: there is no such metric; the nearest is named.
    """
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is unknown: {suggest(name, METRICS)}")
    return evaluate.load(str(Path(__file__).parent / name), **kwargs)
