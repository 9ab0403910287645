"""Publishing an encoder folder: card, weights and spectra in one commit, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from .card import render_card
from .contents import FILES, code_files, published_files, read_encoder_config, refuse_tokens, size_of
from .measurements import eval_result_files
from .remote import Found, ModelRepo


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Args:
        repo_id (`str`): "user/name".
        files (`dict[str, int]`): Path in the repository → size in bytes.
        card (`str`): Text of its README.md.
        loading (`list[str]`): Lines of Python that load the encoder.
        url (`str`, *optional*): Where it is; `None` after a dry run.
        commit (`str`, *optional*): Id of the commit; `None` after a dry run.
    """

    repo_id: str
    files: dict[str, int]
    card: str
    loading: list[str]
    url: str | None = None
    commit: str | None = None


def publish_encoder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
    commit_message: str | None = None,
) -> Publication:
    """Uploads an encoder folder to the Hub in one commit; what the owner wrote into the card there stays.

    Weights, configuration, spectra, figures, results and the code that loading needs go out, with a card rendered for
    `repo_id` and `.eval_results/`. Nothing else in the folder does, and nothing that holds an access token.

    Args:
        folder (`str` or `Path`): What `write_encoder_folder` wrote.
        repo_id (`str`): "user/name"; created if there is no such repository.
        private (`bool`, *optional*): Visibility of a new repository; the Hub's default for the user if `None`.
        revision (`str`, *optional*): Branch, made if missing; the main one by default.
        token (`str`, *optional*): Access token with write permission; defaults to the one of `hf auth login` or
            `HF_TOKEN`.
        license (`str`, *optional*): Licence for the card, such as "apache-2.0".
        dry_run (`bool`, defaults to `False`): Only say what would be published, without any request.
        commit_message (`str`, *optional*): Names this package's version by default.

    Raises:
        ValueError: malformed `repo_id`, a folder that is not an encoder's, a token in a file, a repository that holds
            something else or is public where `private=True`.
        OSError: no token, or the Hub does not answer, or refuses; the repository is as it was.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    config = read_encoder_config(folder)
    loading = loading_lines(config, repo_id, revision)
    if dry_run:
        contents = _contents(folder, config, repo_id, license, None)
        refuse_tokens(contents, get_token())
        sizes = {path: size_of(content) for path, content in contents.items()}
        return Publication(repo_id, sizes, contents["README.md"].decode(), loading)

    token = require_token(token)
    refuse_tokens(_contents(folder, config, repo_id, license, None), token)
    repo = ModelRepo(repo_id, token, revision)
    found = repo.look()
    if found is None:
        repo.create(private)
        found = repo.look()
    if found is None:
        raise OSError(f"{repo.url} was created and cannot be seen: check the token's permissions")
    if private and not found.private:
        raise ValueError(f"{repo.url} is public: make it private in its settings, or choose another repo_id")
    if not found.has_revision:
        repo.create_branch()
        found = repo.look()
    contents = _contents(folder, config, repo_id, license, found.card)
    refuse_tokens(contents, token)
    message = commit_message or f"Encoder pretrained with orthossl {__version__}"
    commit = repo.commit(contents, _stale(found, contents), found.sha, message)
    sizes = {path: size_of(content) for path, content in contents.items()}
    return Publication(repo_id, sizes, contents["README.md"].decode(), loading, repo.url, commit)


def check_destination(repo_id: str | None, token: str | None = None, revision: str | None = None) -> None:
    """Finds out before a long run whether its encoder can be published.

    Raises:
        ValueError: no or a malformed `repo_id`, or a repository that holds something else.
        OSError: no valid token, or the Hub does not answer.
    """
    check_repo_id(repo_id)
    repo = ModelRepo(repo_id, require_token(token), revision)
    repo.check_token()
    repo.look()


def check_repo_id(repo_id: str | None) -> None:
    """Raises a ValueError unless it has the form "user/name"."""
    if not repo_id:
        raise ValueError("repo_id is missing: pass one of the form user/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id {repo_id!r} is not valid: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id {repo_id!r} names no owner: pass one of the form user/name")


def require_token(token: str | None = None) -> str:
    """The token given, or the one of this machine; raises an OSError where there is none."""
    token = token or get_token()
    if not token:
        raise OSError("publishing needs an access token and there is none: run `hf auth login`, or set HF_TOKEN")
    return token


def loading_lines(config: dict, repo_id: str, revision: str | None = None) -> list[str]:
    """Python that loads a published encoder without this package."""
    if "architecture" in config and not config.get("auto_map"):
        source = f"hf-hub:{repo_id}@{revision}" if revision else f"hf-hub:{repo_id}"
        return ["import timm", f'encoder = timm.create_model("{source}", num_classes=0, pretrained=True)']
    extra = f', revision="{revision}"' if revision else ""
    extra += ", trust_remote_code=True" if config.get("auto_map") else ""
    return ["from transformers import AutoModel", f'encoder = AutoModel.from_pretrained("{repo_id}"{extra})']


def _contents(
    folder: Path, config: dict, repo_id: str, license: str | None, hub_card: str | None
) -> dict[str, bytes | Path]:
    local_card = folder / "README.md"
    # As bytes: reading as text would change the owner's line breaks.
    local = local_card.read_bytes().decode("utf-8", errors="replace") if local_card.is_file() else None
    previous = local if hub_card is None else hub_card
    contents = published_files(folder, config)
    card = render_card(folder, repo_id=repo_id, license=license, previous=previous)
    contents["README.md"] = card.encode()
    contents |= {path: text.encode() for path, text in eval_result_files(folder, repo_id=repo_id).items()}
    return dict(sorted(contents.items()))


def _stale(found: Found, contents: dict[str, bytes | Path]) -> set[str]:
    """What an earlier encoder published that this one does not have."""
    return ({*FILES, *code_files(found.config)} & found.files) - set(contents)
