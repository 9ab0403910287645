"""HTML from templates in which every value is text: what a stranger wrote can never become markup."""

import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ..escaping import clean
from ..words import METRICS, TASKS
from .catalogue import Measurement, effective_rank

HERE = Path(__file__).parent
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?")
# Longer than any link of ours; texts were cut when the board was read.
_LONGEST = 4000


@cache
def environment() -> Environment:
    """Templates that escape whatever they show, and fail where a value is missing."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"effective_rank": effective_rank, "gamma": _gamma}
    made.filters["breakable"] = _breakable
    return made


def render(template: str, **values: Any) -> str:
    """The HTML of a template of this folder."""
    return environment().get_template(template).render(**values)


def hub_address(endpoint: str, repo_id: str, revision: str | None = None) -> str | None:
    """Where a model is on the Hub; `None` for what is no Hub id."""
    try:
        if repo_id.count("/") != 1:
            return None
        validate_repo_id(repo_id)
    except HFValidationError:
        return None
    base = endpoint if _ENDPOINT.fullmatch(endpoint) else "https://huggingface.co"
    return f"{base}/{quote(repo_id)}" + (f"/tree/{quote(revision, safe='')}" if revision else "")


def in_words(measurement: Measurement | None) -> str:
    """Such as "kNN classification on cifar10, top-1 accuracy"."""
    if measurement is None:
        return ""
    task, dataset, metric = measurement
    return f"{TASKS.get(task, task)} on {dataset}, {METRICS.get(metric, metric)}"


def _gamma(value: float) -> str:
    return f"{value:.3g}".replace("e-0", "e-")


def _breakable(text: Any) -> Markup:
    """Names are long and without blanks: lines may break after a sign, not within a word."""
    return Markup(re.sub(r"([_/.]|-(?=\w))", r"\1<wbr>", str(escape(_shown(text)))))


def _shown(value: Any) -> Any:
    return clean(value, _LONGEST) if isinstance(value, str) and not isinstance(value, Markup) else value
