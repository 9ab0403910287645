"""What data sets and models are called in public: Hub ids as they are, folders of this machine without their path."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

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
