"""Finds published encoders by their tag; reads what has changed, at the very commit that was listed."""

import dataclasses
import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...files import replace_file
from . import values
from .board_json import from_json, to_json
from .checking import check
from .fetching import Fetcher, NotRead
from .repositories import Listed, read_published
from .schema import UNREAD, Aside, Board, Entry, first_asides
from .values import Refused

TAG = "orthossl"
_FIELDS = ("author", "sha", "lastModified", "private", "disabled", "gated")
# Connections at a time, and encoders after which a build that is interrupted keeps what it has.
WORKERS, KEEP_EVERY = 8, 200
_KEPT = "board.json"


def collect(
    cache: str | Path,
    previous: Board | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    fetcher: Fetcher | None = None,
) -> Board:
    """Reads all public encoders that carry the tag of this package.

    Repositories whose commit is that of `previous`, or of the last collection in `cache`, cost no request. The pages of
    the listing are kept by their ETag. Of each other repository the file list, `config.json`, the card,
    `.eval_results/*.yaml` and the spectra are read at the commit that was listed, each up to a limit.

    Args:
        cache (`str` or `Path`): Folder for what is kept between collections; created.
        previous ([`Board`], *optional*): An earlier board, such as the published one.
        endpoint (`str`, *optional*): The Hub; `HF_ENDPOINT` by default.
        token (`str`, *optional*): For more requests per minute; private repositories are left out all the same.
            Defaults to the one of `hf auth login` or `HF_TOKEN`.
        progress (callable, *optional*): Called with how many repositories of how many have been read.
        fetcher ([`Fetcher`], *optional*): In place of one made from the arguments; counts the requests.

    Raises:
        OSError: the listing cannot be read, or the cache cannot be written. One repository that cannot be read goes
            aside, and is tried again the next time.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    fetcher = fetcher or Fetcher(endpoint, token, cache / "pages")
    listed, asides = _listed(fetcher)
    known = _by_repo([previous, _kept_board(cache / _KEPT)])
    outcomes: dict[str, tuple[Entry | None, list[Aside]]] = {}
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
        return Board(entries, asides + [aside for _, about in read for aside in about], now, fetcher.endpoint)

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


def _listed(fetcher: Fetcher) -> tuple[list[Listed], list[Aside]]:
    found: dict[str, Listed] = {}
    asides = []
    for page in fetcher.pages(TAG, _FIELDS):
        for line in page:
            if isinstance(line, dict) and (line.get("private") or line.get("disabled")):
                continue
            try:
                read = Listed.read(line)
            except Refused as error:
                name = line.get("id") if isinstance(line, dict) else line
                asides.append(Aside(values.shown(name, 100).strip("'"), None, error.field, error.reason))
                continue
            # A repository that moved between two pages is listed twice.
            found.setdefault(read.repo_id.lower(), read)
    return list(found.values()), asides


def _reader(fetcher: Fetcher) -> Callable[[Listed], tuple[Entry | None, list[Aside]]]:
    def read(line: Listed) -> tuple[Entry | None, list[Aside]]:
        try:
            published, asides = read_published(fetcher, line)
            entry, more = check(published)
            return entry, first_asides(asides + more, "more")
        except NotRead as error:
            return None, [Aside(line.repo_id, line.revision, UNREAD, str(error))]
        except Refused as error:
            return None, [Aside(line.repo_id, line.revision, error.field, error.reason)]
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            # A defect of the checks: it costs this one repository its place, not everyone the board.
            reason = f"could not be checked ({type(error).__name__}): please report this repository"
            return None, [Aside(line.repo_id, line.revision, "repository", reason)]

    return read


def _by_repo(boards: Iterable[Board | None]) -> dict[tuple[str, str], tuple[Entry | None, list[Aside]]]:
    """What is known of (repository, commit); of what could not be read nothing is."""
    known: dict[tuple[str, str], tuple[Entry | None, list[Aside]]] = {}
    for board in boards:
        about = defaultdict(list)
        for aside in board.asides if board else ():
            about[aside.repo_id, aside.revision].append(aside)
        entries = {(entry.repo_id, entry.revision): entry for entry in (board.entries if board else ())}
        for key in {**entries, **about}:
            if key[1] and not any(aside.field == UNREAD for aside in about[key]):
                known[key] = entries.get(key), about[key]
    return known


def _kept_board(path: Path) -> Board | None:
    try:
        return from_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        # None yet, or one of an earlier format: all is read anew.
        return None
