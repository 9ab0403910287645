"""A board built, kept and published: what `orthossl leaderboard build` does, and a Space every hour."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..client import HubRepo, check_repo_id, require_token
from .collect import collect
from .fetching import Fetcher, Gone, NoFile
from .owned import owned_tip
from .schema import Board
from .snapshot import BOARD, CARD, MARK, TABLE, published_part, read_part, read_snapshot, write_snapshot
from .verification import (
    VERIFIED,
    Verification,
    merge,
    verifications_from,
    verifications_json,
    with_verifications,
    write_verifications,
)

# Two builds in one folder would write over each other's files.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Built:
    """What [`build`] did.

    Args:
        board ([`Board`]): What was collected, with the re-runs.
        folder (`Path`): The snapshot.
        seconds (`float`), requests (`int`): Of reading the Hub.
        url (`str`, *optional*): The data set, if it was published.
    """

    board: Board
    folder: Path
    seconds: float
    requests: int
    url: str | None = None


def build(
    folder: str | Path,
    dataset: str | None = None,
    *,
    publish: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Collects the board into a folder; may be called from any thread.

    What has not changed since the folder's last board, or the data set's, is not read again. Re-runs in either one's
    `verified.json` are applied.

    Args:
        folder (`str` or `Path`): Snapshot and cache; created.
        dataset (`str`, *optional*): Data set "owner/name" of the published board.
        publish (`bool`, defaults to `False`): Publish the board there, in one commit; it is made if there is none.
        endpoint (`str`, *optional*): The Hub; `HF_ENDPOINT` by default.
        token (`str`, *optional*): Access token; defaults to the one of `hf auth login` or `HF_TOKEN`.
        progress (callable, *optional*): As in [`collect`].

    Raises:
        ValueError: a malformed name, or files in the folder or the data set that are no board's.
        OSError: the Hub does not answer, or refuses; the folder's board is as it was.
    """
    folder = check_folder(folder)
    if dataset is not None:
        check_repo_id(dataset)
    token = require_token(token) if publish else token
    with _ONE_AT_A_TIME:
        repo = HubRepo(dataset, token, kind="dataset") if publish else None
        tip = _owned_tip(repo) if publish else None
        earlier = _earlier_board(folder, dataset, token)
        verifications = merge(_verifications(folder, token), _verifications(dataset, token) if dataset else [])
        started, fetcher = time.perf_counter(), Fetcher(endpoint, token, folder / "cache" / "pages")
        board = collect(folder / "cache", earlier, progress=progress, fetcher=fetcher)
        seconds = time.perf_counter() - started
        board = with_verifications(board, verifications)
        write_snapshot(board, folder, location=dataset)
        contents: dict[str, bytes | Path] = {name: folder / name for name in (BOARD, TABLE, CARD)}
        # Unpublished, the data set's stay there alone: what is withdrawn there is gone from the next build.
        if verifications and publish:
            contents[VERIFIED] = write_verifications(folder, verifications)
        url = _publish(repo, contents, tip, f"{len(board.entries)} encoders") if publish else None
        return Built(board, folder, seconds, fetcher.requests, url)


def check_folder(folder: str | Path, argument: str = "output_dir") -> Path:
    """The folder, which need not exist; raises a ValueError if it cannot, as a file is in its way."""
    folder = Path(folder)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{argument} {folder}: {path} is a file: pass another folder")
    return folder


def add_verification(folder: str | Path, verification: Verification) -> Path:
    """Adds a re-run to the `verified.json` of a folder; the next build there shows it.

    Raises:
        ValueError: there is one that cannot be read.
    """
    with _ONE_AT_A_TIME:
        return write_verifications(Path(folder), merge(_verifications(Path(folder), None), [verification]))


def publish_verification(dataset: str, verification: Verification, *, token: str | None = None) -> str:
    """Adds a re-run to a board's data set; boards built from it show it. Returns the data set's address.

    Raises:
        ValueError: a malformed name, or a `verified.json` there that cannot be read.
        OSError: no token, or the Hub does not answer, or refuses.
    """
    check_repo_id(dataset)
    repo = HubRepo(dataset, require_token(token), kind="dataset")
    tip = _owned_tip(repo)
    content = verifications_json(merge(_verifications(dataset, token), [verification]))
    return _publish(repo, {VERIFIED: content.encode()}, tip, f"{verification.repo_id} measured again")


def _owned_tip(repo: HubRepo) -> str | None:
    # The first re-run may have been published before any board.
    return owned_tip(repo, CARD, MARK, frozenset({VERIFIED}))


def _publish(repo: HubRepo, contents: dict[str, bytes | Path], tip: str | None, message: str) -> str:
    if tip is None:
        repo.create(private=None)
    # On top of what was read: a commit made meanwhile is not undone.
    repo.commit(contents, set(), tip, message)
    return repo.url


def _earlier_board(folder: Path, dataset: str | None, token: str | None) -> Board | None:
    for location in filter(None, (folder, dataset)):
        try:
            return read_snapshot(location, token=token)
        except (FileNotFoundError, Gone, NoFile):
            continue
        except ValueError:
            # Of an earlier version, or broken: all is read anew.
            continue
    return None


def _verifications(location: str | Path, token: str | None) -> list[Verification]:
    folder = isinstance(location, Path)
    try:
        return verifications_from((read_part if folder else published_part)(location, VERIFIED, token=token))
    except (FileNotFoundError, Gone, NoFile):
        return []
    except ValueError as error:
        where = f"{location / VERIFIED}" if folder else f"{VERIFIED} of the data set {location}"
        raise ValueError(f"{where} is no list of re-runs ({error}): delete it, and verify those models anew") from error
