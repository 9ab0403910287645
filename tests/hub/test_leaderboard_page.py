"""The leaderboard's page in a real browser: what a visitor does, and what strangers' words cannot do."""

import csv
import io
import re
import shutil
import socket
import time
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from synthetic_board import HOSTILE, entry, measured, synthetic_board

from hf_orthossl.hub.leaderboard.catalogue import Catalogue, effective_rank
from hf_orthossl.hub.leaderboard.schema import Aside, Board
from hf_orthossl.hub.leaderboard.view import View

pytestmark = pytest.mark.browser
CHROMIUM = "/usr/bin/chromium"
BOARD = synthetic_board(1000)
CATALOGUE = Catalogue(BOARD)
FIRST, SECOND = (BOARD.entries[number].repo_id for number in (7, 8))
ALL_VIEWS = {
    "table": "",
    "scatter": "?show=scatter",
    "pairs": "?show=pairs",
    "aside": "?show=aside",
    "model": "?" + urlencode({"show": "model", "model": FIRST}),
    "compare": "?" + urlencode([("show", "compare"), ("compare", FIRST), ("compare", SECOND)]),
    "nothing": "?q=nosuchmodel",
}
# Text against what lies behind it, as WCAG 2 defines contrast.
CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.99) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll(".orthossl *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest("style, .sr, svg[width]")) continue;
    const style = getComputedStyle(e);
    const text = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(text), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push([e.outerHTML.slice(0, 90), style.color]);
  }
  return low;
}"""
ACCESSIBLE = """() => {
  const root = document.querySelector(".orthossl"), wrong = [];
  const all = (selector) => [...root.querySelectorAll(selector)];
  const ids = all("[id]").map((e) => e.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => wrong.push("twice: " + id));
  all("input:not([type=hidden]), select").forEach((e) => e.labels.length || wrong.push("no label: " + e.name));
  all("a, button, summary").forEach((e) => {
    const name = e.getAttribute("aria-label") || e.textContent.trim() || e.querySelector("title");
    if (!name) wrong.push("no name: " + e.outerHTML);
  });
  all("table").forEach((e) => e.caption || wrong.push("no caption"));
  all("svg.chart").forEach((e) => e.getAttribute("aria-label") || wrong.push("no label: svg"));
  all("th").forEach((e) => e.scope || wrong.push("no scope: " + e.textContent));
  const levels = all("h1, h2, h3, h4").map((e) => +e.tagName[1]);
  levels.forEach((level, i) => { if (i && level > levels[i - 1] + 1) wrong.push("heading skips to " + level); });
  if (levels.filter((level) => level === 1).length !== 1) wrong.push("h1");
  return wrong;
}"""


@pytest.fixture(scope="module")
def board():
    """What the server shows; a test may put another one in its place."""
    shown = {"board": BOARD}
    yield shown
    shown["board"] = BOARD


@pytest.fixture(scope="module")
def site(board):
    """Address of a server of this module's own."""
    pytest.importorskip("gradio", reason="the page needs gradio, in the extra [leaderboard]")
    from hf_orthossl.hub.leaderboard.app import build_app, launch_options

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    blocks = build_app(lambda: board["board"], base_url=address)
    blocks.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, **launch_options(blocks))
    yield address
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def chromium(site):
    """Debian's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, in the extra [test]")
    if not Path(CHROMIUM).exists() or not shutil.which(CHROMIUM):
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


class Visitor:
    """One window. Whatever it asks of another machine, every error and every dialog is kept in `wrong`."""

    def __init__(self, chromium, site, **options):
        self.site, self.wrong = site, []
        self.context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("request", self._on_request)
        self.page.on("requestfailed", lambda request: self.wrong.append(("failed", request.url)))
        self.page.on("response", lambda answer: answer.status < 400 or self.wrong.append((answer.status, answer.url)))
        self.page.on("console", lambda line: line.type != "error" or self.wrong.append(("console", line.text)))
        self.page.on("pageerror", lambda error: self.wrong.append(("error", str(error))))
        self.page.on("dialog", self._on_dialog)
        self.page.on("websocket", lambda socket: self.wrong.append(("websocket", socket.url)))
        self.page.on("popup", lambda popup: self.wrong.append(("popup", popup.url)))

    def open(self, query=""):
        self.page.goto(f"{self.site}/{query}")
        self.page.wait_for_selector(".view [data-status]", state="attached")
        return self.page

    def settle(self):
        """Waits until the view that was asked for is there."""
        self.page.wait_for_timeout(20)
        self.page.wait_for_function("!document.querySelector('.view[aria-busy]')")

    def click(self, selector):
        self.page.click(selector)
        self.settle()

    def choose(self, name, value):
        self.page.select_option(f"#f-{name}", value)
        self.settle()

    def models(self):
        return self.page.locator("tbody th.model > a").all_inner_texts()

    def status(self):
        return self.page.inner_text(".view [data-status]")

    def query(self):
        return parse_qs(urlsplit(self.page.url).query)

    def _on_request(self, request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.wrong.append(("elsewhere", request.url))

    def _on_dialog(self, dialog):
        self.wrong.append(("dialog", dialog.message))
        dialog.dismiss()


@pytest.fixture
def visitor(chromium, site, request):
    window = Visitor(chromium, site, **getattr(request, "param", {}))
    yield window
    window.context.close()
    assert window.wrong == []


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def names(**view):
    return [line.entry.repo_id for line in CATALOGUE.lines(View(**view))]


def test_opens_with_the_best_models_on_top(visitor):
    started = time.perf_counter()
    page = visitor.open()
    print(f"opened 1,000 models in {time.perf_counter() - started:.2f} s")
    assert page.title() == "Self-supervised encoders: accuracy and spectra"
    assert visitor.models() == names()[:50]
    assert visitor.status().startswith("1,000 of 1,000 models, 900 of them ranked by kNN classification on cifar10")
    # Light for a phone's line: the table of a thousand models, not a thousand rows.
    size = page.evaluate("document.querySelector('.view').innerHTML.length")
    assert size < 150_000


def test_headers_sort_both_ways(visitor):
    visitor.open()
    visitor.click("#s-effective_rank")
    shown = sorted((r for e in BOARD.entries if (r := effective_rank(e))), reverse=True)[:50]
    cells = visitor.page.locator('td[data-label="Effective rank"] .number').all_inner_texts()
    assert [float(cell.replace(",", "")) for cell in cells] == [pytest.approx(rank, abs=0.051) for rank in shown]
    assert visitor.page.get_attribute("th.effective_rank", "aria-sort") == "descending"
    visitor.click("#s-effective_rank")
    assert visitor.models() == names(sort="effective_rank", order="up")[:50]
    assert visitor.page.get_attribute("th.effective_rank", "aria-sort") == "ascending"
    assert visitor.query() == {"sort": ["effective_rank"]}
    visitor.click("#next")
    assert visitor.models() == names(sort="effective_rank", order="up")[50:100]


def test_filters_narrow_and_are_taken_back(visitor):
    visitor.open()
    for name, value in (("method", "simclr"), ("regularizer", "so"), ("backbone", "resnet18"), ("by", "author")):
        visitor.choose(name, value)
    expected = [
        e.repo_id
        for e in BOARD.entries
        if (e.method, e.regularizer, e.backbone) == ("simclr", "so", "resnet18")
        and e.results
        and e.results[0].source == "author"
    ]
    assert sorted(visitor.models()) == sorted(expected)
    assert visitor.status().startswith(f"{len(expected)} of 1,000 models")
    visitor.click("#reset")
    assert visitor.models() == names()[:50]


def test_another_measurement_ranks_anew(visitor):
    visitor.open()
    visitor.choose("measure", "linear|imagenet-1k|top1")
    assert visitor.models() == names(task="linear", dataset="imagenet-1k", metric="top1")[:50]
    values = visitor.page.locator("td.value .number").first.inner_text()
    best = max(r.value for e in BOARD.entries for r in e.results if r.task == "linear")
    assert values == f"{best:.3f}"


def test_search_keeps_the_cursor_and_what_is_typed(visitor):
    page = visitor.open()
    page.click("#f-q")
    page.keyboard.type("user7 vicreg", delay=40)
    page.wait_for_function("location.search.includes('vicreg')")
    expected = [n for n in names() if "user7/" in n and "vicreg" in n]
    assert visitor.models() == expected
    assert page.evaluate("document.activeElement.id") == "f-q"
    assert page.input_value("#f-q") == "user7 vicreg"
    page.keyboard.type("x")
    page.wait_for_selector(".empty")
    assert "No model fits these filters" in page.inner_text(".empty")


def test_a_model_in_full_and_back(visitor):
    page = visitor.open("?" + urlencode({"method": "byol", "sort": "value", "order": "down"}))
    chosen = next(line.entry for line in CATALOGUE.lines(View(method="byol", sort="value", order="down")))
    visitor.click(f'[id="m-{chosen.repo_id}"]')
    assert page.inner_text("h2") == chosen.repo_id
    assert page.evaluate("document.activeElement.tagName") == "H2"
    assert page.locator("svg.panel").count() == len(chosen.spectra.curves)
    assert f'"hf-hub:{chosen.repo_id}@{chosen.revision}"' in page.inner_text("#timm-code")
    assert f'"{chosen.repo_id}", revision="{chosen.revision}"' in page.inner_text("#auto-code")
    link = page.locator("a", has_text="Open on the Hub")
    assert link.get_attribute("href") == f"https://huggingface.co/{chosen.repo_id}/tree/{chosen.revision}"
    assert "noopener" in link.get_attribute("rel")
    page.click('[data-copy="timm-code"]')
    page.wait_for_function("document.querySelector('[data-copy=timm-code]').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#timm-code")
    page.go_back()
    page.wait_for_selector("table.board .model")
    visitor.settle()
    assert visitor.models() == names(method="byol", sort="value", order="down")[:50]


def test_compares_up_to_four(visitor):
    page = visitor.open()
    for name in names()[:5]:
        visitor.click(f'[id="c-{name}"]')
    assert page.locator('.choose[aria-pressed="true"]').count() == 4
    visitor.click("#compare")
    # The first gave way to the fifth.
    assert page.locator("table.side thead a").all_inner_texts() == names()[1:5]
    drawn = [bool(CATALOGUE.entries[name].spectra) for name in names()[1:5]]
    panel = page.locator("figure", has_text="representation").locator("svg")
    assert [panel.locator(f"polyline.s{style}").count() == 1 for style in range(4)] == drawn
    address = page.url
    visitor.open("?" + urlsplit(address).query)
    assert page.locator("table.side thead a").all_inner_texts() == names()[1:5]
    page.locator("table.side thead button").first.click()
    visitor.settle()
    assert page.locator("table.side thead a").all_inner_texts() == names()[2:5]


def test_scatter_has_a_point_for_each_model_with_both_numbers(visitor):
    page = visitor.open("?show=scatter&backbone=resnet50")
    both = [e for e in BOARD.entries if e.backbone == "resnet50" and e.results and e.spectra]
    assert page.locator("svg.scatter circle").count() == sum(e.regularizer is None for e in both)
    assert page.locator("svg.scatter path.mark").count() == sum(e.regularizer is not None for e in both)
    point = page.locator("svg.scatter a").first
    name = point.locator("title").text_content().partition(":")[0]
    point.dispatch_event("click")
    page.wait_for_selector("#timm-code")
    assert page.inner_text("h2") == name


def test_pairs_with_and_without(visitor):
    page = visitor.open("?show=pairs&method=byol")
    expected = CATALOGUE.pairs(View(method="byol"))
    assert page.locator("table.pairs tbody tr").count() == min(len(expected), 50)
    first = page.locator("table.pairs tbody tr").first
    assert first.locator("a").all_inner_texts()[:2] == [expected[0][0].repo_id, expected[0][1].repo_id]
    assert first.locator(".number").inner_text() == f"{expected[0][2]:+.3f}"
    first.locator("a", has_text="compare").click()
    page.wait_for_selector("table.side")
    assert page.locator("table.side thead a").all_inner_texts() == [expected[0][0].repo_id, expected[0][1].repo_id]


def test_downloads_are_what_the_table_shows(visitor):
    import pyarrow.parquet as pq

    page = visitor.open("?method=dino&regularizer=srip")
    expected = set(names(method="dino", regularizer="srip"))
    with page.expect_download() as started:
        page.click("#csv")
    rows = list(csv.DictReader(io.StringIO(Path(started.value.path()).read_text())))
    assert {row["repo_id"] for row in rows} == expected
    with page.expect_download() as started:
        page.click("#parquet")
    table = pq.read_table(started.value.path())
    assert set(table["repo_id"].to_pylist()) == expected
    assert table.num_rows == len(rows)
    visitor.wrong = [entry for entry in visitor.wrong if "board." not in entry[1]]  # a download ends its navigation


def test_the_address_is_the_state(visitor):
    page = visitor.open("?method=vicreg&sort=effective_rank&order=down&n=2&__theme=dark")
    expected = names(method="vicreg", sort="effective_rank", order="down")
    assert visitor.models() == expected[50:100]
    assert page.input_value("#f-method") == "vicreg"
    assert page.evaluate("document.body.classList.contains('dark')")
    visitor.click("#previous")
    assert visitor.models() == expected[:50]
    assert visitor.query() == {
        "method": ["vicreg"],
        "sort": ["effective_rank"],
        "order": ["down"],
        "__theme": ["dark"],
    }
    page.click("#link")
    page.wait_for_function("document.querySelector('#link').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    visitor.open("?" + urlsplit(page.url).query)
    assert visitor.models() == expected[:50]


def test_by_keyboard_alone(visitor):
    page = visitor.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-table"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    page.focus("#s-model")
    page.keyboard.press("Enter")
    visitor.settle()
    assert visitor.models() == names(sort="model")[:50]
    assert page.evaluate("document.activeElement.id") == "s-model"
    page.focus("#f-method")
    page.keyboard.type("dino")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search.includes('method=dino')")
    visitor.settle()
    assert visitor.models() == names(sort="model", method="dino")[:50]
    said = page.inner_text("#board-status")
    assert said == visitor.status()


@pytest.mark.parametrize("visitor", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_readable_in_every_view(visitor):
    for name, query in ALL_VIEWS.items():
        page = visitor.open(query)
        page.wait_for_timeout(200)
        assert page.evaluate(CONTRAST) == [], name
        assert page.evaluate(ACCESSIBLE) == [], name


@pytest.mark.parametrize("visitor", [{"is_mobile": True, "has_touch": True}], indirect=True)
def test_fits_a_phone(visitor):
    page = visitor.page
    page.set_viewport_size({"width": 360, "height": 740})
    for name, query in ALL_VIEWS.items():
        visitor.open(query)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, name
        # Parts that scroll by themselves or are hidden from sight aside, nothing sticks out.
        wide = page.evaluate(
            """[...document.querySelectorAll('.orthossl *')].filter((e) => !e.closest('.scroll, .sr, thead, svg'))
            .filter((e) => e.getBoundingClientRect().right > 361).map((e) => e.outerHTML.slice(0, 80))"""
        )
        assert wide == [], name
        small = page.evaluate(
            """[...document.querySelectorAll('.orthossl *')].filter((e) => !e.closest('.sr, thead, svg'))
            .filter((e) => parseFloat(getComputedStyle(e).fontSize) < 13).map((e) => e.outerHTML.slice(0, 80))"""
        )
        assert small == [], name
        letters = page.evaluate(
            """[...document.querySelectorAll('svg.chart')].map((s) => s.getBoundingClientRect().width
            / s.viewBox.baseVal.width * parseFloat(getComputedStyle(s.querySelector('text')).fontSize))"""
        )
        assert all(pixels >= 10 for pixels in letters), name
    visitor.open()
    assert not page.is_visible("#f-method")
    page.tap("#more")
    assert page.is_visible("#f-method")
    assert page.get_attribute("#more", "aria-expanded") == "true"
    visitor.choose("method", "byol")
    assert visitor.models() == names(method="byol")[:50]
    assert page.is_visible("#f-method")


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
        text = page.inner_text("table.asides")
        assert not set(text) & set("\u202e\u2066\u0000\u200b")
        assert all(words in text for words in HOSTILE)
        visitor.open("?q=a/good")
        assert visitor.models() == ["a/good"]
    finally:
        board["board"] = BOARD


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
