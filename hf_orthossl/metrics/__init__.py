"""Measures of representations as modules of `evaluate`, one folder each.

Each folder is the complete content of a Space on the Hub: `evaluate.load` loads the module from it, and the Space runs
the same module as its application, which shows the card.
"""

from pathlib import Path
from typing import Any

import evaluate

from ..messages import suggest

METRICS = ("effective_rank", "rankme", "alpha_req", "knn_accuracy", "voc_ap")


def load_metric(name: str, **kwargs: Any) -> evaluate.EvaluationModule:
    """Load one of [`METRICS`] from this package instead of the Hub.

    Args:
        name (`str`): The name of the metric, such as "rankme".
        kwargs: Further arguments of `evaluate.load`.

    Returns:
        `evaluate.EvaluationModule`: The metric.

    Raises:
        ValueError: There is no such metric.

    Example:
        >>> round(load_metric("rankme").compute(representations=[[1.0, 0.0], [0.0, 1.0]])["rankme"], 3)
        2.0
    """
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is unknown: {suggest(name, METRICS)}")
    return evaluate.load(str(Path(__file__).parent / name), **kwargs)


def show_card(module: str) -> None:
    """Serve the card of a metric as a web page, the only function of its Space.

    Args:
        module (`str`): The path of the metric's module, in the same folder as its card `README.md`.
    """
    import gradio  # installed in every Space of the Gradio SDK; not needed elsewhere

    card = Path(module).with_name("README.md").read_text(encoding="utf-8")
    with gradio.Blocks() as page:
        gradio.Markdown(card.split("---", 2)[2])
    page.launch()
