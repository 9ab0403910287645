"""The leaderboard's page in a real browser: what strangers' words, a Space and a Hub that is away cannot do to it."""

import csv
import dataclasses
import io
import re
import urllib.request
from urllib.parse import quote, urlencode, urlsplit

import pytest
from board_visitor import BOARD, FIRST, free_port, names
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_board import HOSTILE, entry, measured

from hf_orthossl.hub.leaderboard.schema import Aside, Board
from hf_orthossl.hub.leaderboard.view import View

pytestmark = pytest.mark.browser
# Gradio's own.
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
    asides = [Aside(text, None, text, f"{text} {bidi}") for text in HOSTILE]
    board["board"] = Board([*entries, entry("a/good")], asides, HOSTILE[0], f"javascript:{HOSTILE[1]}")
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
            "?show=aside",
            "?" + urlencode([("show", "compare"), *compared]),
        ):
            page = visitor.open(query)
            page.wait_for_timeout(100)
            assert page.locator(".view :is(script, img, iframe, style, object, textarea)").count() == 0
            hrefs = page.evaluate("[...document.querySelectorAll('.view a')].map((a) => a.getAttribute('href'))")
            assert all(re.match(r"\?|board\.(csv|parquet)|https://huggingface\.co/(evil|a)/", href) for href in hrefs)
        visitor.open("?show=aside")
        text = page.inner_text("table.aside")
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
QUERIES = st.lists(st.tuples(NAMES, st.text(max_size=40)), max_size=6).map(urlencode) | st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(QUERIES)
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
    from hf_orthossl.hub.leaderboard.app import serve
    from hf_orthossl.hub.leaderboard.snapshot import write_snapshot

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


def test_in_a_space_gradio_adds_nothing_from_elsewhere(site, monkeypatch):
    from hf_orthossl.hub.leaderboard.app import build_app

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
