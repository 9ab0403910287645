"""An owner's words survive every update of a card, byte for byte."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_orthossl.hub.card.sections import find_sections, merge_sections, offered_line, split_front_matter


def card(sections: dict[str, str], offered=None) -> str:
    body = "".join(f"<!-- orthossl:{n} -->\n{text}\n<!-- /orthossl:{n} -->\n" for n, text in sections.items())
    return body + offered_line(offered or sections) + "\n"


OLD, NEW = card({"a": "old a", "b": "old b"}), card({"a": "new a", "b": "new b"})
words = st.text(alphabet=st.sampled_from("ab <!->/:\t\n#|é\r"), max_size=30)


@settings(deadline=None, max_examples=60)
@given(before=words, between=words, after=words)
def test_all_text_outside_is_kept(before, between, after):
    before, between = before + "\n", between + "\n"
    parts = OLD.split("<!-- orthossl:b -->")
    previous = before + parts[0] + between + "<!-- orthossl:b -->" + parts[1] + after
    merged = merge_sections(previous, NEW, ours=True)
    # An independent account: swap the two insides by hand, in the owner's line breaks where those are new.
    expected = previous.replace("old a", "new a").replace("old b", "new b")
    if "\r\n" in previous:
        assert [line for line in merged.split() if line] == [line for line in expected.split() if line]
        assert merged.startswith(before)
        assert merged.endswith(after)
    else:
        assert merged == expected


def test_an_update_changes_nothing_twice():
    previous = "mine\n" + OLD
    once = merge_sections(previous, NEW, ours=True)
    assert merge_sections(once, NEW, ours=True) == once


def test_line_breaks_follow_the_owners():
    merged = merge_sections(OLD.replace("\n", "\r\n"), NEW, ours=True)
    assert merged == NEW.replace("\n", "\r\n")


def test_a_removed_section_stays_away_and_its_text_stays():
    start, end = "<!-- orthossl:a -->\n", "<!-- /orthossl:a -->\n"
    unmarked = OLD.replace(start, "").replace(end, "")
    merged = merge_sections(unmarked, NEW, ours=True)
    assert "old a" in merged
    assert "new a" not in merged
    assert "new b" in merged


def test_with_all_sections_removed_nothing_comes_back():
    mine = "All of this is mine.\n"
    assert merge_sections(mine, NEW, ours=True) == mine
    assert merge_sections(mine + offered_line("ab") + "\n", NEW, ours=False) == mine + offered_line("ab") + "\n"


def test_new_sections_of_a_newer_version_are_appended_once():
    newer = card({"a": "new a", "c": "new c", "b": "new b"})
    merged = merge_sections(OLD + "mine\n", newer, ours=True)
    assert merged.endswith("mine\n\n<!-- orthossl:c -->\nnew c\n<!-- /orthossl:c -->\n")
    assert [*find_sections(merged)] == ["a", "b", "c"]
    assert merge_sections(merged, newer, ours=True) == merged
    # Removed from now on, it stays away, also after an update by the older version.
    without = merged.replace("<!-- orthossl:c -->\nnew c\n<!-- /orthossl:c -->\n", "")
    assert merge_sections(merge_sections(without, NEW, ours=True), newer, ours=True).count("new c") == 0


def test_a_section_that_only_another_version_knows_is_text():
    previous = card({"a": "old a", "z": "of the future"})
    assert "of the future" in merge_sections(previous, NEW, ours=True)


def test_a_card_of_other_origin_gets_the_sections_at_its_end():
    merged = merge_sections("# Their card", NEW, ours=False)
    assert merged.startswith("# Their card\n\n<!-- orthossl:a -->")
    assert merge_sections(merged, NEW, ours=True) == merged


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<!-- orthossl:a -->\nx", "line 1 .*a never ends"),
        ("x\n<!-- /orthossl:a -->", "line 2 .*not open"),
        ("<!-- orthossl:a -->\n<!-- orthossl:b -->\n<!-- /orthossl:b -->\n<!-- /orthossl:a -->", "b begins before .*a"),
        ("<!-- orthossl:a -->\n<!-- /orthossl:b -->", "not open"),
        ("<!-- orthossl:a -->\n<!-- /orthossl:a -->\n" * 2, "line 3 .*appears twice"),
        ("<!-- orthossl:a -->\nx <!-- /orthossl:a -->", "a never ends.*separate line"),
    ],
)
def test_broken_markers_are_refused(body, message):
    with pytest.raises(ValueError, match=message):
        merge_sections(body, NEW, ours=True)


def test_a_marker_that_is_only_mentioned_is_text():
    assert find_sections("see `<!-- orthossl:a -->` here") == {}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_front_matter_is_split_off(mark, line_break):
    text = line_break.join([mark + "---", "license: mit", "---", "body", "---", "more"])
    head, body = split_front_matter(text)
    assert head.strip() == "license: mit"
    assert body == line_break.join(["body", "---", "more"])


@pytest.mark.parametrize("text", ["", "# Title", "---\nnever closed", "text\n---\na: b\n---\n"])
def test_without_front_matter_all_is_body(text):
    assert split_front_matter(text) == ("", text)
