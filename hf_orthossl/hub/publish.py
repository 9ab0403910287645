"""Publish an encoder folder on the Hub: card, weights and spectra in one commit, and no other files."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from .. import __version__, messages
from ..evaluation import Result, read_results
from ..evaluation.results import results_json
from ..untrusted import MAX_HEADER, inside, read_object, read_tensors
from .card.metadata import parse_front_matter
from .card.render import render_card
from .card.sections import find_sections, owners_text, split_front_matter
from .client import HubRepo, RepoState, check_repo_id, require_token
from .encoder_record import EncoderRecord, loading_calls
from .measurements import RESULTS, eval_result_files, merge_results, names_source, public_result

CARD = "README.md"
# The only files to publish, besides the card, its pictures, evaluation results, and the code named in config.json.
FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "results.json",
    "spectra.json",
    "spectra.safetensors",
)
FIGURES = ("spectra.png", "spectra_from_start.png", "filters.png", "representations.png")
TOKEN = re.compile(messages.TOKEN.pattern.encode())
# A picture in Markdown or HTML, by name without a path: files of other folders do not belong to the encoder.
_PICTURE = re.compile(r"""(?:\]\(|src=["'])(?:\./)?([\w-][\w.-]*\.(?:png|jpe?g|gif|webp))(?=[\s"')])""", re.IGNORECASE)
# An identifier of the Hub, and a name of a git branch that needs no quoting.
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,40}")
_REVISION = re.compile(r"(?!.*(?:\.\.|//|/\.|\.lock(?:/|$)))\w[\w./-]{0,199}(?<![./])", re.ASCII)


@dataclass(frozen=True)
class Publication:
    """The outcome of publishing, or of a dry run.

    Args:
        repo_id (`str`): "user/name".
        files (`dict[str, int]`): Path in the repository → size in bytes.
        card (`str`): Text of the card, `README.md`.
        loading (`list[str]`): Lines of Python that load the encoder.
        note (`str`, *optional*): A sentence that states which text of the owner was kept, if folder and repository
            differ.
        url (`str`, *optional*): Address of the repository; `None` after a dry run.
        commit (`str`, *optional*): Id of the commit; `None` after a dry run.
    """

    repo_id: str
    files: dict[str, int]
    card: str
    loading: list[str]
    note: str | None = None
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
    """Publish an encoder folder on the Hub in one commit.

    The commit contains weights, configuration, spectra, figures, results, the code that loading needs, a card rendered
    for `repo_id` with its pictures, and `.eval_results/`. No other file of the folder is published, and no file that
    contains an access token. The text that the owner wrote into the repository's card is kept, and so are its results
    for the same weights.

    Args:
        folder (`str` or `Path`): Folder that [`write_encoder_folder`] wrote.
        repo_id (`str`): "user/name"; the repository is created if it does not exist.
        private (`bool`, *optional*): Visibility of a new repository; defaults to the user's setting on the Hub.
        revision (`str`, *optional*): Branch, created if it does not exist; defaults to the main one.
        token (`str`, *optional*): Access token with write permission; defaults to the one of `hf auth login` or
            `HF_TOKEN`.
        license (`str`, *optional*): Identifier of a licence for the card, such as "apache-2.0".
        dry_run (`bool`, defaults to `False`): Only return what would be published, without sending requests.
        commit_message (`str`, *optional*): Title of the commit; defaults to one with this package's version.

    Returns:
        [`Publication`]: The published files, the card and the lines that load the encoder.

    Raises:
        ValueError: `repo_id`, `revision` or `license` is malformed, the folder is not an encoder folder, a file
            contains an access token, or the repository contains other files, is public although `private=True`, or has
            a broken card.
        OSError: There is no token, or the Hub does not answer or rejects the request; the repository is unchanged.

    Example:
        >>> publication = publish_encoder("runs/default/encoder", "user/resnet10t-simclr-so", license="apache-2.0")
        >>> publication.url
        'https://huggingface.co/user/resnet10t-simclr-so'
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    _check_revision(revision)
    if license is not None and not _LICENSE.fullmatch(license):
        raise ValueError(
            f"license {license!r} is not an identifier of the Hub: pass one such as apache-2.0, or the word other"
        )
    config = read_encoder_config(folder)
    loading = loading_lines(EncoderRecord.read(folder), repo_id, revision)
    results = [public_result(result) for result in read_results(folder / RESULTS)] if _has_results(folder) else []
    card, contents = _contents(folder, config, repo_id, revision, license, None, results)
    folders_text = _owners_text(_local_card(folder))
    if dry_run:
        refuse_tokens(contents, get_token())
        note = (
            "If the repository has a card, the owner's text in it is kept instead of that in this card"
            if folders_text
            else None
        )
        return Publication(repo_id, _sizes(contents), card, loading, note)

    token = require_token(token)
    refuse_tokens(contents, token)
    repo = HubRepo(repo_id, token, revision)
    state = repo.read_state()
    if state is None:
        repo.create(private)
        state = _existing(repo)
    _check_state(repo, state, private)
    if not state.has_revision:
        repo.create_branch()
        state = _existing(repo)
    # Results of the same weights may have been published in the meantime.
    if {RESULTS, "model.safetensors"} <= state.files and repo.holds_weights(folder / "model.safetensors", state.sha):
        results = merge_results(results, _published_results(repo, state.sha))
    card, contents = _contents(folder, config, repo_id, revision, license, state.card, results)
    refuse_tokens(contents, token)
    message = commit_message or f"Encoder pretrained with orthossl {__version__}"
    commit = repo.commit(contents, _stale(repo, state, contents), state.sha, message)
    note = None
    if state.card is not None and folders_text and folders_text != _owners_text(state.card):
        note = f"The owner's text in the repository's card was kept; that of {folder / CARD} was not published"
    return Publication(repo_id, _sizes(contents), card, loading, note, repo.url, commit)


def check_destination(
    repo_id: str | None, token: str | None = None, revision: str | None = None, private: bool | None = None
) -> None:
    """Check before a long run that its encoder can be published.

    Args:
        repo_id (`str`, *optional*): "user/name".
        token (`str`, *optional*): Access token; defaults to the one of this machine.
        revision (`str`, *optional*): Branch; defaults to the main one.
        private (`bool`, *optional*): Whether the repository must be private.

    Raises:
        ValueError: `repo_id` is missing, `repo_id` or `revision` is malformed, or the repository contains other files,
            is public although `private=True`, or has a card whose markers or metadata are broken.
        OSError: There is no valid token, it has no write access to the repository's namespace, or the Hub does not
            answer.
    """
    check_repo_id(repo_id)
    assert repo_id is not None  # otherwise check_repo_id would have raised
    _check_revision(revision)
    repo = HubRepo(repo_id, require_token(token), revision)
    repo.check_token()
    state = repo.read_state()
    if state is not None:
        _check_state(repo, state, private)


def loading_lines(record: EncoderRecord, repo_id: str, revision: str | None = None) -> list[str]:
    """Return lines of Python that load a published encoder, as in its card."""
    calls = loading_calls(record, repo_id, revision)
    if calls["timm_call"]:
        return ["import timm", f"encoder = {calls['timm_call']}"]
    return ["from transformers import AutoModel", f"encoder = {calls['auto_call']}"]


def read_encoder_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of an encoder folder, and check that its weights can be read.

    Raises:
        FileNotFoundError: There is no such folder, or it has no configuration or no weights.
        ValueError: One of these files is broken, or `orthossl pretrain` did not write the folder.
    """
    EncoderRecord.read(folder)
    try:
        read_tensors(folder, "model.safetensors")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no model.safetensors: pass a finished run of orthossl pretrain"
        ) from None
    return read_object(folder, "config.json")


def code_files(config: dict[str, Any]) -> set[str]:
    """Return the file names of the modules next to `config.json` that define the architecture."""
    classes = config.get("auto_map") or {}
    return {f"{name.split('.')[0]}.py" for name in classes.values() if re.fullmatch(r"\w+\.\w+", str(name))}


def published_files(folder: Path, config: dict[str, Any], card: str) -> dict[str, bytes | Path]:
    """List the files of an encoder folder that may be published, except the card itself.

    Args:
        folder (`Path`): Encoder folder.
        config (`dict`): Its `config.json`.
        card (`str`): Text of the card, whose pictures are published too.

    Returns:
        `dict[str, bytes | Path]`: Path in the repository → content, or the local file to upload.

    Raises:
        ValueError: A file is a link that leads out of the folder.
    """
    names = {*FILES, *FIGURES, *code_files(config), *_PICTURE.findall(card)}
    files = {name: folder / name for name in sorted(names) if (folder / name).is_file()}
    for path in files.values():
        inside(folder, path)
    return files


def refuse_tokens(contents: Mapping[str, bytes | Path], token: str | None = None) -> None:
    """Check that no file contains an access token.

    Args:
        contents (mapping of `str` to `bytes` or `Path`): Path in the repository → content, or the file to upload.
        token (`str`, *optional*): A token to look for, in addition to any text of the form of a token.

    Raises:
        ValueError: A file contains an access token.
    """
    for name, content in contents.items():
        text = content if isinstance(content, bytes) else _readable_part(content)
        match = TOKEN.search(text)
        if match or (token and token.encode() in text):
            shown = f" ({match[0][:6].decode()}…)" if match else ""
            raise ValueError(
                f"{name} contains an access token{shown}: remove it; nothing was published. If others have seen the "
                "file, revoke the token"
            )


def _existing(repo: HubRepo) -> RepoState:
    state = repo.read_state()
    if state is None:
        raise OSError(f"{repo.url} was created, but cannot be read: check the token's permissions")
    return state


def _check_revision(revision: str | None) -> None:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ValueError(f"revision {revision!r} is not a valid branch name: pass one such as v2")


def _check_state(repo: HubRepo, state: RepoState, private: bool | None) -> None:
    if private and not state.private:
        raise ValueError(f"{repo.url} is public: make it private in its settings, or choose another repo_id")
    try:
        front, body = split_front_matter(state.card or "")
        parse_front_matter(front)
        find_sections(body)
    except ValueError as error:
        raise ValueError(f"the card of {repo.url} cannot be updated: {error}") from error


def _has_results(folder: Path) -> bool:
    return (folder / RESULTS).is_file()


def _published_results(repo: HubRepo, sha: str) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        repo.download({RESULTS}, sha, Path(folder))
        try:
            return read_results(Path(folder) / RESULTS)
        except ValueError as error:
            raise ValueError(f"{repo.url} has a results.json that cannot be read: {error}") from error


def _local_card(folder: Path) -> str | None:
    path = folder / CARD
    # Read as bytes, because reading as text would change the owner's line breaks.
    return path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else None


def _owners_text(card: str | None) -> str:
    try:
        return owners_text(split_front_matter(card or "")[1])
    except ValueError:
        # The folder's card may be broken; it is not used if the repository has one.
        return ""


def _contents(
    folder: Path,
    config: dict[str, Any],
    repo_id: str,
    revision: str | None,
    license: str | None,
    hub_card: str | None,
    results: list[Result],
) -> tuple[str, dict[str, bytes | Path]]:
    """Return the card, and all files to publish: path in the repository → content, or the local file to upload."""
    previous = _local_card(folder) if hub_card is None else hub_card
    card = render_card(folder, repo_id=repo_id, revision=revision, license=license, previous=previous, results=results)
    contents = published_files(folder, config, card)
    if results or _has_results(folder):
        contents[RESULTS] = results_json(results).encode()
    contents[CARD] = card.encode()
    evaluated = eval_result_files(folder, repo_id=repo_id, results=results)
    contents |= {path: text.encode() for path, text in evaluated.items()}
    return card, dict(sorted(contents.items()))


def _stale(repo: HubRepo, state: RepoState, contents: Mapping[str, bytes | Path]) -> set[str]:
    """Return the paths of an earlier encoder in the repository that the new one does not have."""
    others = state.files - set(contents)
    evaluated = {path for path in others if path.startswith(".eval_results/")}
    ours = {path for path in evaluated if names_source(repo.text(path, state.sha), repo.url)}
    return ({*FILES, *FIGURES, *code_files(state.config)} & others) | ours


def _sizes(contents: Mapping[str, bytes | Path]) -> dict[str, int]:
    """Return the size of each file, in bytes."""
    return {
        path: len(content) if isinstance(content, bytes) else content.stat().st_size
        for path, content in contents.items()
    }


def _readable_part(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    # In safetensors only the header, which comes first, contains text.
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER))
