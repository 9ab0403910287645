"""Build, keep and publish a board: what `orthossl leaderboard build` does once, and a Space every hour."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ....files import require_writable
from ...client import BARE, HubRepo, check_repo_id, require_token
from ..claims.verify import (
    VERIFIED,
    Verification,
    merge,
    verifications_from,
    verifications_json,
    with_verifications,
    write_verifications,
)
from ..fetch import Fetcher, Gone, NoFile
from ..schema import Board
from .collect import collect
from .snapshot import BOARD, CARD, MARK, TABLE, published_part, read_part, read_snapshot, write_snapshot

# Two builds in one folder would overwrite each other's files.
_ONE_AT_A_TIME = threading.Lock()
# What the Hub itself writes into the card of a new Space.
_EMPTY_CARD = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
_FRONT = re.compile(r"\A---\s*\n.*?\n---\s*(\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Built:
    """Outcome of [`build`]."""

    # What was collected, with the verifications, and the folder of the snapshot.
    board: Board
    folder: Path
    # What reading the Hub took.
    seconds: float
    requests: int
    # The data set, if the board was published.
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
    """Collect the board into a folder; may be called from any thread.

    Encoders that have not changed since the folder's last board, or the data set's, are not read again. Verifications
    in either one's `verified.json` are applied.

    Args:
        folder (`str` or `Path`): Snapshot and cache; created.
        dataset (`str`, *optional*): Data set "owner/name" of the published board.
        publish (`bool`, defaults to `False`): Publish the board there, in one commit; the data set is created if
            necessary.
        endpoint (`str`, *optional*): As in [`Fetcher`].
        token (`str`, *optional*): As in [`Fetcher`].
        progress (callable, *optional*): As in [`collect`].

    Raises:
        ValueError: A name is malformed, or files in the folder or the data set are not those of a board.
        OSError: The Hub does not answer, or refuses; the folder's board stays as it was.
    """
    folder = check_folder(folder)
    if dataset is not None:
        check_repo_id(dataset)
    repo = HubRepo(dataset, require_token(token), kind="dataset") if publish and dataset else None
    with _ONE_AT_A_TIME:
        tip = _board_tip(repo) if repo else None
        earlier = _earlier_board(folder, dataset, token)
        verifications = merge(_verifications(folder, token), _verifications(dataset, token) if dataset else [])
        started, fetcher = time.perf_counter(), Fetcher(endpoint, token, folder / "cache" / "pages")
        board = collect(folder / "cache", earlier, progress=progress, fetcher=fetcher)
        seconds = time.perf_counter() - started
        board = with_verifications(board, verifications)
        write_snapshot(board, folder, location=dataset)
        contents: dict[str, bytes | Path] = {name: folder / name for name in (BOARD, TABLE, CARD)}
        # Unless published, the data set's verifications stay there: one withdrawn there is gone from the next build.
        if verifications and repo:
            contents[VERIFIED] = write_verifications(folder, verifications)
        url = _publish(repo, contents, tip, f"{len(board.entries)} encoders") if repo else None
        return Built(board, folder, seconds, fetcher.requests, url)


def check_folder(folder: str | Path, argument: str = "output_dir") -> Path:
    """Return a folder, which need not exist, after checking that files can be written there."""
    require_writable(folder, argument=argument)
    return Path(folder)


def add_verification(folder: str | Path, verification: Verification) -> Path:
    """Add a verification to the `verified.json` of a folder; the next build there shows it."""
    with _ONE_AT_A_TIME:
        return write_verifications(Path(folder), merge(_verifications(Path(folder), None), [verification]))


def publish_verification(dataset: str, verification: Verification, *, token: str | None = None) -> str:
    """Add a verification to a board's data set, and return its address; boards built from it show the verification."""
    check_repo_id(dataset)
    repo = HubRepo(dataset, require_token(token), kind="dataset")
    tip = _board_tip(repo)
    content = verifications_json(merge(_verifications(dataset, token), [verification]))
    return _publish(repo, {VERIFIED: content.encode()}, tip, f"{verification.repo_id} measured again")


def owned_tip(repo: HubRepo, path: str, mark: str, also: frozenset[str] = frozenset()) -> str | None:
    """Return the newest commit of a repository that a board may write to; `None` if there is no such repository.

    Raise a `ValueError` if it holds something that this package did not write, which is known by the words `mark` in
    the file `path`; the files in `also` may be there without it.
    """
    info = repo.info()
    if info is None:
        return None
    files = {sibling.rfilename for sibling in info.siblings or ()}
    is_ours = path in files and mark in repo.text(path, info.sha)
    if not is_ours and not (files <= BARE | also and _is_blank(repo, files, info.sha)):
        raise ValueError(
            f"{repo.url} holds something that orthossl leaderboard did not write (no {mark!r} in {path}): choose "
            "another name"
        )
    return info.sha


def _board_tip(repo: HubRepo) -> str | None:
    # The first verification may have been published before any board.
    return owned_tip(repo, CARD, MARK, frozenset({VERIFIED}))


def _is_blank(repo: HubRepo, files: set[str], sha: str) -> bool:
    text = _FRONT.sub("", repo.text("README.md", sha)).strip() if "README.md" in files else ""
    return text in ("", _EMPTY_CARD)


def _publish(repo: HubRepo, contents: dict[str, bytes | Path], tip: str | None, message: str) -> str:
    if tip is None:
        repo.create(private=None)
    # On top of the commit that was read: one made meanwhile is not undone.
    repo.commit(contents, set(), tip, message)
    return repo.url


def _earlier_board(folder: Path, dataset: str | None, token: str | None) -> Board | None:
    for location in (folder, dataset) if dataset else (folder,):
        try:
            return read_snapshot(location, token=token)
        except (FileNotFoundError, Gone, NoFile, ValueError):
            # None, one of another version, or a broken one: everything is read anew.
            continue
    return None


def _verifications(location: str | Path, token: str | None) -> list[Verification]:
    try:
        if isinstance(location, Path):
            return verifications_from(read_part(location, VERIFIED, token=token))
        return verifications_from(published_part(location, VERIFIED, token=token))
    except (FileNotFoundError, Gone, NoFile):
        return []
    except ValueError as error:
        where = str(location / VERIFIED) if isinstance(location, Path) else f"{VERIFIED} of the data set {location}"
        raise ValueError(
            f"{where} is not a list of verifications ({error}): delete it, and verify those models anew"
        ) from error
