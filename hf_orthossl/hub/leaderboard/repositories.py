"""One repository, read at one commit and within bounds."""

import re
from dataclasses import dataclass
from typing import Any, Self

from . import values
from .checking import ARRAYS, CARD, CONFIG, SCALARS, WEIGHTS, Published, wanted_files
from .fetching import Fetcher, NoFile, TooLarge
from .schema import Aside
from .values import Refused

# Bytes that are read of a file; far above what this package writes.
_LIMITS = {CONFIG: 2**20, CARD: 2**20, SCALARS: 2**20, ARRAYS: 8 * 2**20}
_EVAL_LIMIT, _MOST_EVAL_FILES = 2**18, 32
# Of spectra.safetensors the beginning is read; one of this size is none.
_LARGEST_ARRAYS = 64 * 2**20
_MOST_FILES = 5_000


@dataclass(frozen=True)
class Listed:
    """One line of the Hub's listing, checked."""

    repo_id: str
    revision: str
    author: str
    last_modified: str | None

    @classmethod
    def read(cls, line: Any) -> Self:
        """From what the Hub says of a repository; raises `Refused`."""
        line = values.mapping("listing", line)
        repo_id = values.repo_id("id", line.get("id"))
        date = line.get("lastModified")
        return cls(
            repo_id,
            values.revision("sha", line.get("sha")),
            repo_id.split("/")[0],
            None if date is None else values.date("lastModified", date),
        )


def find(fetcher: Fetcher, repo_id: str, revision: str = "main") -> Listed:
    """The commit that a branch or tag of a repository is at; raises `NotRead` if there is none."""
    return Listed.read(fetcher.info(repo_id, revision) | {"id": repo_id})


def read_published(fetcher: Fetcher, line: Listed) -> tuple[Published, list[Aside]]:
    """What the board needs of one commit, and what of it could not be read.

    Raises:
        NotRead: the repository or that commit is gone, or the Hub does not answer.
        Refused: the list of its files is odd.
    """
    info = fetcher.info(line.repo_id, line.revision)
    siblings = info.get("siblings")
    if not isinstance(siblings, list) or len(siblings) > _MOST_FILES:
        raise Refused("files", f"must be a list of at most {_MOST_FILES:,}")
    published = Published(line.repo_id, line.revision, line.author, line.last_modified)
    for sibling in siblings:
        path = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if not isinstance(path, str):
            raise Refused("files", f"must have names, got {values.shown(sibling)}")
        size = sibling.get("size")
        published.sizes[path] = size if type(size) is int else 0
        if path == WEIGHTS and isinstance(sibling.get("lfs"), dict):
            digest = sibling["lfs"].get("sha256")
            published.weights = digest if re.fullmatch(r"[0-9a-f]{64}", str(digest)) else None
    tensors = info.get("safetensors")
    total = tensors.get("total") if isinstance(tensors, dict) else None
    published.parameters = total if type(total) is int and 0 < total < 2**53 else None
    asides = []
    names = wanted_files(list(published.sizes))
    evaluated = [name for name in names if name not in _LIMITS]
    if len(evaluated) > _MOST_EVAL_FILES:
        reason = f"has {len(evaluated)} files, {_MOST_EVAL_FILES} are read"
        asides.append(Aside(line.repo_id, line.revision, ".eval_results", reason))
        names = [name for name in names if name not in evaluated[_MOST_EVAL_FILES:]]
    if CONFIG not in names or WEIGHTS not in published.sizes:
        # Nothing else can make it an entry.
        names = []
    for name in names:
        try:
            published.files[name] = _read(fetcher, line, name, published.sizes[name])
        except NoFile as error:
            asides.append(Aside(line.repo_id, line.revision, name, str(error)))
    return published, asides


def _read(fetcher: Fetcher, line: Listed, name: str, size: int) -> bytes:
    limit, start = _LIMITS.get(name, _EVAL_LIMIT), name == ARRAYS
    if size > (_LARGEST_ARRAYS if start else limit):
        raise TooLarge(size, limit)
    return fetcher.file(line.repo_id, line.revision, name, limit, start=start)
