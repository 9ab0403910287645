"""The contents of a board, and the checks that every value passes before it gets there.

All that the page shows is one of these structures. Untrusted JSON becomes one of them through [`checked`], and a
snapshot goes through the same checks when it is read: it may come from anyone. Building a structure checks nothing.
"""

import datetime
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    Strict,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from ...evaluation.results import COUNTS, METRICS, TASKS, Key, Result
from ..escaping import clean

FORMAT = 5
# The author's claim; a claim that this board's own measurement confirmed; that own measurement.
SOURCES = ("author", "verified", "board")
MAX_POINTS, MAX_CURVES, MAX_RESULTS = 200, 24, 400
# Claims of one author; each may have this board's number beside it.
MAX_CLAIMS = MAX_RESULTS // 2
# Rejections listed for one repository.
MAX_REJECTIONS = 20
# A protocol names a handful of settings.
MAX_PROTOCOL, MAX_PROTOCOL_TEXT = 40, 300
# The `field` of a repository that could not be read: it is read again although its revision is the same.
UNREAD = "not read"
LARGEST = 1e15
_MAX_BYTES = 256 * 2**20
T = TypeVar("T")


class RejectedError(ValueError):
    """An untrusted value that the board does not take: where it is, and what is wrong, in one sentence."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def shown(value: Any, longest: int = 40) -> str:
    """Quote an untrusted value in one short line of ASCII."""
    try:
        # Only the beginning is converted, whatever a file holds.
        words = str(value[: 2 * longest] if isinstance(value, str | list) else value)
    except (ValueError, RecursionError):
        # An integer of thousands of digits has no text.
        return f"a {type(value).__name__} that cannot be shown"
    quoted = ascii(words[:longest])
    return (quoted if isinstance(value, str) else quoted[1:-1]) + ("..." if len(words) > longest else "")


def _rejected(reason: str) -> PydanticCustomError:
    return PydanticCustomError("rejected", "{reason}", {"reason": reason})


def _must_be(what: str, holds: Callable[[Any], bool] = lambda value: True) -> WrapValidator:
    """Report a value of another type, or one for which `holds` is false, as "must be WHAT, got …"."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            parsed = handler(value)
            if holds(parsed):
                return parsed
        except ValidationError:
            pass
        raise _rejected(f"must be {what}, got {shown(value)}")

    return WrapValidator(check)


def _one_of(known: Collection[str]) -> WrapValidator:
    return _must_be(f"one of {', '.join(known)}", lambda value: value in known)


def _name_of(longest: int) -> BeforeValidator:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise _rejected(f"must be a name, got {shown(value)}")
        if len(value) > longest:
            raise _rejected(f"is longer than {longest} characters: {shown(value)}")
        if not (value.isascii() and value.isprintable()):
            raise _rejected(f"has letters that look like others or are invisible: {shown(value)}")
        return " ".join(value.split())

    return BeforeValidator(check)


def _cleaned(longest: int) -> BeforeValidator:
    return BeforeValidator(lambda value: clean(value, longest) if isinstance(value, str) else value)


def _protocol(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _rejected(f"must be an object, got {shown(value)}")
    if not value:
        raise _rejected("is missing: a number without its protocol cannot be compared")
    if len(value) > MAX_PROTOCOL:
        raise _rejected(f"has {len(value):,} entries, more than {MAX_PROTOCOL}")
    protocol = {}
    for name, entry in value.items():
        if not isinstance(name, str) or not clean(name).strip() or len(name) > 60:
            raise _rejected(f"must have short names, got {shown(name)}")
        is_number = type(entry) in (int, float) and -LARGEST <= entry <= LARGEST
        if not is_number and entry is not None and not isinstance(entry, str | bool):
            raise _rejected(f"must hold numbers and texts, got {shown(entry)} as {shown(name)}")
        protocol[clean(name)] = clean(entry, MAX_PROTOCOL_TEXT) if isinstance(entry, str) else entry
    return protocol


def is_repo_id(name: str) -> bool:
    """Return whether a name has the Hub's form owner/name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def whole_to(high: int) -> Any:
    """Return the check of a whole number from 0 to `high`."""
    return _must_be(f"a whole number from 0 to {high:,}", lambda value: 0 <= value <= high)


def _bounded(low: float, high: float) -> WrapValidator:
    # NaN and infinity lie in no interval.
    return _must_be(f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


# Names group and filter the board: plain ASCII on one line, so that none looks like another.
Name = Annotated[str, _name_of(96)]
ShortName = Annotated[str, _name_of(40)]
Split = Annotated[str, _name_of(60)]
LayerName = Annotated[str, _name_of(200)]
RepoId = Annotated[StrictStr, _must_be("owner/name", is_repo_id)]
Revision = Annotated[StrictStr, Field(pattern="^[0-9a-f]{7,64}$"), _must_be("the id of a commit")]
Date = Annotated[
    StrictStr,
    Field(pattern=r"^\d{4}-\d\d-\d\d(T[\d:.]{5,15}(Z|[+-]\d\d:?\d\d)?)?$"),
    _must_be("a date as in 2026-01-31"),
    # YAML reads dates by itself.
    BeforeValidator(lambda value: value.isoformat() if isinstance(value, datetime.date) else value),
]
Number = Annotated[StrictFloat, _bounded(-LARGEST, LARGEST)]
Positive = Annotated[StrictFloat, _bounded(0, LARGEST)]
Weight = Annotated[StrictFloat, _bounded(0, 1e9)]
Share = Annotated[StrictFloat, _bounded(0, 1)]
Count = Annotated[StrictInt, whole_to(2**53)]
Size = Annotated[StrictInt, whole_to(10_000)]
Flag = Annotated[StrictBool, _must_be("true or false")]
# How a penalty acts, what weights are constrained to, and what an embedding regularizer acts on.
PenaltyMode = Annotated[StrictStr, _one_of(("loss", "decoupled"))]
Constraint = Annotated[StrictStr, _one_of(("orthogonal",))]
EmbeddingLayer = Annotated[StrictStr, _one_of(("embedding", "representation"))]
Curve = Annotated[list[Annotated[StrictFloat, Field(ge=0, le=1)]], _must_be("a list of numbers from 0 to 1")]
_Endpoint = Annotated[StrictStr, _cleaned(200), _must_be("text")]
Object = Annotated[dict[Any, Any], Strict(), _must_be("an object")]
Sequence = Annotated[list[Any], Strict(), _must_be("a list")]


@dataclass(frozen=True)
class BoardResult(Result):
    """A result on the board: its value is in [0, 1], and its protocol has only the entries that decide the value."""

    task: Annotated[StrictStr, _one_of(TASKS)]
    dataset: Name
    split: Split
    metric: Annotated[StrictStr, _one_of(METRICS)]
    value: Share
    protocol: Annotated[dict[str, Any], BeforeValidator(_protocol)] = field(default_factory=dict)
    # 95 % interval.
    low: Share | None = None
    high: Share | None = None
    source: Annotated[StrictStr, _one_of(SOURCES)] = "author"
    date: Date | None = None
    # Commit of the weights that were measured.
    revision: Revision | None = None

    @property
    def alike(self) -> Key:
        """Return the key without numbers of images: results that share it answer the same question."""
        return self.key_without(COUNTS)


def _holds_its_value(result: BoardResult) -> BoardResult:
    low, high = result.low, result.high
    if low is None and high is None:
        return result
    # A mean over seeds may lie a rounding error outside.
    if low is None or high is None or not low - 1e-3 <= result.value <= high + 1e-3:
        raise _rejected(f"the interval {low} to {high} does not hold the value {result.value:g}")
    return result


@dataclass(frozen=True)
class Spectra:
    """Scalars and eigenvalue curves of an encoder, as its author published them; scalars agree with the curves."""

    # Of the representation: `effective_rank`, `dim`, `relative_rank` (their quotient), `rankme`, `participation_ratio`,
    # `num_positive`, `num_images`, and `alpha` where there is one. Of all weights: `weights_rank_mean` and
    # `weights_rank_min`, effective rank over its highest possible value.
    summary: Annotated[dict[Name, Number], Field(max_length=40)]
    # Normalized eigenvalues, descending, of features ("input", stages, "representation") and of the last weight of each
    # stage ("weights/<parameter>"); each curve stands for as many eigenvalues as `lengths` says.
    curves: Annotated[dict[Name, Curve], Field(max_length=MAX_CURVES)] = field(default_factory=dict)
    lengths: dict[Name, Count] = field(default_factory=dict)

    def ranks(self, curve: str) -> list[int]:
        """Return the ranks, from 1, of a curve's eigenvalues: evenly spaced, first and last among them."""
        return evenly(self.lengths[curve], len(self.curves[curve]))


def _has_curves(spectra: Spectra) -> Spectra:
    if set(spectra.curves) != set(spectra.lengths):
        raise _rejected("must have the length of every curve")
    for name, points in spectra.curves.items():
        if not 0 < len(points) <= min(MAX_POINTS, spectra.lengths[name]):
            raise _rejected(f"have {len(points)} points of {shown(name)}, for {spectra.lengths[name]} eigenvalues")
        if points != sorted(points, reverse=True):
            raise _rejected(f"must be in descending order, unlike {shown(name)}")
    return spectra


CheckedResult = Annotated[BoardResult, AfterValidator(_holds_its_value)]
CheckedSpectra = Annotated[Spectra, AfterValidator(_has_curves)]


@dataclass(frozen=True)
class Entry:
    """One published encoder; what is not known of it is `None`."""

    repo_id: RepoId
    # The commit that was read.
    revision: Revision
    author: Name
    last_modified: Date | None
    # As `config.json` names them.
    backbone: Name
    method: ShortName
    # Penalty on the weights, `None` without one and where its weight is 0; γ is that of one in the loss.
    regularizer: Name | None
    gamma: Number | None
    pretrained_on: Name | None
    # Pixels.
    image_size: Size
    # Numbers in the weights.
    parameters: Count | None
    results: Annotated[list[CheckedResult], Field(max_length=MAX_RESULTS)]
    # `None` where none were published or they were rejected.
    spectra: CheckedSpectra | None
    # Version of this package.
    library_version: Name | None
    # SHA-256 of `model.safetensors`.
    weights: Revision | None = None
    # The library that loads it, and whether transformers needs code of the repository for it.
    library: Annotated[StrictStr, _one_of(("timm", "transformers"))] = "timm"
    remote_code: Flag = False
    steps: Count | None = None
    epochs: Number | None = None
    images_per_step: Count | None = None
    # How the penalty acted, and the strength λ of a decoupled one; `None` without a penalty.
    penalty_mode: PenaltyMode | None = None
    strength: Weight | None = None
    # Other remedies, each `None` without it, and where its weight is 0.
    constrain: Constraint | None = None
    embedding_regularizer: Name | None = None
    embedding_layer: EmbeddingLayer | None = None
    embedding_weight: Weight | None = None
    whitening: Weight | None = None
    # Class of the optimizer, such as "AdamW"; "Muon" and "AdaMuon" are remedies too.
    optimizer: Name | None = None
    # `False` if one of the remedies' settings was rejected: what the encoder was trained with is then unknown.
    remedies_read: Flag = True


@dataclass(frozen=True)
class Rejection:
    """Name something that was found and has no place in the table, with the reason in one sentence."""

    # Malformed lines of the Hub's listing may have no valid name.
    repo_id: Annotated[StrictStr, _cleaned(120), _must_be("text")]
    revision: Revision | None
    # A file, or one of its entries.
    field: Annotated[StrictStr, _cleaned(120), _must_be("text")]
    reason: Annotated[StrictStr, _cleaned(300), _must_be("text")]


@dataclass(frozen=True)
class Board:
    """Hold all encoders found at one time, in the order of their repositories, and what was left out."""

    entries: list[Entry]
    rejected: list[Rejection]
    # ISO 8601.
    collected_at: str
    # The Hub that was read.
    endpoint: str


_ADAPTERS: dict[int, TypeAdapter] = {}


def checked(kind: Any, name: str, value: Any) -> Any:
    """Return an untrusted value as one of the types of this module, such as `Share` or `Entry`.

    Raises:
        RejectedError: The value, called `name`, or a part of it is not of its type.
    """
    # Types of this kind live as long as the module, so their ids stay theirs.
    adapter = _ADAPTERS.get(id(kind)) or _ADAPTERS.setdefault(id(kind), TypeAdapter(kind))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    where = " ".join(shown(part).strip("'") for part in parts) or name
    plain = {
        "rejected": first["msg"],
        "missing": "is missing",
        "too_long": f"has more than {first.get('ctx', {}).get('max_length')} entries",
        "list_type": f"must be a list, got {shown(first['input'])}",
    }
    raise RejectedError(where, plain.get(first["type"], f"must be an object, got {shown(first['input'])}"))


def maybe(kind: Any, name: str, value: Any) -> Any:
    """Return `None` for `None`, anything else as [`checked`] does."""
    return None if value is None else checked(kind, name, value)


def to_json(board: Board) -> str:
    """Return the board as one JSON object, without NaN or infinity."""
    content = {"format": FORMAT} | vars(board)
    return json.dumps(content, default=vars, allow_nan=False, separators=(",", ":")) + "\n"


def from_json(text: str | bytes) -> Board:
    """Read and check what [`to_json`] wrote; an entry that fails a check is rejected alone, and the others stay.

    Raises:
        ValueError: The text is not JSON, too large, or of another format.
    """
    if len(text) > _MAX_BYTES:
        raise ValueError(f"the board is larger than {_MAX_BYTES >> 20} MiB: build it anew")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"the board is not JSON ({str(error)[:80]}): build it anew with orthossl leaderboard"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"the board is not of format {FORMAT}: build it anew with this version's orthossl leaderboard")
    failed: list[Rejection] = []
    rejected = _each(Rejection, checked(Sequence, "rejected", content.get("rejected")), failed)
    entries = _each(Entry, checked(Sequence, "entries", content.get("entries")), failed)
    collected_at = checked(Date, "collected_at", content.get("collected_at"))
    return Board(entries, rejected + failed, collected_at, checked(_Endpoint, "endpoint", content.get("endpoint")))


def first_rejections(rejected: list[Rejection], field: str) -> list[Rejection]:
    """Return at most `MAX_REJECTIONS` of one repository; how many more there are is listed under `field`."""
    if len(rejected) <= MAX_REJECTIONS:
        return rejected
    rest, last = len(rejected) - MAX_REJECTIONS, rejected[-1]
    return [*rejected[:MAX_REJECTIONS], Rejection(last.repo_id, last.revision, field, f"and {rest:,} more, not listed")]


def evenly(length: int, points: int) -> list[int]:
    """Return at most `points` ranks out of 1 … `length`, evenly spaced, first and last among them."""
    if length <= points or points == 1:
        return list(range(1, min(length, points) + 1))
    return [1 + round(step * (length - 1) / (points - 1)) for step in range(points)]


def _each(kind: type[T], parts: list, failed: list[Rejection]) -> list[T]:
    passed = []
    for part in parts:
        try:
            passed.append(checked(kind, kind.__name__.lower(), part))
        except RejectedError as error:
            name = part.get("repo_id") if isinstance(part, dict) else None
            failed.append(Rejection(shown(name or "?", 100).strip("'"), None, error.field, error.reason))
    return passed
