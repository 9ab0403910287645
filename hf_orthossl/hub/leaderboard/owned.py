"""Whether a repository on the Hub is the leaderboard's to write to: what somebody else put there is not replaced."""

import re

from ..client import BARE, HubRepo

# What the Hub itself writes into the card of a new Space.
_EMPTY_CARD = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
_FRONT = re.compile(r"\A---\s*\n.*?\n---\s*(\n|\Z)", re.DOTALL)


def owned_tip(repo: HubRepo, path: str, mark: str, also: frozenset[str] = frozenset()) -> str | None:
    """The newest commit of a repository that we may write to; `None` if there is no such repository.

    Args:
        repo ([`HubRepo`]): Data set or Space.
        path (`str`), mark (`str`): A file that we write, and words in it.
        also (`frozenset[str]`): Files that may be there without it.

    Raises:
        ValueError: it holds something else.
        OSError: the Hub does not answer, or refuses.
    """
    info = repo.info()
    if info is None:
        return None
    files = {sibling.rfilename for sibling in info.siblings or ()}
    ours = path in files and mark in repo.text(path, info.sha)
    if not ours and not (files <= BARE | also and _is_blank(repo, files, info.sha)):
        raise ValueError(
            f"{repo.url} holds something that orthossl leaderboard did not write (no {mark!r} in {path}): choose "
            "another name"
        )
    return info.sha


def _is_blank(repo: HubRepo, files: set[str], sha: str) -> bool:
    text = _FRONT.sub("", repo.text("README.md", sha)).strip() if "README.md" in files else ""
    return text in ("", _EMPTY_CARD)
