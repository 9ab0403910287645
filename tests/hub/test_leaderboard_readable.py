"""The leaderboard's page in a real browser: by keyboard, for screen readers, on a phone, light and dark."""

import pytest
from board_visitor import ACCESSIBLE, ALL_VIEWS, CONTRAST, names

pytestmark = pytest.mark.browser


def test_by_keyboard_alone(visitor):
    page = visitor.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "?"  # the title leads home
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
