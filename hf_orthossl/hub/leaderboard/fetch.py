"""Bounded reading from the Hub: listing pages kept by their ETag, files up to a number of bytes."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, http_stream_backoff

from ...files import replace_file
from ...messages import without_secrets
from ..client import hub_error, status_of

T = TypeVar("T")
MAX_PAGE = 64 * 2**20
TIMEOUT = 30.0
# Broken connections are retried here; the client itself waits and retries on 429, as long as told, and on 5xx.
TRIES, CLIENT_TRIES = 3, 4


class NotRead(OSError):
    """Raised if something could not be read from the Hub, which may pass; the message is one sentence."""


class Gone(NotRead):
    """Raised if there is no such repository, or this token cannot read it."""


class NoFile(NotRead):
    """Raised if a file of a commit cannot be read, now or later; the rest of the repository can."""


class TooLarge(NoFile):
    """Raised if a file has more bytes than any real one: `size` were announced, if any, and `limit` are read."""

    def __init__(self, size: int | None, limit: int):
        size_of = "holds more" if size is None else f"has {size:,} bytes, more"
        super().__init__(f"{size_of} than the {limit:,} that are read")


@dataclass(frozen=True)
class Answer:
    """An answer of the Hub, with its headers by lower-case name."""

    status: int
    content: bytes
    headers: dict[str, str]


class Fetcher:
    """Read from the Hub; safe to use from several threads.

    Args:
        endpoint (`str`, *optional*): The Hub; `HF_ENDPOINT` by default.
        token (`str`, *optional*): Access token; defaults to the one of `hf auth login` or `HF_TOKEN`.
        cache (`Path`, *optional*): Folder for listing pages; without one they are always read in full.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, cache: Path | None = None):
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.headers = build_hf_headers(token=token, library_name="hf_orthossl") | {"Accept-Encoding": "identity"}
        self.cache = cache
        # Without the client's own repetitions.
        self.requests = 0
        self._lock = threading.Lock()

    def pages(self, tag: str, fields: tuple[str, ...]) -> Iterator[list]:
        """Yield the models that carry a tag, page by page, as untrusted JSON values.

        The client's own `list_models` builds an object from every line and stops at the first malformed one.
        """
        wanted = "&".join(f"expand={quote(name, safe='')}" for name in fields)
        url: str | None = f"{self.endpoint}/api/models?filter={quote(tag, safe='')}&{wanted}"
        while url:
            page, following = self._page(url)
            yield page
            if following and not following.startswith(f"{self.endpoint}/"):
                # That server would receive the token.
                raise NotRead(f"the Hub's listing continues on another server, {following[:80]}")
            url = following

    def info(self, repo_id: str, revision: str) -> dict[str, Any]:
        """Return what the Hub says about one commit of a model: files with their sizes, and more."""
        url = f"{self.endpoint}/api/models/{quote(repo_id)}/revision/{quote(revision, safe='')}?blobs=true"
        return _json(self.get(url, 16 * 2**20).content, dict, f"the Hub's description of {repo_id}")

    def file(
        self, repo_id: str, revision: str, path: str, limit: int, *, kind: str = "model", start: bool = False
    ) -> bytes:
        """Return a file of at most `limit` bytes or, with `start`, the first `limit` bytes of one."""
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.endpoint}/{prefix}{quote(repo_id)}/resolve/{quote(revision, safe='')}/{quote(path)}"
        return self.get(url, limit, start=start).content

    def get(self, url: str, limit: int, *, start: bool = False, etag: str | None = None) -> Answer:
        """Return an answer of at most `limit` bytes; its status is 304 if `etag` is still current."""
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
            answered = {name.lower(): value for name, value in response.headers.items()}
            if response.status_code not in (200, 206, 304):
                raise _refusal(response.status_code, answered)
            size = answered.get("content-length", "")
            if not start and size.isdecimal() and int(size) > limit:
                raise TooLarge(int(size), limit)
            try:
                # Bytes are counted: the announced size may be wrong or missing.
                for chunk in response.iter_bytes(2**16):
                    content += chunk
                    if len(content) > limit:
                        if not start:
                            raise TooLarge(None, limit)
                        break
            except NotRead:
                raise
            except Exception as error:
                # Errors in the body must not pass through the stream, whose own retries end before it.
                broken = error
        if broken:
            raise broken
        return Answer(response.status_code, bytes(content[:limit]), answered)

    def _page(self, url: str) -> tuple[list, str | None]:
        # Tokens differ in what they may see.
        about = f"{url} {self.headers.get('authorization', '')}"
        kept = self.cache and self.cache / f"{hashlib.sha256(about.encode()).hexdigest()}.json"
        known = _kept(kept)
        answer = self.get(url, MAX_PAGE, etag=known.get("etag"))
        if answer.status == 304 and "page" in known:
            return known["page"], known["next"]
        page = _json(answer.content, list, "a page of the Hub's listing")
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
            return NotRead("the Hub limits the number of requests (429): try again in a few minutes")
        if status is not None:
            return NotRead(f"the Hub repeatedly answered {status}: try again later")
        return NotRead(f"the connection to {without_secrets(self.endpoint)} broke ({type(error).__name__}): try again")


def _refusal(status: int, headers: dict[str, str]) -> NotRead:
    code = headers.get("x-error-code", "")
    if code == "EntryNotFound":
        return NoFile("the file is gone")
    if code == "RevisionNotFound":
        return NotRead("the commit that was listed is gone: the repository was rewritten meanwhile")
    if code == "GatedRepo":
        return NotRead("its files are gated: its author grants access on request")
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


def _json(content: bytes, kind: type[T], what: str) -> T:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NotRead(f"{what} is not JSON") from error
    if not isinstance(value, kind):
        raise NotRead(f"{what} is not {'a list' if kind is list else 'an object'}")
    return value


def _next(link: str) -> str | None:
    for part in link.split(","):
        address, _, about = part.partition(";")
        if 'rel="next"' in about.replace(" ", ""):
            return address.strip().removeprefix("<").removesuffix(">")
    return None
