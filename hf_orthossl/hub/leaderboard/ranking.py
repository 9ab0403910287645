"""Order on the board: encoders by one number, and pairs that differ by the penalty alone."""

from collections import defaultdict
from dataclasses import dataclass

from .schema import Board, Entry, Measured
from .splits import learned_from

# The board's own number counts more than a confirmed claim, and that more than a claim.
_TRUST = ("board", "verified", "author")


@dataclass(frozen=True)
class Row:
    """One encoder's place.

    Args:
        rank (`int`): From 1; encoders with the same value share it.
        entry ([`Entry`]): The encoder.
        result ([`Measured`]): The number it is ranked by.
    """

    rank: int
    entry: Entry
    result: Measured


def rank(board: Board, task: str, dataset: str, metric: str) -> list[Row]:
    """Encoders by one measurement, best first.

    Each encoder counts with the number that this board measured itself, if it did; without one with a claim that a
    re-run confirmed; else with a claim; of several with the best. So a claim that a re-run refuted never ranks.
    Equal values are in order of the repository's name.

    Args:
        board ([`Board`]): Where from.
        task, metric (`str`): Such as "knn" and "top1".
        dataset (`str`): Hub id or name of the data; upper or lower case alike, as on the Hub.
    """
    found = []
    for entry in board.entries:
        result = best(entry, task, dataset, metric)
        if result:
            found.append((entry, result))
    found.sort(key=lambda pair: (-pair[1].value, pair[0].repo_id))
    rows: list[Row] = []
    for place, (entry, result) in enumerate(found, 1):
        same = rows and rows[-1].result.value == result.value
        rows.append(Row(rows[-1].rank if same else place, entry, result))
    return rows


def best(entry: Entry, task: str, dataset: str, metric: str) -> Measured | None:
    """The result by which an encoder is ranked; `None` without one."""
    found = _by_protocol(entry, task, dataset, metric).values()
    return min(found, key=lambda result: (_TRUST.index(result.source), -result.value), default=None)


def measurements(board: Board) -> list[tuple[str, str, str]]:
    """The (task, dataset, metric) that there are, those of most encoders first."""
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    spelt: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    for entry in board.entries:
        for key, names in {
            (r.task, r.dataset.lower(), r.metric): (r.task, r.dataset, r.metric) for r in entry.results
        }.items():
            counts[key] += 1
            spelt.setdefault(key, names)
    return [spelt[key] for key in sorted(counts, key=lambda key: (-counts[key], key))]


def paired(
    board: Board, task: str = "knn", dataset: str | None = None, metric: str = "top1"
) -> list[tuple[Entry, Entry, float | None]]:
    """Encoders alike but for the penalty: in backbone, parameters, method, training data, image size and length.

    A length of training that was not told is alike only to another.

    Args:
        board ([`Board`]): Where from.
        task, metric (`str`): What is compared.
        dataset (`str`, *optional*): Of the measurement; by default the one that most encoders have.

    Returns:
        `list`: (without, with, difference): the best of either side, one pair for each kind of penalty, and how much
        better the one with the penalty is, over measurements of the same split and protocol; `None` where there is
        none. Largest first, those without a difference last.
    """
    if dataset is None:
        same = [names for names in measurements(board) if (names[0], names[2]) == (task, metric)]
        dataset = same[0][1] if same else ""
    groups: dict[tuple, dict[str | None, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in board.entries:
        data = (entry.pretrained_on or "").lower()
        length = (entry.steps, entry.epochs, entry.images_per_step)
        alike = (entry.backbone, entry.parameters, entry.method, data, entry.image_size, *length)
        if entry.pretrained_on:
            groups[alike][entry.regularizer].append(entry)
    pairs = []
    for sides in groups.values():
        for kind in sorted(filter(None, sides)):
            candidates = [
                (*sides_of, _difference(*sides_of, task, dataset, metric))
                for sides_of in ((without, with_) for without in sides.get(None, []) for with_ in sides[kind])
            ]
            if candidates:
                pairs.append(max(candidates, key=lambda pair: _strength(pair, task, dataset, metric)))
    pairs.sort(key=lambda pair: (pair[2] is None, -(pair[2] or 0), pair[0].repo_id, pair[1].repo_id))
    return pairs


def _strength(pair: tuple[Entry, Entry, float | None], task: str, dataset: str, metric: str) -> tuple:
    """The best of both sides: neither is chosen for its partner's weakness."""
    values = [getattr(best(entry, task, dataset, metric), "value", -1.0) for entry in pair[:2]]
    return pair[2] is not None, sum(values), pair[0].repo_id, pair[1].repo_id


def _difference(without: Entry, with_: Entry, task: str, dataset: str, metric: str) -> float | None:
    protocols = [_by_protocol(entry, task, dataset, metric) for entry in (without, with_)]
    common = protocols[0].keys() & protocols[1].keys()
    if not common:
        return None
    # The protocol under which both are best.
    key = max(common, key=lambda key: (protocols[0][key].value + protocols[1][key].value, key))
    return protocols[1][key].value - protocols[0][key].value


def most_trusted(results: list[Measured]) -> dict[tuple, Measured]:
    """One number of each that answers the same question: the most trusted, of equally trusted ones the best."""
    found: dict[tuple, Measured] = {}
    for result in sorted(results, key=lambda result: (_TRUST.index(result.source), -result.value)):
        found.setdefault(result.alike, result)
    return found


def _by_protocol(entry: Entry, task: str, dataset: str, metric: str) -> dict[tuple, Measured]:
    wanted = (task, dataset.lower(), metric)
    fitting = [r for r in entry.results if (r.task, r.dataset.lower(), r.metric) == wanted]
    return most_trusted([result for result in fitting if not learned_from(result.split, None)])
