"""A visitor of the leaderboard in a real browser, and the board that is shown."""

import socket
from urllib.parse import parse_qs, urlencode, urlsplit

from synthetic_board import synthetic_board

from hf_orthossl.hub.leaderboard.page.catalogue import Catalogue, View

CHROMIUM = "/usr/bin/chromium"
BOARD = synthetic_board(1000)
CATALOGUE = Catalogue(BOARD)
FIRST, SECOND = (BOARD.entries[number].repo_id for number in (7, 8))
ALL_VIEWS = {
    "table": "",
    "overall": "?show=overall",
    "scatter": "?show=scatter",
    "pairs": "?show=pairs",
    "rejected": "?show=rejected",
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


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def names(**view):
    return [line.entry.repo_id for line in CATALOGUE.lines(View(**view))]
