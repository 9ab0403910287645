"""Whether two splits, named as 🤗 Datasets names them, share images: a number on what was learned from is no test."""

import re

_PART = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<low>-?\d+%?)?:(?P<high>-?\d+%?)?\])?")


def overlap(one: str, other: str) -> bool:
    """Whether two splits, such as "train[:80%]" and "train[80%:]+test", may share images.

    Slices of unlike units, such as images and per cent, count as sharing some; so does "all" with any split.
    """
    return any(_share(_part(a), _part(b)) for a in one.split("+") for b in other.split("+"))


def learned_from(split: str, pretrained: str | None) -> bool:
    """Whether a split is one that an encoder or its probe learned from.

    Args:
        split (`str`): What was measured on.
        pretrained (`str`, *optional*): What the encoder was trained on, of the same data; `None` if it was other data.
    """
    names = [part.strip().lower() for part in split.split("+")]
    # A slice of the training images may be what was cut off for testing: then it says so by its bounds.
    whole = any(name.startswith(("train", "all")) and "[" not in name for name in names)
    return whole or (pretrained is not None and overlap(split, pretrained))


def _part(text: str) -> tuple[str, str | None, str | None, bool]:
    found = _PART.fullmatch(text.strip().lower())
    if found is None:
        return text.split("[")[0].strip().lower(), None, None, False
    return found["name"].strip(), found["low"], found["high"], True


def _share(one: tuple, other: tuple) -> bool:
    if "all" in (one[0], other[0]):
        return True
    if one[0] != other[0]:
        return False
    # Disjoint only if one ends before the other begins, both counted alike.
    return not (_ends_before(one, other) or _ends_before(other, one))


def _ends_before(one: tuple, other: tuple) -> bool:
    high, low = one[2], other[1]
    if not (one[3] and other[3]) or high is None or low is None or "-" in high + low:
        return False
    return high.endswith("%") == low.endswith("%") and int(high.rstrip("%")) <= int(low.rstrip("%"))
