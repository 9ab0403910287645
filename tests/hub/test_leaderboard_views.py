"""The leaderboard's page without a browser: views as links, filters, figures, downloads, badges, the Space."""

import ast
import csv
import dataclasses
import io
import math
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_board import HOSTILE, entry, measured, synthetic_board

from hf_orthossl.hub.leaderboard.board.rank import best, rank
from hf_orthossl.hub.leaderboard.board.snapshot import RefreshedBoard
from hf_orthossl.hub.leaderboard.page import charts
from hf_orthossl.hub.leaderboard.page.catalogue import COLUMNS, DETAILS, PAGES, SIZES, Catalogue, View, remedies
from hf_orthossl.hub.leaderboard.page.routes import badge_svg, badge_words
from hf_orthossl.hub.leaderboard.page.space import space_files
from hf_orthossl.hub.leaderboard.page.views import compare_page, hub_address, render_page
from hf_orthossl.hub.leaderboard.schema import Board
from hf_orthossl.regularization import PENALTIES


def parsed(html):
    """Tags with their attributes, as a browser would read them."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(html)
    return found


TEXT = st.text(max_size=60).map(str.strip)
VIEWS = st.builds(
    View,
    show=st.sampled_from((*PAGES, *DETAILS)),
    model=TEXT,
    compare=st.lists(TEXT.filter(bool), max_size=4, unique=True).map(tuple),
    dataset=TEXT,
    q=TEXT,
    size=st.sampled_from(("", *SIZES)),
    sort=st.sampled_from(tuple(COLUMNS)),
    order=st.sampled_from(("up", "down")),
    n=st.integers(1, 99999),
)


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue(synthetic_board(150))


# What a Space imports, and what it calls for a visitor.
STARTS = """
import sys
import hf_orthossl.hub.leaderboard.board.build
try:
    import hf_orthossl.hub.leaderboard.page.app
except ModuleNotFoundError as error:
    assert error.name == "gradio"
from hf_orthossl.hub.leaderboard.page.catalogue import Catalogue
from hf_orthossl.hub.leaderboard.page.views import compare_page
from hf_orthossl.hub.leaderboard.page.views import render_page
from hf_orthossl.hub.leaderboard.page.catalogue import DETAILS, PAGES
from synthetic_board import synthetic_board
board = synthetic_board(20)
first, second = (entry.repo_id for entry in board.entries[1:3])
for name in (*PAGES, *DETAILS):
    render_page(Catalogue(board), f"show={name}&model={first}&compare={first}&compare={second}")
print(*sorted({"torch", "timm", "transformers", "datasets", "matplotlib"} & set(sys.modules)))
"""


def test_the_page_needs_no_torch():
    tests = Path(__file__).parents[1] / "support"
    done = subprocess.run([sys.executable, "-c", STARTS], cwd=tests, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def test_penalties_go_by_their_titles_from_the_registry():
    board = Board([entry("a/b", regularizer="srip"), entry("a/c")], [], "2026-01-01", "https://huggingface.co")
    kind = "srip"
    title = PENALTIES[kind].title
    named, plain = Catalogue(board, {kind: title}), Catalogue(board)
    assert f">{title[0].upper()}{title[1:]}</option>" in render_page(named, "")
    assert f">{kind}</option>" in render_page(plain, "")
    # What a Space runs has them too, without the registry.
    app = space_files("owner/board")["app.py"]
    titles = ast.literal_eval(app[app.index("PENALTIES = ") + len("PENALTIES = ") : app.index("\n\nserve(")])
    assert titles == {name: penalty.title for name, penalty in PENALTIES.items()}


@given(VIEWS)
def test_a_link_opens_the_view_it_was_made_of(view):
    assert View.from_query(view.query()) == view


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_address_has_a_page(catalogue, query):
    assert "data-status" in render_page(catalogue, query)


@pytest.mark.parametrize("query", ["&".join(["q=a"] * 100), "n=" + "9" * 5000, "n=-1", "show=../../etc", "a=%ff%00"])
def test_hostile_addresses_open_the_table(catalogue, query):
    assert View.from_query(query).show == "table"
    assert 'class="board table"' in render_page(catalogue, query)


def test_lines_are_those_of_a_plain_loop(catalogue):
    view = View(method="simclr", regularizer="any", size="m", q="VIT user")
    expected = [
        e.repo_id
        for e in catalogue.board.entries
        if e.method == "simclr" and e.regularizer and 15e6 <= e.parameters < 50e6 and "vit" in e.repo_id
    ]
    assert sorted(line.entry.repo_id for line in catalogue.lines(view)) == sorted(expected)
    assert expected


@pytest.mark.parametrize("order", ["up", "down"])
@pytest.mark.parametrize("column", COLUMNS)
def test_what_has_no_value_comes_last_in_any_order(catalogue, column, order):
    lines = catalogue.lines(View(sort=column, order=order))
    ranks = [e.entry.spectra.summary["effective_rank"] for e in lines if e.entry.spectra]
    assert len(lines) == 150
    if column == "effective_rank":
        assert ranks == sorted(ranks, reverse=order == "down")
        assert not any(line.entry.spectra for line in lines[len(ranks) :])
    if column in ("rank", "value", "by"):
        assert all(line.row for line in lines[:135])
        assert not any(line.row for line in lines[135:])


def test_only_numbers_of_one_source(catalogue):
    lines = catalogue.lines(View(by="board"))
    assert lines
    assert {line.result.source for line in lines} == {"board"}


def test_an_effective_rank_that_none_can_be_is_not_shown():
    entries = [entry(f"a/b{i}", share=0.5) for i in range(3)]
    for one, wrong in zip(entries, (1e15, -3.0, 0.0), strict=True):
        one.spectra.summary["effective_rank"] = wrong
    catalogue = Catalogue(Board([*entries, entry("a/good", share=0.25)], [], "2026-01-01", "https://huggingface.co"))
    assert "1 of 4 models have both numbers" in render_page(catalogue, "show=scatter")
    assert render_page(catalogue, "").count('class="bar"') == 1


def test_pairs_show_the_difference_of_their_values():
    pair = [entry("a/plain", value=0.5), entry("a/so", regularizer="so", value=0.625)]
    html = render_page(Catalogue(Board(pair, [], "2026-01-01", "https://huggingface.co")), "show=pairs")
    assert "+0.125" in html
    assert "With a penalty 1 of 1 pairs are better; the median difference is +0.125." in html


def text_of(html):
    """Text as a browser would show it."""
    found = []
    parser = HTMLParser()
    parser.handle_data = found.append
    parser.feed(html)
    return " ".join("".join(found).split())


DECOUPLED = {"regularizer": "so", "penalty_mode": "decoupled", "gamma": None}
SIGREG = {"embedding_regularizer": "sigreg", "embedding_layer": "embedding", "embedding_weight": 0.1}
IN_WORDS = [
    ({}, "none"),
    ({"regularizer": "so", "penalty_mode": "loss", "gamma": 1e-4}, "SO γ = 0.0001"),
    ({"regularizer": "srip", "gamma": 1e-6}, "SRIP γ = 1e-6"),
    (DECOUPLED | {"strength": 0.05}, "SO, decoupled, λ = 0.05"),
    (DECOUPLED, "SO, decoupled"),
    ({"constrain": "orthogonal"}, "orthonormal weights"),
    (SIGREG, "SIGREG of embeddings w = 0.1"),
    ({"constrain": "orthogonal", **SIGREG}, "orthonormal weights + SIGREG of embeddings w = 0.1"),
    ({"whitening": 2.5e-5}, "feature whitening w = 2.5e-5"),
    ({"optimizer": "Muon"}, "Muon"),
    ({"optimizer": "LARS"}, "none"),
    (DECOUPLED | {"strength": 0.05, "optimizer": "AdaMuon"}, "SO, decoupled, λ = 0.05 + AdaMuon"),
    ({"remedies_read": False}, "settings that could not be read"),
]


@pytest.mark.parametrize(("settings", "words"), IN_WORDS)
@pytest.mark.parametrize("page", ["table", "model", "compare"])
def test_every_remedy_is_named(page, settings, words):
    catalogue = Catalogue(Board([entry("a/b", **settings)], [], "2026-01-01", "https://huggingface.co"))
    html = render_page(catalogue, View(show=page, model="a/b", compare=("a/b",)).query())
    cell = {"table": '<td role="cell" data-label="Remedies">', "model": "<dd>", "compare": "<td>"}[page]
    heading = html if page == "table" else html[html.rindex(">Remedies<") :]
    assert text_of(heading[heading.index(cell) :].split("</td>")[0].split("</dd>")[0]) == words


def test_pairs_name_the_remedies_of_either_side():
    plain = entry("a/plain", value=0.5, optimizer="Muon", **SIGREG)
    so = entry("a/so", value=0.625, optimizer="Muon", **SIGREG, **DECOUPLED, strength=0.05)
    other = entry("a/constrained", value=0.9, constrain="orthogonal")
    catalogue = Catalogue(Board([other, plain, so], [], "2026-01-01", "https://huggingface.co"))
    text = text_of(render_page(catalogue, "show=pairs"))
    assert "1 pairs" in text
    assert "Pairs of models without and with a penalty, by " in text
    assert "SIGREG of embeddings w = 0.1 + Muon · 0.500" in text
    assert "SO, decoupled, λ = 0.05 + SIGREG of embeddings w = 0.1 + Muon · 0.625" in text


def test_the_filter_is_on_the_penalty_and_search_on_all_remedies():
    settings = [dict(kept) for kept, _ in IN_WORDS]
    entries = [entry(f"a/m{number:02d}", **kept) for number, kept in enumerate(settings)]
    catalogue = Catalogue(Board(entries, [], "2026-01-01", "https://huggingface.co"))

    def found(**view):
        return [line.entry for line in catalogue.lines(View(**view))]

    assert found(regularizer="none") == [one for one in entries if not one.regularizer]
    assert found(regularizer="any") == [one for one in entries if one.regularizer]
    assert found(q="decoupled muon") == [one for one in entries if one.optimizer == "AdaMuon"]
    assert found(q="orthonormal") == [one for one in entries if one.constrain]
    html = render_page(catalogue, "")
    assert "Penalty on weights" in html
    assert '<option value="none">no penalty</option>' in html
    ordered = [(one.regularizer or "", one.penalty_mode or "") for one in found(sort="regularizer")]
    assert ordered == sorted(ordered)
    # What has no remedy at all comes before other remedies without a penalty.
    assert [bool(remedies(one)) for one in found(sort="regularizer")] == [False] * 2 + [True] * 11


def test_the_scatter_marks_other_remedies_apart():
    entries = [entry("a/plain"), entry("a/so", regularizer="so", optimizer="Muon"), entry("a/muon", optimizer="Muon")]
    html = render_page(Catalogue(Board(entries, [], "2026-01-01", "https://huggingface.co")), "show=scatter")
    figure = html[html.index("<figure>") :]
    assert [figure.count(f'class="mark s{style}"') for style in range(4)] == [1, 1, 1, 0]


def test_a_claim_that_a_re_run_does_not_bear_out_is_marked():
    claim, found = measured("knn", "cifar10", "top1", 0.9), measured("knn", "cifar10", "top1", 0.6, "board")
    catalogue = Catalogue(Board([entry("a/b", results=[claim, found])], [], "2026-01-01", "https://huggingface.co"))
    assert "differs: this board measured 0.600" in render_page(catalogue, "show=model&model=a/b")
    agreeing = entry("a/b", results=[claim, measured("knn", "cifar10", "top1", 0.897, "board")])
    catalogue = Catalogue(Board([agreeing], [], "2026-01-01", "https://huggingface.co"))
    assert "differs:" not in render_page(catalogue, "show=model&model=a/b")


def refuted(name: str = "evil/m"):
    claim, found = measured("knn", "cifar10", "top1", 0.999), measured("knn", "cifar10", "top1", 0.1, "board")
    return entry(name, results=[dataclasses.replace(claim, protocol=claim.protocol | {"test_images": 899}), found])


def test_the_comparison_shows_the_boards_number_not_the_claim():
    catalogue = Catalogue(Board([refuted(), entry("a/b", value=0.97)], [], "2026-01-01", "https://huggingface.co"))
    ((_, _, cells),) = compare_page(catalogue, View(compare=("evil/m", "a/b")), "")["results"]
    assert cells == [("0.100 (0.090–0.110)", False), ("0.970 (0.960–0.980)", True)]


def test_a_model_with_a_number_of_the_board_is_listed_as_measured_by_it():
    own = measured("knn", "cifar10", "top1", 0.5, "board")
    better = dataclasses.replace(measured("knn", "cifar10", "top1", 0.6), protocol={"k": 1})
    models = [entry("a/b", results=[own, better]), entry("a/c")]
    catalogue = Catalogue(Board(models, [], "2026-01-01", "https://huggingface.co"))
    assert [line.entry.repo_id for line in catalogue.lines(View(by="board"))] == ["a/b"]


def test_the_table_says_on_what_and_how(catalogue):
    assert "<bdi>test</bdi>: <bdi>k = 20, temperature = 0.07</bdi>" in render_page(catalogue, "")


def test_an_empty_board_says_what_to_do():
    catalogue = Catalogue(Board([], [], "", ""))
    for page in (*PAGES, *DETAILS):
        html = render_page(catalogue, f"show={page}")
        assert "empty" in html
        assert "could not be read yet" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_strangers_words_are_text_on_every_page(text):
    evil = entry(f"evil/{text}", method=text, pretrained_on=text, library_version=text, optimizer=text)
    evil = dataclasses.replace(evil, regularizer=text, constrain=text, embedding_regularizer=text, embedding_layer=text)
    evil = entry("evil/x", results=[measured("knn", text, "top1", 0.5)]) if text == HOSTILE[0] else evil
    evil.spectra.curves[text], evil.spectra.lengths[text] = [1.0, 0.5], 2
    catalogue = Catalogue(Board([evil, entry("a/b")], [], text, f"https://evil.example/{text}"))
    for page in (*PAGES, *DETAILS):
        view = View(show=page, model=evil.repo_id, compare=(evil.repo_id, text))
        tags = parsed(render_page(catalogue, view.query()))
        assert not {tag for tag, _ in tags} & {"script", "img", "iframe", "object", "link", "style"}
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
        links = [value for _, attributes in tags for name, value in attributes.items() if name in ("href", "src")]
        assert links
        assert all(re.match(r"\?|board\.(csv|parquet)\?|https://huggingface\.co/(evil|a)/", link) for link in links)


def test_links_to_the_hub_are_made_of_checked_parts():
    assert hub_address("https://huggingface.co", "a/b", "abc") == "https://huggingface.co/a/b/tree/abc"
    assert hub_address("javascript:alert(1)//", "a/b") == "https://huggingface.co/a/b"
    for name in ("a", "a/b/c", "../etc", "a/b?x", "javascript:alert(1)", "a/b\u202e"):
        assert hub_address("https://huggingface.co", name) is None


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.booleans())
def test_ticks_lie_on_the_axis_and_are_few(low, ratio, log):
    scale = charts.Scale(low, low * ratio, 0, 100, log=log)
    ticks = scale.ticks()
    assert len(ticks) <= 8
    assert all(-0.2 <= scale(tick) <= 100.2 for tick in ticks if tick > 0)
    assert ticks or ratio < 2.6


def test_marks_lie_where_the_numbers_are():
    points = [charts.Point(x, y, 0, "", "?") for x, y in ((0.1, 0.2), (0.5, 0.6), (0.9, 0.4))]
    root = ElementTree.fromstring(charts.scatter(points, "x", "y"))
    places = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # the share of all dimensions
    assert (y2 - y1) == pytest.approx((y0 - y2), abs=0.2)
    assert y1 < y2 < y0  # up is more


def test_a_model_ranks_below_another_only_beyond_its_interval():
    """a .90, b .895 (within .01 of a), c .85; d .70 claims an interval from 0 to 1 and rises by nothing."""
    wide = dataclasses.replace(measured("knn", "cifar10", "top1", 0.7), low=0.0, high=1.0)
    entries = [entry("u/a", value=0.9), entry("u/b", value=0.895), entry("u/c", value=0.85)]
    entries.append(entry("u/d", results=[wide]))
    rows = rank(Board(entries, [], "2026-01-01", "https://huggingface.co"), "knn", "cifar10", "top1")
    assert [(row.entry.repo_id, row.rank) for row in rows] == [("u/a", 1), ("u/b", 1), ("u/c", 3), ("u/d", 4)]


def test_all_tasks_together_are_those_of_a_plain_loop(catalogue):
    tasks = catalogue.tasks
    assert len(tasks) == 2
    results = {task: {e.repo_id: best(e, *task) for e in catalogue.board.entries if best(e, *task)} for task in tasks}
    expected = {}
    for name in {name for own in results.values() for name in own}:
        total = 0.0
        for own in results.values():
            mine = own.get(name)
            others = [other for key, other in own.items() if key != name] if mine else []
            for other in others:
                below, above = other.value < mine.low, mine.value < other.low
                total += (1.0 if below else 0.0 if above else 0.5) / len(others)
        expected[name] = total / len(tasks)
    found = {standing.entry.repo_id: standing for standing in catalogue.standings}
    assert found.keys() == expected.keys()
    assert all(found[name].borda == pytest.approx(value) for name, value in expected.items())
    for standing in catalogue.standings:
        values = [own[standing.entry.repo_id].value for own in results.values() if standing.entry.repo_id in own]
        assert standing.mean == (pytest.approx(sum(values) / 2) if len(values) == 2 else None)
        assert standing.rank == 1 + sum(other > standing.borda + 1e-12 for other in expected.values())
    few = Catalogue(Board([entry("a/b")], [], "2026-01-01", "https://huggingface.co"))
    assert "No model that fits these filters was measured on a task that others share" in render_page(
        few, "show=overall"
    )


def test_rank_correlation_by_hand():
    """Ranks (1, 2.5, 2.5, 4) and (1, 3, 2, 4): the one tie counts at its mean."""
    assert charts.rank_correlation([0.1, 7, 7, 8], [3, 90, 10, 1000]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert charts.rank_correlation([1, 2, 3], [9, 4, 0]) == pytest.approx(-1)
    assert charts.rank_correlation([1, 2], [1, 2]) is None
    assert charts.rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_collapsed_spectra_are_drawn_as_far_as_they_go():
    curve = charts.Curve(0, "a/b", [1, 2, 3], [1.0, 0.0, 0.0], 3)
    html = charts.spectrum("layer", [curve])
    assert "polyline" not in html
    assert "<circle" in html
    nothing = charts.spectrum("layer", [charts.Curve(0, "a/b", [1], [0.0], 1)])
    assert ElementTree.fromstring(nothing) is not None


def test_csv_has_all_results_and_no_formulas(catalogue):
    from hf_orthossl.hub.leaderboard.board.snapshot import csv_text

    rows = list(csv.DictReader(io.StringIO(csv_text(catalogue.board))))
    assert len(rows) == sum(max(len(e.results), 1) for e in catalogue.board.entries)
    first = catalogue.board.entries[1]
    mine = [row for row in rows if row["repo_id"] == first.repo_id]
    assert [float(row["value"]) for row in mine] == [r.value for r in first.results]
    evil = Board([entry("a/b", backbone="resnet18", pretrained_on='=HYPERLINK("http://x")')], [], "", "")
    assert next(csv.DictReader(io.StringIO(csv_text(evil))))["pretrained_on"].startswith("'=")


def test_badge(catalogue):
    chosen = catalogue.measurement(View())
    best = next(iter(catalogue.ranked(chosen)))
    left, right = badge_words(catalogue, best, chosen)
    assert left == "orthossl · knn cifar10 top1"
    assert right.startswith("#1 of 135 · ")
    assert badge_words(catalogue, "no/body", chosen)[1] == "not on the board"
    root = ElementTree.fromstring(badge_svg("<script>", '" onload="x'))
    assert not list(root.iter("script"))
    assert root.get("onload") is None


def test_the_last_good_board_stays_while_the_hub_is_away(caplog):
    boards = [synthetic_board(1), OSError("the Hub is away"), ValueError("no board"), synthetic_board(2)]
    seen, turn = [], threading.Event()

    def read():
        board = boards[len(seen)]
        seen.append(board)
        if len(seen) == 4:
            turn.set()
        if isinstance(board, Exception):
            raise board
        return board

    refreshed = RefreshedBoard(read, every=0.01)
    shown = {len(refreshed().entries)}
    while not turn.wait(0.001):
        shown.add(len(refreshed().entries))
    boards.extend([OSError("away for good")] * 10_000)
    refreshed.close()
    assert shown <= {1, 2}
    assert len(refreshed().entries) == 2
    assert "the Hub is away" in caplog.text


def test_the_first_reading_fails_unless_it_may_be_tried_again():
    def away():
        raise OSError("the Hub is away")

    with pytest.raises(OSError, match="away"):
        RefreshedBoard(away)
    refreshed = RefreshedBoard(away, retry=3600)
    assert refreshed().entries == []
    refreshed.close()


def test_files_of_the_space():
    files = space_files("owner/board")
    front = yaml.safe_load(files["README.md"].split("---")[1])
    assert {front[name] for name in ("sdk", "app_file")} == {"gradio", "app.py"}
    assert len(front["short_description"]) <= 60
    called = {}
    module = {"serve": lambda board, **options: called.update(options, board=board)}
    code = files["app.py"].replace("from hf_orthossl.hub.leaderboard.page.app import serve", "")
    exec(compile(code, "app.py", "exec"), module)
    assert called["board"] == "owner/board"
    assert (called["host"], called["port"], called["every"]) == ("0.0.0.0", 7860, 3600)
    assert math.isfinite(called["retry"])
    for wrong in ('x", evil("', "a", "a/b/c", "a/b\nimport os"):
        with pytest.raises(ValueError, match="board_id"):
            space_files(wrong)
    with pytest.raises(ValueError, match="package"):
        space_files("owner/board", package="a\nb")
