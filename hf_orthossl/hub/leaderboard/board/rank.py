"""The order of the board: encoders by one number, and pairs that differ in the penalty alone."""

from collections import defaultdict
from dataclasses import dataclass

from ....evaluation.results import Key, learned_from
from ..claims.read import NOT_STATED
from ..schema import Board, BoardResult, Entry

# The board's own number counts more than a confirmed claim, and that more than a claim.
_TRUST = ("board", "verified", "author")
Measurement = tuple[str, str, str]
Pair = tuple[Entry, Entry, float | None]


@dataclass(frozen=True)
class Row:
    """The place of one encoder, and the number it is ranked by."""

    # From 1; encoders with the same value share it.
    rank: int
    entry: Entry
    result: BoardResult


def rank(board: Board, task: str, dataset: str, metric: str) -> list[Row]:
    """Rank encoders by one measurement, best first.

    An encoder is ranked by the number that this board measured, if there is one; else by a claim that this board
    confirmed; else by a claim; of several by the best. A refuted claim therefore never ranks. Equal values are in order
    of the repository's name. The name of the data may be in upper or lower case.
    """
    ranked = [(entry, result) for entry in board.entries if (result := best(entry, task, dataset, metric))]
    ranked.sort(key=lambda pair: (-pair[1].value, pair[0].repo_id))
    rows: list[Row] = []
    for place, (entry, result) in enumerate(ranked, 1):
        is_tie = rows and rows[-1].result.value == result.value
        rows.append(Row(rows[-1].rank if is_tie else place, entry, result))
    return rows


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
