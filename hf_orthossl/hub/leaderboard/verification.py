"""What a re-run found, beside what the author claims; kept with the board, where only its owner can write."""

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from ...files import replace_file
from . import values
from .board_json import measured_from
from .schema import MOST_RESULTS, Aside, Board, Entry, Measured, Spectra, first_asides
from .splits import learned_from
from .values import Refused

VERIFIED = "verified.json"
FORMAT = 1
MOST = 100_000
# Begins the `field` of every aside that a re-run makes.
FIELD = "re-run"
# Two spellings of one number in decimal text differ by less.
_SAME = 1e-9
_IMAGES = re.compile(r"\b(?:test_images|queries) = (\d{1,9})\b")


@dataclass(frozen=True)
class Verification:
    """One re-run of the evaluation on published weights.

    Args:
        repo_id, revision (`str`): What was measured.
        weights (`str`, *optional*): SHA-256 of its `model.safetensors`; it holds for other commits of these weights.
        date, version (`str`): When (ISO 8601), and with which version of this package.
        results (`list[Measured]`): What came out, with `source` "board" and 95 % intervals.
        spectra (`str`, *optional*): What is wrong with the published spectra, one sentence; empty if they were
            recomputed and agree, `None` if they were not recomputed.
        digest (`str`, *optional*): Of those spectra, [`spectra_digest`]; what is wrong with them is wrong with them in
            other commits too.
    """

    repo_id: str
    revision: str
    weights: str | None
    date: str
    version: str
    results: list[Measured] = field(default_factory=list)
    spectra: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Compared:
    """A claim beside its re-run.

    Args:
        claimed, measured ([`Measured`], *optional*): `None` where there is none.
        agrees (`bool`, *optional*): Whether the claim lies in the 95 % interval of the re-run. Where the claim is of
            another number of images, its own interval by that number need only reach into it; one that the author
            names counts for nothing. `None` where one of the two is missing.
    """

    claimed: Measured | None
    measured: Measured | None
    agrees: bool | None

    @property
    def difference(self) -> float | None:
        """Claimed less measured."""
        return None if self.agrees is None else self.claimed.value - self.measured.value


def compare(claims: list[Measured], measured: list[Measured]) -> list[Compared]:
    """Every claim with the re-run of the same task, data, metric and protocol; then re-runs that nobody claimed.

    Protocols that differ in the number of images alone are the same: the interval says what that may change.
    """
    exact = {result.key: result for result in measured}
    alike = {result.alike: result for result in measured}
    compared, used = [], set()
    for claim in claims:
        # Of several that differ in the number of images, the claim's own.
        found = exact.get(claim.key) or alike.get(claim.alike)
        used |= {found.key} if found else set()
        compared.append(Compared(claim, found, None if found is None else _agree(claim, found)))
    return compared + [Compared(None, result, None) for result in measured if result.key not in used]


def with_verifications(board: Board, verifications: list[Verification]) -> Board:
    """The board with what re-runs of these very weights found; those of an earlier board are taken off first.

    A claim that a re-run bears out becomes "verified"; the re-run's number stands beside it as "board". A claim that
    it does not bear out stays "author", and is listed aside. Spectra that do not belong to the weights are taken out.
    """
    by_weights = {(v.repo_id, v.weights): v for v in verifications if v.weights}
    by_commit = {(v.repo_id, v.revision): v for v in verifications}
    asides = [aside for aside in board.asides if not aside.field.startswith(FIELD)]
    entries = []
    for entry in board.entries:
        found = by_weights.get((entry.repo_id, entry.weights)) or by_commit.get((entry.repo_id, entry.revision))
        claims = [dataclasses.replace(r, source="author") for r in entry.results if r.source != "board"]
        entry = dataclasses.replace(entry, results=claims)
        if found:
            entry, more = _verified(entry, found)
            asides += more
        entries.append(entry)
    return dataclasses.replace(board, entries=entries, asides=asides)


def interval(value: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` images (Wilson, JASA 1927): never empty, also at 0 and 1."""
    z = 1.959963985
    middle = (value + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    return max(min(middle - half, value), 0.0), min(max(middle + half, value), 1.0)


def spectra_digest(spectra: Spectra) -> str:
    """SHA-256 of spectra as the board shows them."""
    return hashlib.sha256(json.dumps(vars(spectra), sort_keys=True).encode()).hexdigest()


def merge(earlier: list[Verification], later: list[Verification]) -> list[Verification]:
    """All re-runs, the latest of each repository's weights."""
    found = {(v.repo_id, v.weights or v.revision): v for v in sorted(earlier + later, key=lambda v: v.date)}
    return sorted(found.values(), key=lambda v: (v.repo_id, v.date))


def write_verifications(folder: Path, verifications: list[Verification]) -> Path:
    """Writes `verified.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / VERIFIED, verifications_json(verifications).encode())
    return folder / VERIFIED


def verifications_json(verifications: list[Verification]) -> str:
    content = {"format": FORMAT, "verified": verifications}
    return json.dumps(content, default=vars, allow_nan=False, indent=1) + "\n"


def verifications_from(text: bytes) -> list[Verification]:
    """Reads `verified.json`, checked.

    Raises:
        ValueError: it is not of this form; names the entry.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{VERIFIED} is not JSON ({str(error)[:80]}): verify the models anew") from error
    found = content.get("verified") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(found, list) or len(found) > MOST:
        raise ValueError(f"{VERIFIED} is not of format {FORMAT}: verify the models anew")
    return [_from(part, f"{VERIFIED}, entry {number + 1}") for number, part in enumerate(found)]


def _from(content: object, where: str) -> Verification:
    content = values.mapping(where, content)
    weights, spectra, results = content.get("weights"), content.get("spectra"), content.get("results")
    digest = content.get("digest")
    if not isinstance(results, list) or len(results) > 1000:
        raise Refused(where, "must have a list of results")
    return Verification(
        repo_id=values.repo_id(where, content.get("repo_id")),
        revision=values.revision(where, content.get("revision")),
        weights=None if weights is None else values.revision(where, weights),
        date=values.date(where, content.get("date")),
        version=values.name(where, content.get("version")),
        results=[dataclasses.replace(measured_from(part), source="board") for part in results],
        spectra=None if spectra is None else values.text(where, spectra, 300),
        digest=None if digest is None else values.revision(where, digest),
    )


def _verified(entry: Entry, found: Verification) -> tuple[Entry, list[Aside]]:
    results, asides = [], []

    def aside(what: str, reason: str) -> None:
        asides.append(Aside(entry.repo_id, entry.revision, f"{FIELD}, {what}"[:120], reason))

    # An earlier version measured on training images too.
    held_out = [result for result in found.results if not learned_from(result.split, None)]
    for pair in compare(entry.results, held_out):
        if pair.claimed:
            results.append(dataclasses.replace(pair.claimed, source="verified") if pair.agrees else pair.claimed)
        if pair.measured:
            results.append(pair.measured)
        if pair.agrees is False:
            ours = pair.measured
            told = f"{ours.value:.4f}" + ("" if ours.low is None else f" ({ours.low:.4f} to {ours.high:.4f})")
            what = f"{ours.task} {ours.metric} on {ours.dataset}"
            aside(what, f"the author claims {pair.claimed.value:.4f}; measured again it is {told}")
    theirs = entry.spectra and spectra_digest(entry.spectra)
    if found.spectra and theirs and (found.revision == entry.revision or found.digest == theirs):
        aside("spectra", found.spectra)
        entry = dataclasses.replace(entry, spectra=None)
    # A re-run answers claims of several numbers of images, and stands once.
    results = list(dict.fromkeys(results))[:MOST_RESULTS]
    return dataclasses.replace(entry, results=results), first_asides(asides, FIELD)


def _agree(claim: Measured, measured: Measured) -> bool:
    low, high = (measured.value, measured.value) if measured.low is None else (measured.low, measured.high)
    images, again = (_IMAGES.search(result.protocol) for result in (claim, measured))
    own_low, own_high = claim.value, claim.value
    if images and again and images[1] != again[1]:
        # No fewer than of the re-run: one image would bear out anything.
        own_low, own_high = interval(claim.value, max(int(images[1]), int(again[1]), 1))
    return own_low <= high + _SAME and own_high >= low - _SAME
