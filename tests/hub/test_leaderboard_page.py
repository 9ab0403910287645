"""The leaderboard's page in a real browser: what a visitor does."""

import csv
import io
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from board_visitor import BOARD, CATALOGUE, names

from hf_orthossl.hub.leaderboard.page.catalogue import View, effective_rank

pytestmark = pytest.mark.browser


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
