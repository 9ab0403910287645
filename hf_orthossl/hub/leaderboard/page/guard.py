"""Answer only the requests of the board's own page, each bounded, with headers that keep it to itself."""

import asyncio
import json
import logging
import re
from collections.abc import Collection
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio's own page needs inline code and `Function`; whatever the page does, it reaches no other machine.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
# What the page reads: itself, the files of Gradio's page, and our own routes. Gradio has many more, which read files,
# store what a visitor sends, or keep connections open.
_READ = re.compile(
    r"/|/favicon\.ico|/robots\.txt|/manifest\.json|/theme\.css|/config/?|/(?:static|assets|svelte)/.+"
    r"|/gradio_api/(?:startup-events|app_id/?)|/board\.csv|/board\.parquet|/badge/.+"
)
# Where the page asks for a view.
CALL = "/gradio_api/component_server"
# Bytes of a call, far above the longest link of the page, and seconds in which they must arrive.
LONGEST, PATIENCE = 16 * 2**10, 10.0
_log = logging.getLogger(__name__)


class Guard:
    """Wrap Gradio's application: answer what the page asks for, and refuse everything else in one line.

    Args:
        app (`ASGIApp`): Gradio's application.
        components (collection of `int`): Numbers of the components that may be called.
    """

    def __init__(self, app: ASGIApp, components: Collection[int] = ()):
        self.app, self.components = app, frozenset(components)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                extra = [pair for pair in _HEADERS.items() if pair[0] not in present]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            receive = await self._checked(scope, receive)
            # Gradio uses `page` and `deep_link` of a query string for itself; ours is read in the browser only.
            scope = {**scope, "query_string": b""} if scope["path"] in ("", "/") else scope
            await self.app(scope, receive, with_headers)
        except _Refused as refused:
            await PlainTextResponse(f"{refused}\n", refused.status)(scope, receive, with_headers)
        except Exception as error:  # a visitor cannot repair it, and a traceback each time fills the disk with logs
            _log.warning("%s %s was not answered (%s)", scope["method"], scope["path"][:80], type(error).__name__)
            if not started:
                await PlainTextResponse("the board cannot answer this\n", 500)(scope, receive, with_headers)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Return what Gradio reads of a request instead of its body; raise `_Refused` if it is none of the page's."""
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD") and _READ.fullmatch(path or "/"):
            return receive
        if path.rstrip("/") != CALL:
            raise _Refused(404, "there is no such page")
        if method != "POST":
            raise _Refused(405, "the board takes calls by POST")
        headers = dict(scope["headers"])
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise _Refused(415, "the content-type of a call must be application/json")
        body = self._checked_call(await _body(headers, receive))
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def checked() -> Message:
            return messages.pop() if messages else await receive()

        return checked

    def _checked_call(self, body: bytes) -> bytes:
        """Return a call with the fields that Gradio reads; raise `_Refused` unless each is of its kind."""
        try:
            call: Any = json.loads(body)
        except (ValueError, RecursionError):
            raise _Refused(400, "a call must be JSON") from None
        if not isinstance(call, dict):
            raise _Refused(400, "a call must be an object")
        for name, is_right, kind in (
            ("data", lambda value: isinstance(value, str) and value.isprintable(), "the query string, as text"),
            ("component_id", lambda value: type(value) is int and value in self.components, "a number of the page's"),
            ("fn_name", lambda value: value == "show", "show"),
            ("session_hash", lambda value: re.fullmatch(r"[\w-]{1,64}", str(value), re.ASCII), "letters and digits"),
        ):
            if not is_right(call.get(name)):
                raise _Refused(400, f"{name} of a call must be {kind}")
        return json.dumps({name: call[name] for name in ("data", "component_id", "fn_name", "session_hash")}).encode()


class _Refused(Exception):
    """Raised if a request is not answered, with the status and the reason in one line."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Return the body of a request; raise `_Refused` if it is too long or comes too slowly."""
    announced = headers.get(b"content-length", b"0")
    too_long = _Refused(413, f"a call must have at most {LONGEST:,} bytes")
    if not announced.isdigit() or int(announced[:20]) > LONGEST:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Refused(400, "the call ended early")
                body += message.get("body", b"")
                # Counted, because the announced size may be missing or wrong.
                if len(body) > LONGEST:
                    raise too_long
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise _Refused(408, f"a call must arrive within {PATIENCE:g} seconds") from None
