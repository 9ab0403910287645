"""The templates of the page and of its figures: they show every value as text, so nothing foreign becomes markup."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ...escaping import clean

HERE = Path(__file__).parent
# Longer than any link of the page; texts were cut when the board was read.
_LONGEST = 4000


def render(template: str, **values: Any) -> Markup:
    """Return a template with its values, each escaped; fail where one is missing."""
    return Markup(environment().get_template(template).render(**values))


@cache
def environment() -> Environment:
    """Return the templates, to which the modules of the page add functions of theirs."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["breakable"] = _breakable
    return made


def _breakable(text: Any) -> Markup:
    """Return a long name that may be broken after a sign, not within a word."""
    return Markup(re.sub(r"([_/.]|-(?=\w))", r"\1<wbr>", str(escape(_shown(text)))))


def _shown(value: Any) -> Any:
    return clean(value, _LONGEST) if isinstance(value, str) and not isinstance(value, Markup) else value
