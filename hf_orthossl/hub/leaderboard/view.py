"""What a visitor looks at, as a query string: any view can be shared as a link, and a link opens that view."""

import dataclasses
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlencode

PAGES = {"table": "Table", "scatter": "Accuracy and rank", "pairs": "With and without", "aside": "Left out"}
# Reached from a row, not from the menu.
DETAILS = ("model", "compare")
COLUMNS = ("rank", "model", "method", "backbone", "regularizer", "pretrained_on", "value", "effective_rank", "by")
# Larger is better, so the first click shows the largest.
DESCENDING = ("value", "effective_rank")
SIZES = {
    "xs": ("under 5 M", 0, 5e6),
    "s": ("5 to 15 M", 5e6, 15e6),
    "m": ("15 to 50 M", 15e6, 50e6),
    "l": ("50 to 150 M", 50e6, 150e6),
    "xl": ("over 150 M", 150e6, float("inf")),
}
MOST_COMPARED = 4
_LONGEST = 200


@dataclass(frozen=True)
class View:
    """One state of the page. Every value comes from a visitor's address bar: unknown ones count as not given.

    Args:
        show (`str`, defaults to "table"): One of `PAGES` or `DETAILS`.
        model (`str`): Hub id shown by "model".
        compare (`tuple[str, ...]`): Hub ids chosen for comparison, at most four.
        task, dataset, metric (`str`): What models are ranked by; what most models have by default.
        backbone, method, pretrained_on (`str`): Only models with exactly this one.
        regularizer (`str`): Only models with this penalty, "any" penalty, or "none".
        size (`str`): Only models of this size, a key of `SIZES`.
        by (`str`): Only numbers from this source: "author", "verified" or "board".
        q (`str`): Only models in whose names and settings all these words occur.
        sort (`str`, defaults to "rank"): One of `COLUMNS`.
        order (`str`, defaults to "up"): "up" or "down".
        n (`int`, defaults to 1): Page of the table.
    """

    show: str = "table"
    model: str = ""
    compare: tuple[str, ...] = ()
    task: str = ""
    dataset: str = ""
    metric: str = ""
    backbone: str = ""
    method: str = ""
    regularizer: str = ""
    pretrained_on: str = ""
    size: str = ""
    by: str = ""
    q: str = ""
    sort: str = "rank"
    order: str = "up"
    n: int = 1

    @classmethod
    def from_query(cls, query: str) -> Self:
        """The view that a query string names, with or without its question mark; never fails."""
        try:
            # Half a surrogate pair is no letter, and no page could be sent with it.
            text = str(query)[:4000].encode("utf-8", "ignore").decode()
            pairs = parse_qsl(text.removeprefix("?"), max_num_fields=60, errors="replace")
        except ValueError:
            return cls()
        names = {field.name for field in dataclasses.fields(cls)} - {"compare", "n"}
        values = {name: value.strip()[:_LONGEST] for name, value in pairs if name in names}
        given = dict(pairs)
        # What two choices of the form send in one value; a data set may have any name.
        measure = given.get("measure", "")[:_LONGEST]
        if measure.count("|") > 1:
            task, _, rest = measure.partition("|")
            values |= dict(zip(("task", "dataset", "metric"), (task, *rest.rsplit("|", 1)), strict=True))
        if "." in given.get("sorting", ""):
            values |= dict(zip(("sort", "order"), given["sorting"].split(".", 1), strict=True))
        compare = list(dict.fromkeys(value.strip()[:_LONGEST] for name, value in pairs if name == "compare" and value))
        number = given.get("n", "")
        # More digits than any table has pages; `int` would work through thousands.
        n = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else 1
        allowed = {"show": (*PAGES, *DETAILS), "sort": COLUMNS, "order": ("up", "down"), "size": SIZES}
        values = {name: value for name, value in values.items() if value in allowed.get(name, (value,))}
        return cls(**values, compare=tuple(compare[:MOST_COMPARED]), n=max(n, 1))

    def query(self, **changes) -> str:
        """The query string of this view with some values changed; what is as by default is left out."""
        view = dataclasses.replace(self, **changes)
        pairs = [(f.name, getattr(view, f.name)) for f in dataclasses.fields(view) if f.name != "compare"]
        defaults = {f.name: f.default for f in dataclasses.fields(view)}
        kept = [(name, value) for name, value in pairs if value != defaults[name]]
        return "?" + urlencode(kept + [("compare", name) for name in view.compare])

    def to(self, **changes) -> str:
        """The same from the table's first page: of another choice the current page means nothing."""
        return self.query(**{"n": 1} | changes)

    def sorted_by(self, column: str) -> str:
        """The query string of a click on the header of a column: sorted by it, or the other way round."""
        first = "down" if column in DESCENDING else "up"
        other = "up" if self.order == "down" else "down"
        return self.to(sort=column, order=other if column == self.sort else first)

    def toggled(self, model: str) -> str:
        """The query string with a model added to the comparison, or taken out of it."""
        if model in self.compare:
            return self.query(compare=tuple(name for name in self.compare if name != model))
        return self.query(compare=(*self.compare, model)[-MOST_COMPARED:])
