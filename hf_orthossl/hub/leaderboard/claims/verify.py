"""Compare claims with this board's own measurements, and keep those where only the board's owner can write."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ....evaluation.results import learned_from
from ....files import replace_file
from ..schema import (
    MAX_RESULTS,
    Board,
    BoardResult,
    CheckedResult,
    Date,
    Entry,
    Name,
    RejectedError,
    Rejection,
    RepoId,
    Revision,
    Spectra,
    checked,
    first_rejections,
)
from .read import SAME

VERIFIED = "verified.json"
FORMAT = 2
MAX_VERIFICATIONS = 100_000
# Begins the `field` of every rejection that a verification makes.
FIELD = "verification"


@dataclass(frozen=True)
class Verification:
    """One evaluation of published weights by this board."""

    repo_id: RepoId
    revision: Revision
    # SHA-256 of `model.safetensors`: the results hold for other commits of these weights.
    weights: Revision | None
    date: Date
    # Of this package.
    version: Name
    # With `source` "board" and 95 % intervals.
    results: Annotated[list[CheckedResult], Field(max_length=1000)] = field(default_factory=list)
    # What is wrong with the published spectra; empty if they were recomputed and agree, `None` if not recomputed.
    spectra: Annotated[str, Field(max_length=300)] | None = None
    # [`spectra_digest`] of those spectra: they are as wrong in another commit.
    digest: Revision | None = None
    # What the record in `config.json` says of the encoder that its own files contradict; empty if nothing.
    record: Annotated[str, Field(max_length=300)] = ""

    @property
    def withheld(self) -> str:
        """Return why no claim is marked as verified even if measurements agree; empty if nothing is against it."""
        return self.record or self.spectra or ""


@dataclass(frozen=True)
class Comparison:
    """A claim beside this board's measurement; `agrees` is `None` where one of the two is missing.

    A claim agrees if it lies in the 95 % interval of the measurement. One about another number of images agrees if its
    own interval, by that number, overlaps; an interval that the author states does not count.
    """

    claimed: BoardResult | None
    measured: BoardResult | None
    agrees: bool | None

    @property
    def difference(self) -> float | None:
        """Return the claimed value minus the measured one."""
        return self.claimed.value - self.measured.value if self.claimed and self.measured else None


def compare(claims: list[BoardResult], measured: list[BoardResult]) -> list[Comparison]:
    """Pair every claim with the measurement of the same task, data, metric and protocol; then list unclaimed ones.

    Protocols that differ in the number of images alone are the same: the interval says what that may change.
    """
    exact = {result.key: result for result in measured}
    alike = {result.alike: result for result in measured}
    compared, used = [], set()
    for claim in claims:
        # Of several that differ in the number of images, the claim's own.
        match = exact.get(claim.key) or alike.get(claim.alike)
        if match:
            used.add(match.key)
        compared.append(Comparison(claim, match, _agree(claim, match) if match else None))
    return compared + [Comparison(None, result, None) for result in measured if result.key not in used]


def with_verifications(board: Board, verifications: list[Verification]) -> Board:
    """Return the board with the verifications of these very weights; those of an earlier board are removed first.

    A claim that a measurement confirms becomes "verified"; the measurement stands beside it as "board". A claim that
    is not confirmed stays "author" and is listed as rejected. Spectra that are not those of the weights are removed,
    and no claim beside them is marked, nor beside a record that describes another encoder: whoever publishes these has
    not published what was measured.
    """
    # Ids of commits and of weights differ in length.
    made_of = {(v.repo_id, v.revision): v for v in verifications}
    made_of |= {(v.repo_id, v.weights): v for v in verifications if v.weights}
    rejected = [one for one in board.rejected if not one.field.startswith(FIELD)]
    entries = []
    for entry in board.entries:
        made = made_of.get((entry.repo_id, entry.weights or "")) or made_of.get((entry.repo_id, entry.revision))
        claims = [dataclasses.replace(r, source="author") for r in entry.results if r.source != "board"]
        entry = dataclasses.replace(entry, results=claims)
        if made:
            entry, more = _verified(entry, made)
            rejected += more
        entries.append(entry)
    return dataclasses.replace(board, entries=entries, rejected=rejected)


def interval(value: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` images (Wilson, JASA 1927): never empty, also at 0 and 1."""
    z = 1.959963985
    middle = (value + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    return max(min(middle - half, value), 0.0), min(max(middle + half, value), 1.0)


def spectra_digest(spectra: Spectra) -> str:
    """Return the SHA-256 of spectra as the board shows them."""
    return hashlib.sha256(json.dumps(vars(spectra), sort_keys=True).encode()).hexdigest()


def merge(earlier: list[Verification], later: list[Verification]) -> list[Verification]:
    """Return the latest verification of each repository's weights."""
    latest = {(v.repo_id, v.weights or v.revision): v for v in sorted(earlier + later, key=lambda v: v.date)}
    return sorted(latest.values(), key=lambda v: (v.repo_id, v.date))


def write_verifications(folder: Path, verifications: list[Verification]) -> Path:
    """Write `verified.json` into a folder, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / VERIFIED, verifications_json(verifications).encode())
    return folder / VERIFIED


def verifications_json(verifications: list[Verification]) -> str:
    """Return the text of `verified.json`."""
    content = {"format": FORMAT, "verified": verifications}
    return json.dumps(content, default=vars, allow_nan=False, indent=1) + "\n"


def verifications_from(text: bytes) -> list[Verification]:
    """Read and check `verified.json`; raise a `ValueError` that names the entry which is not of this form."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{VERIFIED} is not JSON ({str(error)[:80]}): verify the models anew") from error
    parts = content.get("verified") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(parts, list) or len(parts) > MAX_VERIFICATIONS:
        raise ValueError(f"{VERIFIED} is not of format {FORMAT}: verify the models anew")
    made = []
    for number, part in enumerate(parts, 1):
        try:
            one = checked(Verification, "verification", part)
        except RejectedError as error:
            raise ValueError(f"{VERIFIED}, entry {number}: {error}") from error
        results = [dataclasses.replace(result, source="board") for result in one.results]
        made.append(dataclasses.replace(one, results=results))
    return made


def _verified(entry: Entry, made: Verification) -> tuple[Entry, list[Rejection]]:
    results: list[BoardResult] = []
    rejected: list[Rejection] = []

    def reject(what: str, reason: str) -> None:
        rejected.append(Rejection(entry.repo_id, entry.revision, f"{FIELD}, {what}"[:120], reason))

    published = entry.spectra and spectra_digest(entry.spectra)
    of_these = made.revision == entry.revision or made.digest == published
    if made.spectra and published and of_these:
        reject("spectra", made.spectra)
        entry = dataclasses.replace(entry, spectra=None)
    if made.record and made.revision == entry.revision:
        reject("record", made.record)
    withheld = of_these and made.withheld
    # A verification of another version may have measured training images too.
    held_out = [result for result in made.results if not learned_from(result.split, None)]
    for pair in compare(entry.results, held_out):
        if pair.claimed:
            is_verified = pair.agrees and not withheld
            results.append(dataclasses.replace(pair.claimed, source="verified") if is_verified else pair.claimed)
        if pair.measured:
            results.append(pair.measured)
        if pair.agrees is False and pair.claimed and (ours := pair.measured):
            bounds = "" if ours.low is None else f" ({ours.low:.4f} to {ours.high:.4f})"
            what = f"{ours.task} {ours.metric} on {ours.dataset}"
            reject(what, f"the author claims {pair.claimed.value:.4f}; this board measured {ours.value:.4f}{bounds}")
    # One measurement may answer claims about several numbers of images, and is listed once.
    unique = list({(result.key, result.source): result for result in results}.values())[:MAX_RESULTS]
    return dataclasses.replace(entry, results=unique), first_rejections(rejected, FIELD)


def _agree(claim: BoardResult, measured: BoardResult) -> bool:
    low, high = (measured.value if bound is None else bound for bound in (measured.low, measured.high))
    own_low, own_high = claim.value, claim.value
    images, again = _images(claim), _images(measured)
    if images and again and images != again:
        # At least the measurement's number: the interval of one image would confirm anything.
        own_low, own_high = interval(claim.value, max(images, again))
    return own_low <= high + SAME and own_high >= low - SAME


def _images(result: BoardResult) -> int | None:
    """Return the number of images that a result was scored on."""
    count = result.protocol.get("test_images", result.protocol.get("queries"))
    return count if type(count) is int and 0 < count < 10**9 else None
