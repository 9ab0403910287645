"""Access to the Hub: repository names, readable errors, and a repository with its commits."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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

from ..messages import without_secrets
from .encoder_record import is_ours

T = TypeVar("T")
# Seconds to wait before each retry; while files are uploaded, the client itself waits longer.
RETRY_AFTER = (1.0, 4.0)
# HTTP status codes after which a retry may succeed.
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
# Files that a repository may contain before anything is published to it.
BARE = {".gitattributes", ".gitignore", "LICENSE", "README.md"}
_SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")


def hub_id(name: str) -> str | None:
    """Return the Hub id `owner/name` of a model or data set, without scheme and revision.

    Args:
        name (`str`): Name of a model or data set, as `hf-hub:owner/name@revision` or `owner/name`.

    Returns:
        `str` or `None`: The Hub id; `None` for any other name, and for an id that is also the path of a local folder.
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


def public_name(name: str) -> str:
    """Return the name under which to publish a model or data set: a Hub id, or a local folder without its path.

    Args:
        name (`str`): A Hub id, the name of a timm model, or the path of a folder.

    Returns:
        `str`: The Hub id, or the last part of the path. A result that contains a slash is always a Hub id.
    """
    repo_id = hub_id(name)
    if repo_id:
        return repo_id
    plain = name.removeprefix("local-dir:").replace("\\", "/").rstrip("/")
    return plain.rpartition("/")[2] or plain


def check_repo_id(repo_id: str | None, argument: str = "repo_id") -> None:
    """Check that a repository id has the form "user/name".

    Args:
        repo_id (`str`, *optional*): The id.
        argument (`str`, defaults to `"repo_id"`): Name of the argument, for the error message.

    Raises:
        ValueError: `repo_id` is missing or malformed.
    """
    if not repo_id:
        raise ValueError(f"{argument} is missing: pass one of the form user/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{argument} {repo_id!r} is not valid: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{argument} {repo_id!r} has no owner: pass one of the form user/name")


def require_token(token: str | None = None) -> str:
    """Return an access token: `token`, or the one stored on this machine.

    Raises:
        OSError: There is no token.
    """
    token = token or get_token()
    if not token:
        raise OSError("publishing needs an access token, but none was found: run `hf auth login`, or set HF_TOKEN")
    return token


def hub_error(error: BaseException | None) -> Exception | None:
    """Return the error of the Hub, or of the connection to it, that caused `error`.

    The client wraps such errors, so the chain of causes is followed.

    Returns:
        `Exception` or `None`: The first such error; `None` if something else went wrong.
    """
    while error is not None:
        from_http_client = type(error).__module__.split(".")[0] in ("httpx", "httpx2")
        # A response that is not JSON comes from a proxy.
        known = HfHubHTTPError | LocalEntryNotFoundError | ConnectionError | TimeoutError | json.JSONDecodeError
        if isinstance(error, Exception) and (from_http_client or isinstance(error, known)):
            return error
        error = error.__cause__
    return None


def status_of(error: Exception) -> int | None:
    """Return the HTTP status code of an error, or `None` if the Hub did not answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


@dataclass(frozen=True)
class RepoState:
    """The newest commit of a repository.

    Args:
        sha (`str`): Id of the commit.
        files (`frozenset[str]`): Paths of its files.
        config (`dict`): Its `config.json`; empty if there is none, or if it is not JSON.
        card (`str`, *optional*): Its `README.md`.
        private (`bool`): Whether the repository is private.
        has_revision (`bool`): Whether the requested branch exists; if not, the other fields are those of the main one.
    """

    sha: str
    files: frozenset[str]
    config: Any
    card: str | None
    private: bool
    has_revision: bool


class HubRepo:
    """A repository on the Hub, with retries and one-line errors that state the remedy.

    Args:
        repo_id (`str`): "user/name".
        token (`str`): Access token with write permission.
        revision (`str`, *optional*): Branch; defaults to the main one.
        kind (`str`, defaults to `"model"`): "model", "dataset" or "space".
    """

    def __init__(self, repo_id: str, token: str, revision: str | None = None, kind: str = "model"):
        self.repo_id, self.token, self.revision, self.kind = repo_id, token, revision, kind
        self.api = HfApi(token=token, library_name="hf_orthossl")

    @property
    def url(self) -> str:
        """Return the address of the repository's page."""
        return f"{without_secrets(self.api.endpoint)}/{'' if self.kind == 'model' else f'{self.kind}s/'}{self.repo_id}"

    def check_token(self) -> None:
        """Check that the Hub accepts the token, and lets it write into the namespace of the repository.

        Raises:
            OSError: The Hub rejects the token or does not answer, the token may only read, or the namespace belongs to
                somebody else.
        """
        identity: Any = self._request(self.api.whoami)
        owner = self.repo_id.partition("/")[0]
        access = (identity.get("auth") or {}).get("accessToken") or {}
        scopes = (access.get("fineGrained") or {}).get("scoped")
        writable = [scope for scope in scopes or () if "repo.write" in scope.get("permissions", ())]
        if access.get("role") == "read" or (scopes is not None and not writable):
            raise OSError(
                f"the token has no write access to {self.repo_id}, because it may only read: use one that may write"
            )
        organizations = [org["name"] for org in identity.get("orgs", ()) if org.get("roleInOrg") != "read"]
        # A token for single repositories or organizations names them.
        named = [str((scope.get("entity") or {}).get("name", "")).partition("/")[0] for scope in writable]
        owners = dict.fromkeys([identity.get("name", owner), *organizations, *filter(None, named)])
        if owner.lower() not in [name.lower() for name in owners]:
            raise OSError(
                f"the token has no write access to {self.repo_id}, because {owner} is not among those it may write "
                f"for ({', '.join(owners)}): use another token, or another repo_id"
            )

    def read_state(self) -> RepoState | None:
        """Read the newest commit of a model repository.

        Returns:
            [`RepoState`] or `None`: The commit; `None` if there is no such repository.

        Raises:
            ValueError: The repository contains files that this package did not publish.
            OSError: The Hub does not answer, or rejects the request.
        """
        try:
            info, has_revision = self._request(self._model_info)
        except RepositoryNotFoundError:
            return None
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        config = self._json("config.json", info.sha) if "config.json" in files else {}
        if not is_ours(config) and not files <= BARE:
            raise ValueError(
                f"{self.url} contains files that orthossl did not publish (its config.json has no orthossl block): "
                "choose another repo_id"
            )
        card = self.text("README.md", info.sha) if "README.md" in files else None
        return RepoState(info.sha, files, config, card, bool(info.private), has_revision)

    def holds_weights(self, path: Path, sha: str) -> bool:
        """Return whether the `model.safetensors` of a commit equals a local file."""
        paths = self._request(lambda: self.api.get_paths_info(self.repo_id, ["model.safetensors"], revision=sha))
        lfs = getattr(paths[0], "lfs", None) if paths else None
        return lfs is not None and lfs.sha256 == _digests(path)[1]

    def download(self, names: set[str] | frozenset[str], sha: str, folder: Path) -> None:
        """Download files of a commit into a folder."""
        for name in sorted(names):

            def request(name: str = name) -> str:
                return self.api.hf_hub_download(self.repo_id, name, revision=sha)

            shutil.copyfile(self._request(request), folder / name)

    def info(self) -> Any:
        """Return the Hub's description of the newest commit, or `None` if there is no such repository."""
        try:
            return self._request(lambda: self.api.repo_info(self.repo_id, repo_type=self.kind))
        except RepositoryNotFoundError:
            return None

    def tip(self) -> str | None:
        """Return the id of the newest commit, or `None` if there is no such repository."""
        info = self.info()
        return None if info is None else info.sha

    def create(self, private: bool | None, sdk: str | None = None) -> None:
        """Create the repository unless it exists.

        Args:
            private (`bool`, *optional*): Visibility of a new repository; `None` for the user's default.
            sdk (`str`, *optional*): The SDK of a Space, such as "gradio"; required for a Space.
        """
        self._request(
            lambda: self.api.create_repo(
                self.repo_id, private=private, exist_ok=True, repo_type=self.kind, space_sdk=sdk
            )
        )

    def create_branch(self) -> None:
        """Create the branch `revision` unless it exists."""
        branch = self.revision
        assert branch is not None
        self._request(lambda: self.api.create_branch(self.repo_id, branch=branch, exist_ok=True))

    def commit(self, contents: Mapping[str, bytes | Path], stale: set[str], parent: str | None, message: str) -> str:
        """Add and delete files in one commit.

        Args:
            contents (mapping of `str` to `bytes` or `Path`): Path in the repository → content, or the file to upload.
            stale (`set[str]`): Paths to delete.
            parent (`str`, *optional*): Id of the commit on top of which to commit.
            message (`str`): Title of the commit.

        Returns:
            `str`: Id of the commit.

        Raises:
            ValueError: The Hub rejects the card's metadata.
            OSError: The Hub does not answer, rejects the request, or has a newer commit than `parent`; nothing was
                changed.
        """
        for wait in (*RETRY_AFTER, None):
            additions = [
                CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
                for path, content in contents.items()
            ]
            deletions = [CommitOperationDelete(path) for path in sorted(stale)]
            try:
                return self.api.create_commit(
                    self.repo_id,
                    [*additions, *deletions],
                    repo_type=self.kind,
                    commit_message=message,
                    revision=self.revision,
                    parent_commit=parent,
                ).oid
            except Exception as raised:
                error = hub_error(raised)
                if error is None:
                    raise
                # The commit may have been made although the response was lost.
                commit = self._commit_made(contents, stale, error)
                if commit:
                    return commit
                if wait is None or not _is_transient(error):
                    raise self._explained(error) from raised
                time.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")

    def text(self, path: str, sha: str) -> str:
        """Return the content of a text file of a commit."""
        file = self._request(lambda: self.api.hf_hub_download(self.repo_id, path, revision=sha, repo_type=self.kind))
        return Path(file).read_bytes().decode("utf-8", errors="replace")

    def _commit_made(self, contents: Mapping[str, bytes | Path], stale: set[str], error: Exception) -> str | None:
        """Return the id of the newest commit if it is the one whose response was lost, else `None`."""
        if not _is_transient(error) and status_of(error) not in (409, 412):
            return None
        try:
            # `Any`, because the client's return type includes kinds of repositories without files, which do not occur.
            info: Any = self._request(
                lambda: self.api.repo_info(
                    self.repo_id, revision=self.revision, repo_type=self.kind, files_metadata=True, timeout=30
                )
            )
        except OSError as unknown:
            raise OSError(
                f"the Hub stopped answering ({self._explained(error)}), so it is unknown whether {self.url} was "
                "published: publish again later, which changes nothing if it was"
            ) from unknown
        digests = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()}
        same = all(digests.get(path) in _digests(content) for path, content in contents.items())
        return info.sha if same and not stale & set(digests) else None

    def _model_info(self) -> tuple[Any, bool]:
        """Return the Hub's description of the branch, or of the main one, and whether the branch exists."""
        try:
            return self.api.model_info(self.repo_id, revision=self.revision), True
        except RevisionNotFoundError:
            return self.api.model_info(self.repo_id), False

    def _json(self, path: str, sha: str) -> Any:
        try:
            return json.loads(self.text(path, sha))
        except json.JSONDecodeError:
            return {}

    def _request(self, call: Callable[[], T]) -> T:
        """Return the result of a call, with retries after temporary failures; explain the last error."""
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
                    raise self._explained(error) from raised
                time.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")

    def _explained(self, error: Exception) -> OSError | ValueError:
        """Return a one-line error that states what went wrong and how to fix it."""
        status = status_of(error)
        if isinstance(error, OfflineModeIsEnabled):
            return OSError("HF_HUB_OFFLINE is set, so nothing can be published: unset it")
        if isinstance(error, BadRequestError):
            return ValueError(f"the Hub rejected {self.repo_id} (400): {error.server_message or error}")
        known = {
            401: "the Hub does not accept the token (401): log in with `hf auth login`, or set HF_TOKEN to a valid one",
            403: f"the token has no write access to {self.repo_id} (403): use one that has, or another repo_id",
            404: f"the Hub finds no {self.repo_id} that this token may write to (404): check repo_id and token",
            409: f"{self.url} changed while publishing (409): nothing was published; publish again",
            412: f"{self.url} changed while publishing (412): nothing was published; publish again",
            429: "too many requests to the Hub (429): nothing was published; publish again in a few minutes",
        }
        if status in known:
            return OSError(known[status])
        if status is not None:
            return OSError(f"the Hub repeatedly answered {status}: nothing was published; publish again later")
        return OSError(
            f"the connection to {without_secrets(self.api.endpoint)} failed ({type(error).__name__}): nothing was "
            "published; publish again"
        )


def _is_folder(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):
        return False


def _is_transient(error: Exception) -> bool:
    status = status_of(error)
    return not isinstance(error, OfflineModeIsEnabled) and (status is None or status in TRANSIENT)


def _digests(content: bytes | Path) -> tuple[str, str]:
    """Return the two names that the Hub may give to a file's content: those of a git blob and of LFS."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()
