"""Requests to the Hub that read a little and no more: listing pages kept by ETag, files with a limit on their bytes."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, http_stream_backoff

from ...files import replace_file
from ..client import hub_error, status_of

MAX_PAGE = 64 * 2**20
TIMEOUT = 30.0
# Cut connections are tried again; the client itself waits and tries again on 429 (as long as it says) and 5xx.
TRIES, CLIENT_TRIES = 3, 4


class NotRead(OSError):
    """What the Hub did not give, in one plain sentence: it stumbled, or a repository is gone, and may be back."""


class Gone(NotRead):
    """There is no such repository, or not for this token."""


class NoFile(NotRead):
    """One file of a commit that cannot be read, now or later; the rest of the repository can."""


class TooLarge(NoFile):
    """More bytes than anything of this kind has."""

    def __init__(self, size: int | None, limit: int):
        size_of = "holds more" if size is None else f"has {size:,} bytes, more"
        super().__init__(f"{size_of} than the {limit:,} that are read")


@dataclass(frozen=True)
class Answer:
    """What the Hub gave, with its headers by lower-case name."""

    status: int
    content: bytes
    headers: dict[str, str]


class Fetcher:
    """Reads from the Hub; safe to use from several threads.

    Args:
        endpoint (`str`, *optional*): The Hub; `HF_ENDPOINT` by default.
        token (`str`, *optional*): Access token; defaults to the one of `hf auth login` or `HF_TOKEN`.
        cache (`Path`, *optional*): Folder for listing pages; without one they are asked for in full.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, cache: Path | None = None):
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.headers = build_hf_headers(token=token, library_name="hf_orthossl") | {"Accept-Encoding": "identity"}
        self.cache = cache
        # Requests made, without those that the client itself repeats.
        self.requests = 0
        self._lock = threading.Lock()

    def pages(self, tag: str, fields: tuple[str, ...]) -> Iterator[list]:
        """The models that carry a tag, page by page, as raw JSON values: strangers wrote them.

        The client's own `list_models` builds objects from every line and stops at the first that is malformed.

        Raises:
            NotRead: a page could not be read.
        """
        wanted = "&".join(f"expand={quote(name, safe='')}" for name in fields)
        url: str | None = f"{self.endpoint}/api/models?filter={quote(tag, safe='')}&{wanted}"
        while url:
            page, following = self._page(url)
            yield page
            if following and not following.startswith(f"{self.endpoint}/"):
                # It would be given the token.
                raise NotRead(f"the Hub's listing goes on at another server, {following[:80]}")
            url = following

    def info(self, repo_id: str, revision: str) -> dict[str, Any]:
        """What the Hub says of one commit of a model: files with their sizes, and more."""
        url = f"{self.endpoint}/api/models/{quote(repo_id)}/revision/{quote(revision, safe='')}?blobs=true"
        content = _json(self.get(url, 16 * 2**20).content, f"what the Hub says of {repo_id}")
        if not isinstance(content, dict):
            raise NotRead(f"what the Hub says of {repo_id} is no object")
        return content

    def file(
        self, repo_id: str, revision: str, path: str, limit: int, *, kind: str = "model", start: bool = False
    ) -> bytes:
        """A file of at most `limit` bytes or, with `start`, the first `limit` bytes of one.

        Raises:
            TooLarge: it has more, by its announced size or as counted.
            NotRead: it is not there, or the Hub does not answer.
        """
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.endpoint}/{prefix}{quote(repo_id)}/resolve/{quote(revision, safe='')}/{quote(path)}"
        return self.get(url, limit, start=start).content

    def get(self, url: str, limit: int, *, start: bool = False, etag: str | None = None) -> Answer:
        """One answer of at most `limit` bytes; 304 where `etag` is still current."""
        headers = dict(self.headers)
        headers |= {"Range": f"bytes=0-{limit - 1}"} if start else {}
        headers |= {"If-None-Match": etag} if etag else {}
        for left in reversed(range(TRIES)):
            with self._lock:
                self.requests += 1
            try:
                return self._get(url, headers, limit, start)
            except Exception as raised:
                error = hub_error(raised)
                if error is None or isinstance(raised, NotRead):
                    raise
                if left == 0 or status_of(error) is not None or isinstance(error, OfflineModeIsEnabled):
                    raise self._in_words(error) from raised
        raise AssertionError("unreachable")

    def _get(self, url: str, headers: dict[str, str], limit: int, start: bool) -> Answer:
        broken: Exception | None = None
        content = bytearray()
        stream = http_stream_backoff("GET", url, headers=headers, timeout=TIMEOUT, max_retries=CLIENT_TRIES)
        with stream as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            if response.status_code not in (200, 206, 304):
                raise _refusal(response.status_code, found)
            size = found.get("content-length", "")
            if not start and size.isdecimal() and int(size) > limit:
                raise TooLarge(int(size), limit)
            try:
                # Counted too: the announced size may be wrong, or missing.
                for chunk in response.iter_bytes(2**16):
                    content += chunk
                    if len(content) > limit:
                        if not start:
                            raise TooLarge(None, limit)
                        break
            except NotRead:
                raise
            except Exception as error:
                # The stream's own tries end where its body begins: an error must not pass through it.
                broken = error
        if broken:
            raise broken
        return Answer(response.status_code, bytes(content[:limit]), found)

    def _page(self, url: str) -> tuple[list, str | None]:
        # A token may show more than another does.
        about = f"{url} {self.headers.get('authorization', '')}"
        kept = self.cache and self.cache / f"{hashlib.sha256(about.encode()).hexdigest()}.json"
        known = _kept(kept)
        answer = self.get(url, MAX_PAGE, etag=known.get("etag"))
        if answer.status == 304 and "page" in known:
            return known["page"], known["next"]
        page = _json(answer.content, "a page of the Hub's listing")
        if not isinstance(page, list):
            raise NotRead("a page of the Hub's listing is no list")
        following = _next(answer.headers.get("link", ""))
        if kept and answer.headers.get("etag"):
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_file(kept, json.dumps({"etag": answer.headers["etag"], "next": following, "page": page}).encode())
        return page, following

    def _in_words(self, error: Exception) -> NotRead:
        if isinstance(error, OfflineModeIsEnabled):
            return NotRead("HF_HUB_OFFLINE is set, so nothing can be read from the Hub: unset it")
        status = status_of(error)
        if status == 429:
            return NotRead("the Hub asks for fewer requests (429): try again in a few minutes")
        if status is not None:
            return NotRead(f"the Hub answered {status} again and again: try again later")
        return NotRead(f"the connection to {self.endpoint} broke off ({type(error).__name__}): try again")


def _refusal(status: int, headers: dict[str, str]) -> NotRead:
    code = headers.get("x-error-code", "")
    if code == "EntryNotFound":
        return NoFile("the file is gone")
    if code == "RevisionNotFound":
        return NotRead("the commit that was listed is gone: the repository was rewritten meanwhile")
    if code == "GatedRepo":
        return NotRead("its files are only for those who ask its author for access")
    if code == "RepoNotFound" or status in (401, 404, 410):
        return Gone("there is no such repository, or it is not public")
    return NotRead(f"the Hub answered {status}")


def _kept(path: Path | None) -> dict[str, Any]:
    if path is None or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return {}
    whole = isinstance(content, dict) and {"etag", "next", "page"} <= content.keys()
    return content if whole and isinstance(content["page"], list) else {}


def _json(content: bytes, what: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NotRead(f"{what} is not JSON") from error


def _next(link: str) -> str | None:
    for part in link.split(","):
        address, _, about = part.partition(";")
        if 'rel="next"' in about.replace(" ", ""):
            return address.strip().removeprefix("<").removesuffix(">")
    return None
