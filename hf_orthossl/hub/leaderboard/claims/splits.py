"""Tell whether splits, named as 🤗 Datasets names them, share images: a number on training images is not a test."""

import re

_PART = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<low>-?\d+%?)?:(?P<high>-?\d+%?)?\])?")
_Part = tuple[str, str | None, str | None, bool]


def overlap(one: str, other: str) -> bool:
    """Return whether two splits, such as "train[:80%]" and "train[80%:]+test", may share images.

    Slices in different units, images and percent, may share some; "all" shares images with any split.
    """
    return any(_share(_part(a), _part(b)) for a in one.split("+") for b in other.split("+"))


def learned_from(split: str, pretrained: str | None) -> bool:
    """Return whether a probe learned from a split, or an encoder whose split of the same data is `pretrained`."""
    names = [part.strip().lower() for part in split.split("+")]
    # A slice of the training images may be what was held out for testing: its bounds then say so.
    whole = any(name.startswith(("train", "all")) and "[" not in name for name in names)
    return whole or (pretrained is not None and overlap(split, pretrained))


def _part(text: str) -> _Part:
    """Return the name of a split, the bounds of its slice, and whether it could be read."""
    match = _PART.fullmatch(text.strip().lower())
    if match is None:
        return text.split("[")[0].strip().lower(), None, None, False
    return match["name"].strip(), match["low"], match["high"], True


def _share(one: _Part, other: _Part) -> bool:
    if "all" in (one[0], other[0]):
        return True
    if one[0] != other[0]:
        return False
    # Disjoint only if one ends before the other begins, both counted in the same unit.
    return not (_ends_before(one, other) or _ends_before(other, one))


def _ends_before(one: _Part, other: _Part) -> bool:
    high, low = one[2], other[1]
    if not (one[3] and other[3]) or high is None or low is None or "-" in high + low:
        return False
    return high.endswith("%") == low.endswith("%") and int(high.rstrip("%")) <= int(low.rstrip("%"))
