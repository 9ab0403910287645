"""Routes beside the page: tables to download, and badges."""

from collections.abc import Callable

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..board.rank import Measurement
from ..board.snapshot import csv_text, parquet
from ..schema import Board
from .catalogue import Catalogue, View
from .rendering import render

_BADGE_HEADERS = {"Content-Security-Policy": "default-src 'none'", "Cache-Control": "public, max-age=3600"}
# About that of Verdana at 11 pixels; `textLength` makes other fonts fit.
_WIDTH = 6.6
_LONGEST = 60


def badge_words(catalogue: Catalogue, repo_id: str, measurement: Measurement | None) -> tuple[str, str]:
    """Return both halves of a badge: what was measured, and the model's rank."""
    row = catalogue.ranked(measurement).get(repo_id)
    if repo_id not in catalogue.entries:
        return "orthossl board", "not on the board"
    if row is None or measurement is None:
        return "orthossl board", "not ranked"
    task, dataset, metric = measurement
    confirmed = "" if row.result.source == "author" else " ✓"
    left = f"orthossl · {task} {dataset} {metric}"
    return left, f"#{row.rank} of {len(catalogue.ranked(measurement)):,} · {row.result.value:.3f}{confirmed}"


def badge_svg(left: str, right: str) -> Markup:
    """Return a badge of 20 pixels height; its texts are escaped."""
    left, right = left[:_LONGEST], right[:_LONGEST]
    rooms = {"left_room": round(len(left) * _WIDTH), "right_room": round(len(right) * _WIDTH)}
    return render("badge.svg", left=left, right=right, **rooms)


def routes(catalogue: Callable[[], Catalogue]) -> list[Route]:
    """Return `board.csv` and `board.parquet` of the models that fit a query string, and `badge/OWNER/NAME.svg`."""

    def chosen(request: Request) -> Board:
        current = catalogue()
        lines = current.lines(View.from_query(request.url.query))
        return Board([line.entry for line in lines], [], current.board.collected_at, current.board.endpoint)

    def as_csv(request: Request) -> Response:
        return _attachment(csv_text(chosen(request)).encode(), "text/csv; charset=utf-8", "board.csv")

    def as_parquet(request: Request) -> Response:
        return _attachment(parquet(chosen(request)), "application/vnd.apache.parquet", "board.parquet")

    def badge(request: Request) -> Response:
        current, view = catalogue(), View.from_query(request.url.query)
        words = badge_words(current, request.path_params["repo_id"], current.measurement(view))
        return Response(badge_svg(*words), media_type="image/svg+xml", headers=_BADGE_HEADERS)

    return [
        Route("/board.csv", as_csv),
        Route("/board.parquet", as_parquet),
        Route("/badge/{repo_id:path}.svg", badge),
    ]


def _attachment(content: bytes, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
