"""What the board holds: all that the page ever sees. Made and read by `board_json`, which checks every value."""

import re
from dataclasses import dataclass, field

FORMAT = 3
TASKS = ("knn", "linear", "finetune", "transfer", "detection")
METRICS = ("top1", "top5", "mean_per_class", "AP", "AP50", "AP75", "VOC07_AP50", "VOC12_AP50")
LIBRARIES = ("timm", "transformers")
# The author's claim; the author's claim that a re-run of this board bore out; that re-run's own number.
SOURCES = ("author", "verified", "board")
MOST_POINTS, MOST_CURVES, MOST_RESULTS = 200, 24, 400
# Of an author's; each may have this board's number beside it.
MOST_CLAIMS = MOST_RESULTS // 2
# Of one repository.
MOST_ASIDES = 20
# What was not read rather than refused: it is tried again although the revision is the same.
UNREAD = "not read"
# How many images stood behind a number, not how it was made.
_COUNTS = re.compile(r"(?:, )?\b(train_images|test_images|bank|queries) = \d+")


@dataclass(frozen=True)
class Measured:
    """One number and who measured it on what.

    Args:
        task (`str`): One of `TASKS`.
        dataset, split (`str`): Hub id or name of the data, and the part measured on.
        metric (`str`): One of `METRICS`.
        value (`float`): In [0, 1].
        protocol (`str`): How, such as "k = 20, temperature = 0.07"; never empty.
        low, high (`float`, *optional*): 95 % interval.
        source (`str`, defaults to "author"): One of `SOURCES`.
        date (`str`, *optional*): ISO 8601.
        revision (`str`, *optional*): Commit whose weights were measured.
    """

    task: str
    dataset: str
    split: str
    metric: str
    value: float
    protocol: str
    low: float | None = None
    high: float | None = None
    source: str = "author"
    date: str | None = None
    revision: str | None = None

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What was measured and how, without what came out and who did it."""
        return self.task, self.dataset.lower(), self.split, self.metric, self.protocol

    @property
    def alike(self) -> tuple[str, str, str, str, str]:
        """`key` without the number of images: numbers that answer the same question."""
        return *self.key[:4], _COUNTS.sub("", self.protocol).strip(", ")


@dataclass(frozen=True)
class Spectra:
    """Scalars and eigenvalue curves of an encoder, as its author published them; scalars agree with the curves.

    Args:
        summary (`dict[str, float]`): `effective_rank`, `dim`, `relative_rank` (their quotient), `rankme`,
            `participation_ratio`, `num_positive`, `num_images`, and `alpha` where there is one, all of the
            representation; `weights_rank_mean` and `weights_rank_min`, effective rank over its highest possible value,
            over all weights.
        curves (`dict[str, list[float]]`): Normalized eigenvalues in [0, 1], descending, of features ("input", stages,
            "representation") and of the last weight of each stage ("weights/<parameter>"), at most `MOST_POINTS` each.
        lengths (`dict[str, int]`): Number of eigenvalues that each curve stands for, see [`~Spectra.ranks`].
    """

    summary: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)

    def ranks(self, curve: str) -> list[int]:
        """The ranks, from 1, of a curve's eigenvalues: evenly spaced, first and last among them."""
        return evenly(self.lengths[curve], len(self.curves[curve]))


@dataclass(frozen=True)
class Entry:
    """One published encoder.

    Args:
        repo_id, revision, author, last_modified (`str`): What was read, and when it was last changed (ISO 8601).
        backbone, method (`str`): As `config.json` names them.
        regularizer (`str`, *optional*): "so", "srip", "dso" or "mc"; `None` without, and where its weight is 0.
        gamma (`float`, *optional*): Weight of the penalty.
        pretrained_on (`str`, *optional*): Training data.
        image_size (`int`): Pixels.
        parameters (`int`, *optional*): Numbers in the weights.
        results (`list[Measured]`): What was measured.
        spectra ([`Spectra`], *optional*): `None` where none were published, or they were refused.
        library_version (`str`, *optional*): Of this package.
        weights (`str`, *optional*): SHA-256 of `model.safetensors`.
        library (`str`, defaults to "timm"): One of `LIBRARIES`, which loads it.
        remote_code (`bool`, defaults to `False`): Whether transformers needs code of the repository for it.
        steps, images_per_step (`int`, *optional*), epochs (`float`, *optional*): Length of the training; `None` where
            it was not told.
    """

    repo_id: str
    revision: str
    author: str
    last_modified: str | None
    backbone: str
    method: str
    regularizer: str | None
    gamma: float | None
    pretrained_on: str | None
    image_size: int
    parameters: int | None
    results: list[Measured]
    spectra: Spectra | None
    library_version: str | None
    weights: str | None = None
    library: str = "timm"
    remote_code: bool = False
    steps: int | None = None
    epochs: float | None = None
    images_per_step: int | None = None


@dataclass(frozen=True)
class Aside:
    """Something that has no place in the table, listed with the reason.

    Args:
        repo_id (`str`): Where it is.
        revision (`str`, *optional*): The commit that was read.
        field (`str`): What it is about: a file, or one of its entries.
        reason (`str`): One sentence.
    """

    repo_id: str
    revision: str | None
    field: str
    reason: str


@dataclass(frozen=True)
class Board:
    """All encoders found at one time.

    Args:
        entries (`list[Entry]`): By repository.
        asides (`list[Aside]`): What was left out, and why.
        collected_at (`str`): ISO 8601.
        endpoint (`str`): The Hub that was asked.
    """

    entries: list[Entry]
    asides: list[Aside]
    collected_at: str
    endpoint: str


def first_asides(asides: list[Aside], field: str) -> list[Aside]:
    """Those of one repository up to `MOST_ASIDES`; how many more there are stands under `field`."""
    if len(asides) <= MOST_ASIDES:
        return asides
    rest, last = len(asides) - MOST_ASIDES, asides[-1]
    return [*asides[:MOST_ASIDES], Aside(last.repo_id, last.revision, field, f"and {rest:,} more, not listed")]


def evenly(length: int, points: int) -> list[int]:
    """At most `points` ranks out of 1 … `length`, evenly spaced, first and last among them."""
    if length <= points or points == 1:
        return list(range(1, min(length, points) + 1))
    return [1 + round(step * (length - 1) / (points - 1)) for step in range(points)]
