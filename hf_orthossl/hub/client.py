"""The Hub: names of repositories, what goes wrong on the way there, and one repository with its commits."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .encoder_record import is_ours

# Seconds before each further try; the client itself waits longer while it uploads files.
RETRY_AFTER = (1.0, 4.0)
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
# What a repository may hold that nobody published.
BARE = {".gitattributes", ".gitignore", "LICENSE", "README.md"}
_SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")


def hub_id(name: str) -> str | None:
    """The Hub id `owner/name` that a name means, without scheme and revision, or `None` if it means something else.

    A name of that form that is also a folder here means the folder.
    """
    scheme = next((scheme for scheme in _SCHEMES if name.startswith(scheme)), "")
    if scheme == "local-dir:":
        return None
    plain = name.removeprefix(scheme).partition("@")[0]
    try:
        validate_repo_id(plain)
    except HFValidationError:
        return None
    return plain if plain.count("/") == 1 and (scheme or not _is_folder(plain)) else None


def check_repo_id(repo_id: str | None, argument: str = "repo_id") -> None:
    """Raises a ValueError that names the argument unless the id has the form "user/name"."""
    if not repo_id:
        raise ValueError(f"{argument} is missing: pass one of the form user/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{argument} {repo_id!r} is not valid: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{argument} {repo_id!r} names no owner: pass one of the form user/name")


def public_name(name: str) -> str:
    """A name that may leave the machine: a folder goes by its own name, as its path is nobody's business.

    What is left with one slash in it is a Hub id.
    """
    found = hub_id(name)
    if found:
        return found
    plain = name.removeprefix("local-dir:").replace("\\", "/").rstrip("/")
    return plain.rpartition("/")[2] or plain


def _is_folder(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):
        return False


def hub_error(error: BaseException | None) -> Exception | None:
    """What the Hub or the way there caused, below the client's own wrapping; `None` if something else went wrong."""
    while error is not None:
        from_client = type(error).__module__.split(".")[0] in ("httpx", "httpx2")
        # An answer that is no JSON is a proxy's.
        named = HfHubHTTPError | LocalEntryNotFoundError | ConnectionError | TimeoutError | json.JSONDecodeError
        if from_client or isinstance(error, named):
            return error
        error = error.__cause__
    return None


def status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


@dataclass(frozen=True)
class Found:
    """A repository as it is: its newest commit, its files, its configuration and card."""

    sha: str | None
    files: frozenset[str]
    config: dict
    card: str | None
    private: bool
    has_revision: bool


class HubRepo:
    """One repository.

    Args:
        repo_id (`str`): "user/name".
        token (`str`): Access token with write permission.
        revision (`str`, *optional*): Branch; the main one by default.
        kind (`str`, defaults to "model"): Or "dataset" or "space".
    """

    def __init__(self, repo_id: str, token: str, revision: str | None = None, kind: str = "model"):
        self.repo_id, self.token, self.revision, self.kind = repo_id, token, revision, kind
        self.api = HfApi(token=token, library_name="hf_orthossl")

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{'' if self.kind == 'model' else f'{self.kind}s/'}{self.repo_id}"

    def check_token(self) -> None:
        """Raises an OSError if the Hub does not know the token."""
        self._asked(self.api.whoami)

    def look(self) -> Found | None:
        """What is there; `None` if there is no such repository.

        Raises:
            ValueError: it holds something that this package did not publish.
            OSError: the Hub does not answer, or refuses.
        """
        try:
            info, has_revision = self._asked(self._info)
        except RepositoryNotFoundError:
            return None
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        config = self._json("config.json", info.sha) if "config.json" in files else {}
        if not is_ours(config) and not files <= BARE:
            raise ValueError(
                f"{self.url} holds files that orthossl did not publish (its config.json has no orthossl block): choose "
                "another repo_id"
            )
        card = self.text("README.md", info.sha) if "README.md" in files else None
        return Found(info.sha, files, config, card, bool(info.private), has_revision)

    def holds_weights(self, path: Path, sha: str) -> bool:
        """Whether the `model.safetensors` of a commit is this file."""
        found = self._asked(lambda: self.api.get_paths_info(self.repo_id, ["model.safetensors"], revision=sha))
        lfs = getattr(found[0], "lfs", None) if found else None
        return lfs is not None and lfs.sha256 == _digests(path)[1]

    def fetch(self, names: set[str] | frozenset[str], sha: str | None, folder: Path) -> None:
        """Writes files of a commit into a folder."""
        for name in sorted(names):
            file = self._asked(lambda name=name: self.api.hf_hub_download(self.repo_id, name, revision=sha))
            shutil.copyfile(file, folder / name)

    def info(self) -> Any:
        """What the Hub says of the newest commit; `None` if there is no such repository."""
        try:
            return self._asked(lambda: self.api.repo_info(self.repo_id, repo_type=self.kind))
        except RepositoryNotFoundError:
            return None

    def tip(self) -> str | None:
        """The newest commit; `None` if there is no such repository."""
        info = self.info()
        return None if info is None else info.sha

    def create(self, private: bool | None, sdk: str | None = None) -> None:
        """Makes the repository if there is none; a Space needs its `sdk`, such as "gradio"."""
        self._asked(
            lambda: self.api.create_repo(
                self.repo_id, private=private, exist_ok=True, repo_type=self.kind, space_sdk=sdk
            )
        )

    def create_branch(self) -> None:
        self._asked(lambda: self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True))

    def commit(self, contents: dict[str, bytes | Path], stale: set[str], parent: str | None, message: str) -> str:
        """Adds `contents` and deletes `stale` in one commit on top of `parent`; returns its id.

        Raises:
            ValueError: the Hub refuses the card's metadata.
            OSError: the Hub does not answer, or refuses, or somebody else has committed since; nothing was changed.
        """
        for wait in (*RETRY_AFTER, None):
            adds = [
                CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
                for path, content in contents.items()
            ]
            deletions = [CommitOperationDelete(path) for path in sorted(stale)]
            try:
                return self.api.create_commit(
                    self.repo_id,
                    [*adds, *deletions],
                    repo_type=self.kind,
                    commit_message=message,
                    revision=self.revision,
                    parent_commit=parent,
                ).oid
            except Exception as raised:
                error = hub_error(raised)
                if error is None:
                    raise
                # The commit may have been made although its answer was lost.
                landed = self._landed(contents, stale, error)
                if landed:
                    return landed
                if wait is None or not _is_transient(error):
                    raise self._in_words(error) from raised
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _landed(self, contents: dict[str, bytes | Path], stale: set[str], error: Exception) -> str | None:
        if not _is_transient(error) and status_of(error) not in (409, 412):
            return None
        try:
            info = self._asked(
                lambda: self.api.repo_info(
                    self.repo_id, revision=self.revision, repo_type=self.kind, files_metadata=True, timeout=30
                )
            )
        except OSError as unknown:
            raise OSError(
                f"the Hub stopped answering ({self._in_words(error)}), and whether {self.url} was published is not "
                "known: publish again later, which changes nothing if it was"
            ) from unknown
        there = {sibling.rfilename: sibling.lfs.sha256 if sibling.lfs else sibling.blob_id for sibling in info.siblings}
        same = all(there.get(path) in _digests(content) for path, content in contents.items())
        return info.sha if same and not stale & set(there) else None

    def _info(self) -> tuple[Any, bool]:
        try:
            return self.api.model_info(self.repo_id, revision=self.revision), True
        except RevisionNotFoundError:
            return self.api.model_info(self.repo_id), False

    def text(self, path: str, sha: str) -> str:
        """A text file of a commit."""
        file = self._asked(lambda: self.api.hf_hub_download(self.repo_id, path, revision=sha, repo_type=self.kind))
        return Path(file).read_bytes().decode("utf-8", errors="replace")

    def _json(self, path: str, sha: str) -> Any:
        try:
            return json.loads(self.text(path, sha))
        except json.JSONDecodeError:
            return {}

    def _asked(self, call: Callable[[], Any]) -> Any:
        """The call's answer, after a few tries where the Hub stumbles; what it refuses becomes one line."""
        for wait in (*RETRY_AFTER, None):
            try:
                return call()
            except RepositoryNotFoundError:
                raise
            except Exception as raised:
                error = hub_error(raised)
                if error is None:
                    raise
                if wait is None or not _is_transient(error):
                    raise self._in_words(error) from raised
                time.sleep(wait)

    def _in_words(self, error: Exception) -> OSError | ValueError:
        status = status_of(error)
        if isinstance(error, OfflineModeIsEnabled):
            return OSError("HF_HUB_OFFLINE is set, so nothing can be published: unset it")
        if isinstance(error, BadRequestError):
            return ValueError(f"the Hub refused {self.repo_id} (400): {error.server_message or error}")
        known = {
            401: "the Hub does not accept the token (401): log in with `hf auth login`, or set HF_TOKEN to a valid one",
            403: f"the token may not write to {self.repo_id} (403): use one with write access, or another repo_id",
            404: f"the Hub finds no {self.repo_id} that this token may write to (404): check repo_id and token",
            409: f"{self.url} changed while publishing (409): nothing was published; publish again",
            412: f"{self.url} changed while publishing (412): nothing was published; publish again",
            429: "the Hub asks for fewer requests (429): nothing was published; publish again in a few minutes",
        }
        if status in known:
            return OSError(known[status])
        if status is not None:
            return OSError(f"the Hub answered {status} again and again: nothing was published; publish again later")
        return OSError(
            f"the connection to {self.api.endpoint} broke off ({type(error).__name__}): nothing was published; publish "
            "again"
        )


def require_token(token: str | None = None) -> str:
    """The token given, or the one of this machine; raises an OSError where there is none."""
    token = token or get_token()
    if not token:
        raise OSError("publishing needs an access token and there is none: run `hf auth login`, or set HF_TOKEN")
    return token


def _is_transient(error: Exception) -> bool:
    status = status_of(error)
    return not isinstance(error, OfflineModeIsEnabled) and (status is None or status in TRANSIENT)


def _digests(content: bytes | Path) -> tuple[str, str]:
    """How the Hub names a file's content: as a git blob, and in LFS."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()
