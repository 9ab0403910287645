"""Order the board: encoders by one number, by all tasks together, and pairs that differ in the penalty alone."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ....evaluation.results import Key, learned_from
from ..claims.read import NOT_STATED
from ..schema import Board, BoardResult, Entry

# The board's own number counts more than a confirmed claim, and that more than a claim.
_TRUST = ("board", "verified", "author")
Measurement = tuple[str, str, str]
Pair = tuple[Entry, Entry, float | None]
# Of each task the metrics by which all tasks are compared; others, such as top-5, say the same once more.
MAIN_METRICS = ("top1", "mean_per_class", "AP", "mIoU")


@dataclass(frozen=True)
class Row:
    """The place of one encoder, and the number it is ranked by."""

    # From 1: one more than the encoders that are better beyond doubt.
    rank: int
    entry: Entry
    result: BoardResult

    @property
    def low(self) -> float:
        """Return the lower end of the 95 % interval of the number, or the number where none was published."""
        return _low(self.result)


@dataclass(frozen=True)
class Standing:
    """The place of one encoder in all tasks together.

    Args:
        rank (`int`): From 1, by `borda`; encoders of the same count share it.
        entry ([`Entry`]): The encoder.
        borda (`float`): The mean over tasks of the share of other ranked encoders that it beats, in [0, 1]: those whose
            number lies below its 95 % interval, and half of those that are not told apart from it. A task that it was
            not measured on counts 0.
        mean (`float`, *optional*): The mean of its numbers; `None` unless it was measured on every task.
        rows (mapping): Measurement → its place there, for those that it was measured on.
    """

    rank: int
    entry: Entry
    borda: float
    mean: float | None
    rows: Mapping[Measurement, Row]


def rank(board: Board, task: str, dataset: str, metric: str) -> list[Row]:
    """Rank encoders by one measurement, best first.

    An encoder is ranked by the number that this board measured, if there is one; else by a claim that this board
    confirmed; else by a claim; of several by the best. A refuted claim therefore never ranks. Its rank is one more than
    the number of encoders whose 95 % interval lies above its number: nobody rises by claiming a wide interval. They are
    listed by value, equal ones by the repository's name. The name of the data may be in upper or lower case.
    """
    ranked = [(entry, result) for entry in board.entries if (result := best(entry, task, dataset, metric))]
    ranked.sort(key=lambda pair: (-pair[1].value, pair[0].repo_id))
    lows = sorted(_low(result) for _, result in ranked)
    return [Row(1 + len(lows) - bisect_right(lows, result.value), entry, result) for entry, result in ranked]


def standings(rankings: Mapping[Measurement, Mapping[str, Row]]) -> list[Standing]:
    """Return the place of every encoder in several measurements together, by Borda's count.

    Args:
        rankings (mapping): Measurement → rows by repository, as [`rank`] gives them.
    """
    shares: dict[str, float] = defaultdict(float)
    own: dict[str, dict[Measurement, Row]] = defaultdict(dict)
    for measurement, ranked in rankings.items():
        values = sorted(row.result.value for row in ranked.values())
        for name, row in ranked.items():
            beaten = bisect_left(values, row.low)
            level = len(ranked) - 1 - beaten - (row.rank - 1)
            shares[name] += (beaten + level / 2) / max(len(ranked) - 1, 1)
            own[name][measurement] = row
    found = []
    for name, rows in own.items():
        entry = next(iter(rows.values())).entry
        numbers = [row.result.value for row in rows.values()]
        mean = sum(numbers) / len(numbers) if len(rows) == len(rankings) else None
        found.append((shares[name] / len(rankings), mean, name, entry, rows))
    found.sort(key=lambda one: (-one[0], -(one[1] or 0), one[2]))
    counts = [-borda for borda, *_ in found]
    return [
        Standing(1 + bisect_left(counts, -borda), entry, borda, mean, rows) for borda, mean, _, entry, rows in found
    ]


def _low(result: BoardResult) -> float:
    # A published interval may miss its value by a rounding error.
    return result.value if result.low is None else min(result.low, result.value)


def best(entry: Entry, task: str, dataset: str, metric: str) -> BoardResult | None:
    """Return the result by which an encoder is ranked; `None` without one."""
    results = _by_protocol(entry, task, dataset, metric).values()
    return min(results, key=lambda result: (_TRUST.index(result.source), -result.value), default=None)


def measurements(board: Board) -> list[Measurement]:
    """Return every (task, dataset, metric), those of most encoders first."""
    counts: dict[Measurement, int] = defaultdict(int)
    spelt: dict[Measurement, Measurement] = {}
    for entry in board.entries:
        own = {(r.task, r.dataset.lower(), r.metric): (r.task, r.dataset, r.metric) for r in entry.results}
        for key, names in own.items():
            counts[key] += 1
            spelt.setdefault(key, names)
    return [spelt[key] for key in sorted(counts, key=lambda key: (-counts[key], key))]


def paired(board: Board, task: str = "knn", dataset: str | None = None, metric: str = "top1") -> list[Pair]:
    """Pair encoders that differ in the penalty alone, as far as the board knows their training.

    They agree in backbone, parameters, method, training data, image size, length of training, optimizer, and in the
    remedies other than the penalty: constraint, embedding regularizer and whitening. An unknown length or optimizer
    agrees with an unknown one only, and an encoder whose remedies could not be read is in no pair. By default `dataset`
    is the one that most encoders were measured on.

    Returns:
        `list`: (without, with, difference) for each kind of penalty, where a decoupled one is another kind than that in
        the loss: the best encoder of either side, and how much
        better the one with the penalty is, over results of the same split and protocol; `None` if there are none.
        Largest difference first, those without a difference last.
    """
    if dataset is None:
        dataset = next((name for its_task, name, its in measurements(board) if (its_task, its) == (task, metric)), "")
    groups: dict[tuple, dict[tuple[str, str] | None, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in board.entries:
        about = (entry.backbone, entry.parameters, entry.method, (entry.pretrained_on or "").lower(), entry.image_size)
        training = (entry.steps, entry.epochs, entry.images_per_step, entry.optimizer)
        embedding = (entry.embedding_regularizer, entry.embedding_layer, entry.embedding_weight)
        kind = (entry.regularizer, entry.penalty_mode or "loss") if entry.regularizer else None
        if entry.pretrained_on and entry.remedies_read:
            groups[*about, *training, *embedding, entry.constrain, entry.whitening][kind].append(entry)
    pairs = []
    for sides in groups.values():
        for kind in sorted(filter(None, sides)):
            candidates = [
                (without, with_, _difference(without, with_, task, dataset, metric))
                for without in sides.get(None, [])
                for with_ in sides[kind]
            ]
            if candidates:
                pairs.append(max(candidates, key=lambda pair: _strength(pair, task, dataset, metric)))
    pairs.sort(key=lambda pair: (pair[2] is None, -(pair[2] or 0), pair[0].repo_id, pair[1].repo_id))
    return pairs


def most_trusted(results: list[BoardResult]) -> dict[Key, BoardResult]:
    """Return one of the results that answer the same question: the most trusted, of equally trusted ones the best."""
    trusted: dict[Key, BoardResult] = {}
    for result in sorted(results, key=lambda result: (_TRUST.index(result.source), -result.value)):
        trusted.setdefault(result.alike, result)
    return trusted


def _by_protocol(entry: Entry, task: str, dataset: str, metric: str) -> dict[Key, BoardResult]:
    wanted = (task, dataset.lower(), metric)
    fitting = [r for r in entry.results if (r.task, r.dataset.lower(), r.metric) == wanted]
    # A claim that does not state its split may be of training images as well.
    return most_trusted([r for r in fitting if r.split != NOT_STATED and not learned_from(r.split, None)])


def _strength(pair: Pair, task: str, dataset: str, metric: str) -> tuple:
    """Order pairs by the sum of both sides, so that neither is chosen for its partner's weakness."""
    values = [getattr(best(entry, task, dataset, metric), "value", -1.0) for entry in pair[:2]]
    return pair[2] is not None, sum(values), pair[0].repo_id, pair[1].repo_id


def _difference(without: Entry, with_: Entry, task: str, dataset: str, metric: str) -> float | None:
    ours, theirs = (_by_protocol(entry, task, dataset, metric) for entry in (without, with_))
    # The protocol under which both are best.
    key = max(ours.keys() & theirs.keys(), key=lambda key: (ours[key].value + theirs[key].value, key), default=None)
    return None if key is None else theirs[key].value - ours[key].value
