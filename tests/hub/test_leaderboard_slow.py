"""The leaderboard's page in a real browser, over a slow link: what is typed and clicked meanwhile is not lost."""

import pytest
from board_visitor import names

pytestmark = pytest.mark.browser


@pytest.fixture
def slow(visitor):
    """A page whose answers wait until they are let through, from the second on."""
    page = visitor.open()
    held = []
    page.route("**/component_server**", lambda route: held.append(route))

    def let_through(count):
        page.wait_for_timeout(50)
        while count:
            page.wait_for_timeout(20)
            if held:
                held.pop(0).continue_()
                count -= 1
        visitor.settle()

    yield page, held, let_through
    page.unroute("**/component_server**")
    for route in held:
        route.continue_()


def test_letters_typed_while_an_answer_is_on_its_way_stay(slow, visitor):
    page, held, let_through = slow
    page.click("#f-q")
    page.keyboard.type("user7")
    page.wait_for_timeout(400)
    assert len(held) == 1
    # At the front, so that the caret is not where it would be anyway.
    page.keyboard.press("Home")
    page.keyboard.type("vicreg ")
    let_through(1)
    assert page.input_value("#f-q") == "vicreg user7"
    assert page.evaluate("[document.activeElement.id, document.activeElement.selectionStart]") == ["f-q", 7]
    let_through(1)
    page.wait_for_function("location.search.includes('vicreg')")
    assert visitor.models() == [n for n in names() if "user7/" in n and "vicreg" in n]


def test_a_space_at_the_end_of_a_search_stays(visitor):
    page = visitor.open()
    page.click("#f-q")
    page.keyboard.type("user7 ")
    page.wait_for_function("location.search.includes('user7')")
    visitor.settle()
    page.keyboard.type("vicreg")
    page.wait_for_function("location.search.includes('vicreg')")
    assert page.input_value("#f-q") == "user7 vicreg"


def test_a_link_clicked_while_typing_is_followed(slow, visitor):
    page, held, let_through = slow
    page.click("#f-q")
    page.keyboard.type("user7")
    page.click("#tab-scatter")
    page.wait_for_timeout(600)
    assert len(held) == 1, "the search is asked for no more"
    let_through(1)
    assert visitor.query() == {"show": ["scatter"]}
    # Nor does what is typed before its answer is there undo it.
    page.click("#tab-pairs")
    page.click("#f-q")
    page.keyboard.type("user7")
    page.wait_for_timeout(600)
    assert len(held) == 1
    let_through(2)
    shown = visitor.query()
    assert (shown["show"], shown["q"]) == (["pairs"], ["user7"])
