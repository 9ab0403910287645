"""Find published encoders by their tag, and read those that have changed, at the very commit that was listed."""

import dataclasses
import datetime
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ....files import replace_file
from ....messages import without_secrets
from ..claims.check import ARRAYS, CARD, CONFIG, RESULTS, SCALARS, WEIGHTS, Published, check, wanted_files
from ..fetch import Fetcher, NoFile, NotRead, TooLarge
from ..schema import (
    UNREAD,
    Board,
    Date,
    Entry,
    Object,
    RejectedError,
    Rejection,
    RepoId,
    Revision,
    checked,
    first_rejections,
    from_json,
    maybe,
    shown,
    to_json,
)

TAG = "orthossl"
_FIELDS = ("author", "sha", "lastModified", "private", "disabled", "gated")
# Connections at a time, and encoders after which an interrupted build can continue.
WORKERS, KEEP_EVERY = 8, 200
_KEPT = "board.json"
# Bytes that are read of a file, far above what this package writes.
_LIMITS = {CONFIG: 2**20, CARD: 2**20, RESULTS: 2**22, SCALARS: 2**20, ARRAYS: 8 * 2**20}
_EVAL_LIMIT, _MAX_EVAL_FILES = 2**18, 32
# Only the beginning of spectra.safetensors is read; no real one is larger than this.
_LARGEST_ARRAYS = 64 * 2**20
_MAX_FILES = 5_000
_Outcome = tuple[Entry | None, list[Rejection]]


@dataclass(frozen=True)
class Listed:
    """One line of the Hub's listing, checked."""

    repo_id: str
    revision: str
    author: str
    last_modified: str | None

    @classmethod
    def read(cls, line: Any) -> Self:
        """Check what the Hub says of a repository; raise `RejectedError`."""
        line = checked(Object, "listing", line)
        repo_id = checked(RepoId, "id", line.get("id"))
        revision = checked(Revision, "sha", line.get("sha"))
        return cls(repo_id, revision, repo_id.split("/")[0], maybe(Date, "lastModified", line.get("lastModified")))


def collect(
    cache: str | Path,
    previous: Board | None = None,
    progress: Callable[[int, int], None] | None = None,
    fetcher: Fetcher | None = None,
) -> Board:
    """Read all public encoders that carry the tag of this package.

    A repository whose commit is that of `previous`, or of the last collection in `cache`, costs no request. Pages of
    the listing are kept by their ETag. Of every other repository the file list, `config.json`, `results.json`, the
    card, `.eval_results/*.yaml` and the spectra are read at the commit that was listed, each up to a limit.

    Args:
        cache (`str` or `Path`): Folder for what is kept between collections; created.
        previous ([`Board`], *optional*): An earlier board, such as the published one.
        progress (callable, *optional*): Called with the number of repositories read and the number to read.
        fetcher ([`Fetcher`], *optional*): Reads the Hub and counts the requests. A token allows more of them per
            minute; private repositories are left out all the same.

    Raises:
        OSError: The listing cannot be read, or the cache cannot be written. A single repository that cannot be read is
            listed as rejected and read again the next time.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    fetcher = fetcher or Fetcher(cache=cache / "pages")
    listed, rejected = _listed(fetcher)
    known = _by_commit([previous, _kept_board(cache / _KEPT)])
    outcomes: dict[str, _Outcome] = {}
    changed = []
    for line in listed:
        if (line.repo_id, line.revision) in known:
            entry, about = known[line.repo_id, line.revision]
            outcomes[line.repo_id] = entry and dataclasses.replace(entry, last_modified=line.last_modified), about
        else:
            changed.append(line)

    def board() -> Board:
        read = [outcomes[line.repo_id] for line in listed if line.repo_id in outcomes]
        entries = sorted((entry for entry, _ in read if entry), key=lambda entry: entry.repo_id.lower())
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return Board(
            entries, rejected + [one for _, about in read for one in about], now, without_secrets(fetcher.endpoint)
        )

    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for done, (line, outcome) in enumerate(zip(changed, pool.map(_reader(fetcher), changed), strict=True), 1):
                outcomes[line.repo_id] = outcome
                if done % KEEP_EVERY == 0:
                    replace_file(cache / _KEPT, to_json(board()).encode())
                if progress:
                    progress(done, len(changed))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    collected = board()
    replace_file(cache / _KEPT, to_json(collected).encode())
    return collected


def find(fetcher: Fetcher, repo_id: str, revision: str = "main") -> Listed:
    """Return the commit that a branch or tag of a repository points to; raise `NotRead` if there is none."""
    return Listed.read(fetcher.info(repo_id, revision) | {"id": repo_id})


def read_published(fetcher: Fetcher, line: Listed) -> tuple[Published, list[Rejection]]:
    """Read the parts of one commit that the board needs, and list those that cannot be read."""
    info = fetcher.info(line.repo_id, line.revision)
    siblings = info.get("siblings")
    if not isinstance(siblings, list) or len(siblings) > _MAX_FILES:
        raise RejectedError("files", f"must be a list of at most {_MAX_FILES:,}")
    published = Published(line.repo_id, line.revision, line.author, line.last_modified)
    for sibling in siblings:
        path = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if not isinstance(path, str):
            raise RejectedError("files", f"must have names, got {shown(sibling)}")
        size = sibling.get("size")
        published.sizes[path] = size if type(size) is int else 0
        if path == WEIGHTS and isinstance(sibling.get("lfs"), dict):
            digest = str(sibling["lfs"].get("sha256"))
            published.weights = digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None
    tensors = info.get("safetensors")
    total = tensors.get("total") if isinstance(tensors, dict) else None
    published.parameters = total if type(total) is int and 0 < total < 2**53 else None
    rejected = []
    names = wanted_files(list(published.sizes))
    evaluated = [name for name in names if name not in _LIMITS]
    if len(evaluated) > _MAX_EVAL_FILES:
        reason = f"has {len(evaluated)} files, {_MAX_EVAL_FILES} are read"
        rejected.append(Rejection(line.repo_id, line.revision, ".eval_results", reason))
        names = [name for name in names if name not in evaluated[_MAX_EVAL_FILES:]]
    if CONFIG not in names or WEIGHTS not in published.sizes:
        # Nothing else can make it an entry.
        names = []
    for name in names:
        try:
            published.files[name] = _read_file(fetcher, line, name, published.sizes[name])
        except NoFile as error:
            rejected.append(Rejection(line.repo_id, line.revision, name, str(error)))
    return published, rejected


def _read_file(fetcher: Fetcher, line: Listed, name: str, size: int) -> bytes:
    limit, start = _LIMITS.get(name, _EVAL_LIMIT), name == ARRAYS
    if size > (_LARGEST_ARRAYS if start else limit):
        raise TooLarge(size, limit)
    return fetcher.file(line.repo_id, line.revision, name, limit, start=start)


def _listed(fetcher: Fetcher) -> tuple[list[Listed], list[Rejection]]:
    lines: dict[str, Listed] = {}
    rejected = []
    for page in fetcher.pages(TAG, _FIELDS):
        for line in page:
            if isinstance(line, dict) and (line.get("private") or line.get("disabled")):
                continue
            try:
                read = Listed.read(line)
            except RejectedError as error:
                name = line.get("id") if isinstance(line, dict) else line
                rejected.append(Rejection(shown(name, 100).strip("'"), None, error.field, error.reason))
                continue
            # A repository that moved between two pages is listed twice.
            lines.setdefault(read.repo_id.lower(), read)
    return list(lines.values()), rejected


def _reader(fetcher: Fetcher) -> Callable[[Listed], _Outcome]:
    def read(line: Listed) -> _Outcome:
        try:
            published, rejected = read_published(fetcher, line)
            entry, more = check(published)
            return entry, first_rejections(rejected + more, "more")
        except NotRead as error:
            field, reason = UNREAD, str(error)
        except RejectedError as error:
            field, reason = error.field, error.reason
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            # A defect of the checks costs this one repository its place, not everyone the board.
            field = "repository"
            reason = f"could not be checked ({type(error).__name__}): please report this repository"
        return None, [Rejection(line.repo_id, line.revision, field, reason)]

    return read


def _by_commit(boards: Iterable[Board | None]) -> dict[tuple[str, str], _Outcome]:
    """Return the outcome of each (repository, commit) that was read."""
    known: dict[tuple[str, str], _Outcome] = {}
    for board in filter(None, boards):
        about: dict[tuple[str, str | None], list[Rejection]] = defaultdict(list)
        for one in board.rejected:
            about[one.repo_id, one.revision].append(one)
        entries = {(entry.repo_id, entry.revision): entry for entry in board.entries}
        for repo_id, revision in [*entries, *about]:
            own = about.get((repo_id, revision), [])
            if revision and not any(one.field == UNREAD for one in own):
                known[repo_id, revision] = entries.get((repo_id, revision)), own
    return known


def _kept_board(path: Path) -> Board | None:
    try:
        return from_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        # None yet, or one of an earlier format: everything is read anew.
        return None
