"""What the page serves beside itself: tables to download, badges, and the headers that keep it to itself."""

import csv
import io
from collections.abc import Callable

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .badge import badge_svg, badge_words
from .catalogue import Catalogue
from .schema import Board
from .snapshot import parquet, table
from .view import View

# Gradio's own page needs inline code and `Function`; whatever the page does, it reaches no other machine.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_BADGE_HEADERS = {"Content-Security-Policy": "default-src 'none'", "Cache-Control": "public, max-age=3600"}


def routes(catalogue: Callable[[], Catalogue]) -> list[Route]:
    """`board.csv` and `board.parquet` of the models that a query string lets through, and `badge/OWNER/NAME.svg`.

    Args:
        catalogue (`Callable`): Gives the present one.
    """

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


def csv_text(board: Board) -> str:
    """The board as CSV, one row per result. No cell begins as a spreadsheet's formula does."""
    rows = table(board)
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return sink.getvalue()


class Headers:
    """Adds to every answer the headers that forbid a browser to reach elsewhere."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in present)]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class OneAddress:
    """Keeps the page's query string from Gradio, which takes `page` and `deep_link` in it for its own.

    Only code in the browser reads ours.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and scope["path"] in ("", "/")
        await self.app({**scope, "query_string": b""} if is_page else scope, receive, send)


class NoFiles:
    """Answers 404 where Gradio would store what a visitor sends: the page takes no files."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kind = dict(scope["headers"]).get(b"content-type", b"").lower()
            stores = scope["path"].rstrip("/").endswith(("/upload", "/deep_link", "/process_recording"))
            if stores or b"multipart/" in kind:
                await Response(status_code=404)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def middleware() -> list[Middleware]:
    """For the application that serves the page."""
    return [Middleware(Headers), Middleware(NoFiles), Middleware(OneAddress)]


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _attachment(content: bytes, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
