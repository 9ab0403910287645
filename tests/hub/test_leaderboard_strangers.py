"""The leaderboard's page in a real browser: what strangers' words, a Space and a Hub that is away cannot do to it."""

import csv
import dataclasses
import io
import re
import urllib.error
import urllib.request
from urllib.parse import quote, urlencode, urlsplit

import pytest
from board_visitor import BOARD, FIRST, free_port, names
from hypothesis import example, given, settings
from hypothesis import strategies as st
from synthetic_board import HOSTILE, entry, measured

from hf_orthossl.hub.leaderboard.page.catalogue import Catalogue, View
from hf_orthossl.hub.leaderboard.page.views import render_page
from hf_orthossl.hub.leaderboard.schema import Board, Rejection

pytestmark = pytest.mark.browser
# Names that are Gradio's own.
FEW = Catalogue(Board(BOARD.entries[:3], [], BOARD.collected_at, BOARD.endpoint))
GRADIO = ("page", "deep_link", "view", "logs", "__theme", "__sign", "session_hash")


def test_nothing_that_strangers_wrote_runs(visitor, board):
    entries = [
        entry(f"evil/{text}", method=text, pretrained_on=text, library_version=text, author=text) for text in HOSTILE
    ]
    for one, text in zip(entries, HOSTILE, strict=True):
        one.results.append(measured("knn", text, "top1", 0.5))
        one.spectra.curves[text], one.spectra.lengths[text] = [1.0, 1e-300, 0.0], 3
        one.spectra.summary.update(effective_rank=1e15, dim=1e15, alpha=-1e15, num_images=1e15)
    bidi = "abc\u202egnp.exe\u2066\u0000\u200b"
    rejected = [Rejection(text, None, text, f"{text} {bidi}") for text in HOSTILE]
    board["board"] = Board([*entries, entry("a/good")], rejected, HOSTILE[0], f"javascript:{HOSTILE[1]}")
    try:
        for text in HOSTILE:
            page = visitor.open("?" + urlencode({"show": "model", "model": f"evil/{text}"}))
            assert page.inner_text("h2") == f"evil/{text}"
            visitor.open("?" + urlencode({"q": text}))
            assert visitor.models() == [f"evil/{text}"]
            assert page.input_value("#f-q") == text
        visitor.choose("method", HOSTILE[-1])
        assert visitor.models() == [f"evil/{HOSTILE[-1]}"]
        compared = [("compare", f"evil/{text}") for text in HOSTILE[:4]]
        for query in (
            "",
            "?show=scatter",
            "?show=pairs",
            "?show=rejected",
            "?" + urlencode([("show", "compare"), *compared]),
        ):
            page = visitor.open(query)
            page.wait_for_timeout(100)
            assert page.locator(".view :is(script, img, iframe, style, object, textarea)").count() == 0
            hrefs = page.evaluate("[...document.querySelectorAll('.view a')].map((a) => a.getAttribute('href'))")
            assert all(re.match(r"\?|board\.(csv|parquet)|https://huggingface\.co/(evil|a)/", href) for href in hrefs)
        visitor.open("?show=rejected")
        text = page.inner_text("table.rejected")
        assert not set(text) & set("\u202e\u2066\u0000\u200b")
        assert all(words in text for words in HOSTILE)
        visitor.open("?q=a/good")
        assert visitor.models() == ["a/good"]
    finally:
        board["board"] = BOARD


# Names that the page, Gradio or its browser code reads, and others.
NAMES = (
    st.sampled_from([*(field.name for field in dataclasses.fields(View)), "measure", "sorting", *GRADIO]) | st.text()
)
# Around the 200 characters that are read of one, and with what separates the parts of some.
LONG = st.builds(lambda count, end: "a" * count + end, st.integers(190, 205), st.text("|.a", max_size=8))
VALUES = st.text(max_size=40) | LONG
QUERIES = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(urlencode) | st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=60
)


# What no browser sends, but any program can: letters that are half of one, and none of them escaped.
RAW = st.lists(st.tuples(NAMES, LONG | st.text(st.characters(exclude_categories=()), max_size=9)), max_size=4)


@settings(max_examples=200, deadline=None)
@given(RAW)
@example([("measure", "a" * 199 + "|b|c")])
@example([("q", "\ud800")])
def test_any_text_has_a_page(pairs):
    query = "&".join(f"{name}={value}" for name, value in pairs)
    render_page(FEW, f"?{query}").encode()
    assert View.from_query(View.from_query(query).query()) == View.from_query(query)


@settings(max_examples=60, deadline=None)
@given(QUERIES)
@example(urlencode({"measure": "a" * 199 + "|b|c"}))
def test_any_address_is_answered(site, query):
    for path in ("/", "/board.csv", f"/badge/{quote(FIRST)}.svg"):
        with urllib.request.urlopen(f"{site}{path}?{query}") as answer:
            assert answer.status == 200


def test_garbage_in_the_address_opens_a_page(visitor):
    garbage = ("x", "-1", "1e999", "<script>", "%E0%A4%A", "%00", "a" * 3000, "\u202e")
    for name, value in [*((name, "x") for name in GRADIO), *(("n", value) for value in garbage)]:
        assert len(visitor.open(f"?{name}={value}").title()) > 0
        assert visitor.models() == names()[:50], (name, value)

    # What the browser's own code makes of an address, without opening the page anew.
    @settings(max_examples=40, deadline=None)
    @given(QUERIES)
    def any_address(query):
        visitor.page.evaluate(
            """(query) => {
            document.querySelector(".view").innerHTML = "";
            history.pushState(null, "", "/?" + query);
            dispatchEvent(new PopStateEvent("popstate"));
        }""",
            query,
        )
        visitor.page.wait_for_selector(".view [data-status]", state="attached")
        assert visitor.wrong == []

    any_address()


def test_a_fresh_board_is_shown_at_the_next_click(visitor, board):
    page = visitor.open()
    board["board"] = Board([entry("new/model", value=0.99)], [], "2026-02-01T00:00:00Z", "https://huggingface.co")
    try:
        visitor.click("#tab-table")
        assert visitor.models() == ["new/model"]
        assert "2026-02-01 00:00 UTC" in page.inner_text(".foot")
    finally:
        board["board"] = BOARD


def test_says_so_when_the_server_does_not_answer(visitor):
    page = visitor.open()
    page.route("**/component_server**", lambda route: route.abort())
    visitor.click("#s-method")
    assert "does not answer" in page.inner_text("#board-status")
    assert page.is_visible("#board-status")
    assert visitor.models() == names()[:50]
    page.unroute("**/component_server**")
    visitor.wrong.clear()
    visitor.click("#s-method")
    assert visitor.models() == names(sort="method")[:50]


def test_serves_a_snapshot_and_says_when_the_port_is_taken(site, tmp_path):
    from hf_orthossl.hub.leaderboard.board.snapshot import write_snapshot
    from hf_orthossl.hub.leaderboard.page.app import serve

    folder = write_snapshot(Board(BOARD.entries[:3], [], BOARD.collected_at, BOARD.endpoint), tmp_path / "board")
    with pytest.raises(ValueError, match=r"cannot listen on 127\.0\.0\.1:\d+: pass another port"):
        serve(folder, urlsplit(site).port, wait=False)
    port = free_port()
    blocks = serve(folder, port, wait=False)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/board.csv") as answer:
            rows = list(csv.DictReader(io.StringIO(answer.read().decode())))
        assert {row["repo_id"] for row in rows} == {e.repo_id for e in BOARD.entries[:3]}
    finally:
        blocks.close(verbose=False)
    with pytest.raises(FileNotFoundError, match="build it with orthossl leaderboard build"):
        serve(tmp_path, port, wait=False)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_says_that_the_host_is_elsewhere(site, host):
    from hf_orthossl.hub.leaderboard.page.app import serve

    with pytest.raises(ValueError, match="not an address of this machine: pass another host"):
        serve(BOARD, free_port(), host=host, wait=False)


def test_visitors_leave_no_files(site):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
    parts = {"component_id": "1", "session_hash": "x", "fn_name": "show", "data": "[]"}
    fields = "".join(f'\r\n--x\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}' for n, v in parts.items())
    body = head + b"a" * 100 + fields.encode() + b"\r\n--x--\r\n"
    for path in ("upload", "upload/", "component_server", "process_recording", "deep_link?session_hash=x"):
        sent = None if path.startswith("deep_link") else body
        asked = urllib.request.Request(f"{site}/gradio_api/{path}", sent)
        asked.add_header("Content-Type", "Multipart/form-data; boundary=x")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked)
        # Those that the page needs take JSON only; the others do not exist.
        assert refused.value.code == (415 if path == "component_server" else 404), path


def test_in_a_space_gradio_adds_nothing_from_elsewhere(site, monkeypatch):
    from hf_orthossl.hub.leaderboard.page.app import build_app

    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "owner/board")
    assert build_app(BOARD).get_config_file()["space_id"] is None


def test_badge_and_headers(site):
    best = names()[0]
    with urllib.request.urlopen(f"{site}/badge/{best}.svg") as answer:
        assert answer.headers["Content-Type"].startswith("image/svg+xml")
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'"
        assert "#1 of 900" in answer.read().decode()
    with urllib.request.urlopen(site) as answer:
        text = answer.read().decode()
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "fonts.googleapis" not in text
    assert len(text) < 60_000
