"""Visitors of the board's server who send what they like: each gets one line, and the others their views."""

import http.client
import json
import socket
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from attacks import start
from board_visitor import free_port
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_board import synthetic_board

from hf_orthossl.hub.leaderboard.board.snapshot import write_snapshot

CALL = "/gradio_api/component_server/"
# Seconds that a visitor waits for an answer.
SOON = 20
generated = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Server:
    """`orthossl leaderboard serve` as a process of its own, and what it prints."""

    def __init__(self, folder: Path):
        write_snapshot(synthetic_board(40), folder / "board")
        self.port, self.said, self.seen = free_port(), [], 0
        self.process = start("leaderboard", "serve", "--board", folder / "board", "--port", self.port)
        # Read all the while, because a server that waits for its reader answers nobody.
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()
        for _ in range(300):
            with closing(socket.socket()) as tried:
                if tried.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            time.sleep(0.2)
        home = self.ask("GET", "/")[1].decode()
        self.component = next(number for number in range(20) if self.call("?show=table", component_id=number)[0] == 200)
        assert "orthossl" in home

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        with closing(self.connect()) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def call(self, query: object = "", **changes: object) -> tuple[int, bytes]:
        fields = {"data": query, "component_id": getattr(self, "component", 1), "fn_name": "show", "session_hash": "a1"}
        return self.ask("POST", CALL, json.dumps(fields | changes).encode(), content_type="application/json")

    def holds(self, answer: tuple[int, bytes]) -> None:
        """Asserts an answer in one line without a defect of the server, and that others still see the board."""
        status, text = answer
        assert status < 500, (status, text[:300])
        assert status == 200 or text.count(b"\n") <= 1, text[:300]
        assert status == 200 or b"Traceback" not in text
        self.works()

    def works(self) -> None:
        status, text = self.call("?show=table")
        assert status == 200
        assert b"<table" in text.replace(b"\\u003c", b"<")
        before, self.seen = self.seen, sum("Traceback" in line for line in self.said)
        assert self.seen == before, "a traceback in the server's log"

    @property
    def memory(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.process.kill()
    made.process.wait()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@generated
@given(
    changes=st.dictionaries(
        st.sampled_from(["data", "component_id", "fn_name", "session_hash", "event_data", "trigger_id"]),
        JSON | st.sampled_from(["show", "__init__", "postprocess", -1, 0, 1, 2**63, 2**80, "1", [1]]),
        min_size=1,
    )
)
def test_calls_with_other_values(changes, server, attacks):
    with attacks.attempt(f"call with {changes!r}"):
        server.holds(server.call(**changes))


@generated
@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_calls_with_other_bodies(body, server, attacks):
    with attacks.attempt(f"body {body!r}"):
        server.holds(server.ask("POST", CALL, body, content_type="application/json"))


@generated
@given(
    kind=st.sampled_from(["text/plain", "", "multipart/form-data", "application/xml", "application/json; charset=x"])
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    body=st.binary(max_size=50),
)
def test_calls_of_other_kinds(kind, body, server, attacks):
    with attacks.attempt(f"content-type {kind!r}"):
        server.holds(server.ask("POST", CALL, body, content_type=kind))


@generated
@given(
    query=st.lists(
        st.tuples(
            st.sampled_from(["show", "model", "compare", "q", "order", "task", "page", "sort", "columns", "deep_link"]),
            st.text(max_size=30),
        ),
        max_size=8,
    ).map(lambda pairs: "?" + "&".join(f"{name}={value}" for name, value in pairs))
    | st.text(max_size=100)
)
def test_queries(query, server, attacks):
    with attacks.attempt(f"query {query!r}"):
        server.holds(server.call(query))


@generated
@given(
    path=st.sampled_from(
        [
            *("/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file=../../../etc/passwd"),
            *("/static/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/assets/..%2f..%2fpasswd"),
            *("/svelte/../../x", "/gradio_api/proxy=http://127.0.0.1:1/x", "/custom_component/1/client/component/x"),
            *("/gradio_api/queue/join", "/gradio_api/queue/data?session_hash=a", "/gradio_api/heartbeat/a"),
            *("/gradio_api/run/predict", "/gradio_api/api/show", "/gradio_api/call/show", "/gradio_api/info"),
            *("/gradio_api/upload", "/upload", "/gradio_api/stream/a", "/gradio_api/vibe-edit", "/monitoring"),
            *(
                "/badge/a/b.svg",
                "/badge/../../etc/passwd.svg",
                "/board.csv?q=%00",
                "/board.parquet?order=%ff",
                "/login",
            ),
            *("/gradio_api/run-history/connect", "/gradio_api/component_server/x", "/gradio_api/reset", "/token"),
            *("/gradio_api/deep_link", "/gradio_api/process_recording", "/gradio_api/cancel", "//etc/passwd"),
        ]
    ),
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "TRACE", "PATCH"]),
    body=st.sampled_from([None, b"{}", b"[]", b'{"data": [1], "fn_index": -1, "session_hash": "a"}', b"\xff"]),
)
def test_other_routes(path, method, body, server, attacks):
    with attacks.attempt(f"{method} {path} {body!r}"):
        status, text = server.ask(method, path, body, content_type="application/json")
        assert b"root:" not in text
        assert status < 500, (status, text[:200])
        server.works()


@pytest.mark.parametrize("size", [2**20, 300 * 2**20])
@pytest.mark.parametrize("announced", [True, False])
def test_long_bodies(size, announced, server, attacks):
    before = server.memory
    with attacks.attempt(f"{size:,} bytes, {'' if announced else 'not '}announced"), closing(server.connect()) as one:
        one.putrequest("POST", CALL)
        one.putheader("Content-Type", "application/json")
        one.putheader(*(("Content-Length", str(size)) if announced else ("Transfer-Encoding", "chunked")))
        one.endheaders()
        part = b"[" * 2**16
        try:
            for _ in range(size // len(part)):
                one.send(part if announced else b"%x\r\n%s\r\n" % (len(part), part))
        except OSError:
            pass  # refused early
        else:
            if not announced:
                one.send(b"0\r\n\r\n")
        with suppress(ConnectionError, http.client.BadStatusLine):
            assert one.getresponse().status == 413
        assert server.memory - before < 64 * 2**20, f"{(server.memory - before) >> 20} MiB more"
        server.works()


@pytest.mark.parametrize("depth", [100, 2000, 7000, 10**6])
@pytest.mark.parametrize("opening", ["[", '{"data":', '{"component_id":[{"a":'])
def test_deep_bodies(depth, opening, server, attacks):
    with attacks.attempt(f"{opening!r} {depth:,} times"):
        try:
            answer = server.ask("POST", CALL, (opening * depth).encode(), content_type="application/json")
        except ConnectionError:
            answer = 413, b""
        server.holds(answer)


def test_slow_visitors(server, attacks):
    """Who sends a byte now and then is cut off, and the others do not wait."""
    with attacks.attempt("200 calls that never end"):
        slow = []
        for _ in range(200):
            one = socket.create_connection(("127.0.0.1", server.port))
            one.sendall(b"POST " + CALL.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
            one.sendall(b'Content-Length: 100\r\n\r\n{"data"')
            slow.append(one)
        began = time.monotonic()
        server.works()
        assert time.monotonic() - began < SOON
        for one in slow:
            one.settimeout(60)
        assert all(one.recv(100).startswith(b"HTTP/1.1 408") for one in slow)
        for one in slow:
            one.close()
    with attacks.attempt("connections that are dropped in the middle"):
        for cut in range(20):
            one = socket.create_connection(("127.0.0.1", server.port))
            one.sendall(b"POST " + CALL.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
            one.sendall(b"Content-Length: 100\r\n\r\n" + b"{" * cut)
            one.close()
        server.works()


def test_numbers_that_are_none(server, attacks):
    for text in ("NaN", "Infinity", "-1", "1e999", "1.0", "true", '"1"', "1" * 5000):
        with attacks.attempt(f"component {text[:20]}"):
            body = '{"data": "", "component_id": ' + text + ', "fn_name": "show", "session_hash": "a"}'
            status, said = server.ask("POST", CALL, body.encode(), content_type="application/json")
            assert 400 <= status < 500, (status, said[:200])
            server.holds((status, said))


def test_long_texts(server, attacks):
    for name in ("data", "fn_name", "session_hash"):
        for length in (10**3, 10**5, 10**7):
            with attacks.attempt(f"{name} of {length:,} letters"):
                try:
                    answer = server.call(**{name: "x" * length})
                except ConnectionError:
                    answer = 413, b""
                server.holds(answer)
