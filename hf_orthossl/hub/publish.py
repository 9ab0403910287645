"""Publishing an encoder folder: card, weights and spectra in one commit, and nothing else."""

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open

from .. import __version__
from ..evaluation import Result, read_results
from ..evaluation.results import results_json
from .card.metadata import parse_front_matter
from .card.render import render_card
from .card.sections import find_sections, owners_text, split_front_matter
from .client import Found, HubRepo, check_repo_id, require_token
from .encoder_record import EncoderRecord, loading_calls
from .measurements import RESULTS, eval_result_files, merge_results, names_source, public_result

# All that is ever published, besides the card, pictures in it, evaluation results, and the code that config.json names.
FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "results.json",
    "spectra.json",
    "spectra.safetensors",
)
FIGURES = ("spectra.png", "filters.png", "representations.png")
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")
# In Markdown and HTML; only a name: what lies in other folders is no part of the encoder.
_PICTURE = re.compile(r"""(?:\]\(|src=["'])(?:\./)?([\w-][\w.-]*\.(?:png|jpe?g|gif|webp))(?=[\s"')])""", re.IGNORECASE)
# Those of the Hub's identifiers, and of git's names of branches that need no quoting.
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,40}")
_REVISION = re.compile(r"(?!.*(?:\.\.|//|/\.|\.lock(?:/|$)))\w[\w./-]{0,199}(?<![./])", re.ASCII)


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Args:
        repo_id (`str`): "user/name".
        files (`dict[str, int]`): Path in the repository → size in bytes.
        card (`str`): Text of its README.md.
        loading (`list[str]`): Lines of Python that load the encoder.
        note (`str`, *optional*): What became of the owner's words in the folder's card, if the repository's differ.
        url (`str`, *optional*): Where it is; `None` after a dry run.
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
    """Uploads an encoder folder to the Hub in one commit; what the owner wrote into the card there stays.

    Weights, configuration, spectra, figures, results and the code that loading needs go out, with a card rendered for
    `repo_id`, the pictures that it shows, and `.eval_results/`. Nothing else in the folder does, and nothing that holds
    an access token. Results that the repository has of the same weights stay.

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
        ValueError: malformed `repo_id`, `revision` or `license`, a folder that is not an encoder's, a token in a file,
            a repository that holds something else or is public where `private=True`, or a card of it that is broken.
        OSError: no token, or the Hub does not answer, or refuses; the repository is as it was.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    _check_revision(revision)
    if license is not None and not _LICENSE.fullmatch(license):
        raise ValueError(
            f"license {license!r} is no licence of the Hub: pass an identifier such as apache-2.0, or other"
        )
    config = read_encoder_config(folder)
    loading = loading_lines(EncoderRecord.read(folder), repo_id, revision)
    results = [public_result(result) for result in read_results(folder / RESULTS)] if _has_results(folder) else []
    local = _contents(folder, config, repo_id, revision, license, None, results)
    if dry_run:
        refuse_tokens(local, get_token())
        sizes = {path: size_of(content) for path, content in local.items()}
        words = _owners_text(_local_card(folder))
        note = "If the repository has a card, its owner's text is kept instead of this one's" if words else None
        return Publication(repo_id, sizes, local["README.md"].decode(), loading, note)

    token = require_token(token)
    refuse_tokens(local, token)
    repo = HubRepo(repo_id, token, revision)
    found = repo.look()
    if found is None:
        repo.create(private)
        found = repo.look()
    if found is None:
        raise OSError(f"{repo.url} was created and cannot be seen: check the token's permissions")
    _check_found(repo, found, private)
    if not found.has_revision:
        repo.create_branch()
        found = repo.look()
    # Later measurements of these very weights were pushed there.
    if {RESULTS, "model.safetensors"} <= found.files and repo.holds_weights(folder / "model.safetensors", found.sha):
        results = merge_results(results, _results_there(repo, found.sha))
    contents = _contents(folder, config, repo_id, revision, license, found.card, results)
    refuse_tokens(contents, token)
    message = commit_message or f"Encoder pretrained with orthossl {__version__}"
    commit = repo.commit(contents, _stale(repo, found, contents), found.sha, message)
    sizes = {path: size_of(content) for path, content in contents.items()}
    words, note = _owners_text(_local_card(folder)), None
    if found.card is not None and words and words != _owners_text(found.card):
        note = f"The owner's text in the repository's card was kept; that of {folder / 'README.md'} was not published"
    return Publication(repo_id, sizes, contents["README.md"].decode(), loading, note, repo.url, commit)


def check_destination(
    repo_id: str | None, token: str | None = None, revision: str | None = None, private: bool | None = None
) -> None:
    """Finds out before a long run whether its encoder can be published.

    Raises:
        ValueError: no or a malformed `repo_id` or `revision`, or a repository that holds something else, is public
            where `private=True`, or has a card whose markers or metadata are broken.
        OSError: no valid token, or the Hub does not answer.
    """
    check_repo_id(repo_id)
    _check_revision(revision)
    repo = HubRepo(repo_id, require_token(token), revision)
    repo.check_token()
    found = repo.look()
    if found is not None:
        _check_found(repo, found, private)


def loading_lines(record: EncoderRecord, repo_id: str, revision: str | None = None) -> list[str]:
    """Python that loads a published encoder without this package, as in its card."""
    calls = loading_calls(record, repo_id, revision)
    if calls["timm_call"]:
        return ["import timm", f"encoder = {calls['timm_call']}"]
    return ["from transformers import AutoModel", f"encoder = {calls['auto_call']}"]


def _check_revision(revision: str | None) -> None:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ValueError(f"revision {revision!r} is no name of a branch: pass one such as v2")


def _check_found(repo: HubRepo, found: Found, private: bool | None) -> None:
    if private and not found.private:
        raise ValueError(f"{repo.url} is public: make it private in its settings, or choose another repo_id")
    try:
        front, body = split_front_matter(found.card or "")
        parse_front_matter(front)
        find_sections(body)
    except ValueError as error:
        raise ValueError(f"the card of {repo.url} cannot be updated: {error}") from error


def _has_results(folder: Path) -> bool:
    return (folder / RESULTS).is_file()


def _results_there(repo: HubRepo, sha: str) -> list[Result]:
    with tempfile.TemporaryDirectory() as place:
        repo.fetch({RESULTS}, sha, Path(place))
        try:
            return read_results(Path(place) / RESULTS)
        except ValueError as error:
            raise ValueError(f"{repo.url} has a results.json that cannot be read: {error}") from error


def _local_card(folder: Path) -> str | None:
    path = folder / "README.md"
    # As bytes: reading as text would change the owner's line breaks.
    return path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else None


def _owners_text(card: str | None) -> str:
    try:
        return owners_text(split_front_matter(card or "")[1])
    except ValueError:
        # The folder's card may be broken where the repository's is rendered instead.
        return ""


def _contents(
    folder: Path,
    config: dict,
    repo_id: str,
    revision: str | None,
    license: str | None,
    hub_card: str | None,
    results: list[Result],
) -> dict[str, bytes | Path]:
    previous = _local_card(folder) if hub_card is None else hub_card
    card = render_card(folder, repo_id=repo_id, revision=revision, license=license, previous=previous, results=results)
    contents = published_files(folder, config, card)
    if results or _has_results(folder):
        contents[RESULTS] = results_json(results).encode()
    contents["README.md"] = card.encode()
    evaluated = eval_result_files(folder, repo_id=repo_id, results=results)
    contents |= {path: text.encode() for path, text in evaluated.items()}
    return dict(sorted(contents.items()))


def _stale(repo: HubRepo, found: Found, contents: dict[str, bytes | Path]) -> set[str]:
    """What an earlier encoder published that this one does not have."""
    left = found.files - set(contents)
    evaluated = {path for path in left if path.startswith(".eval_results/")}
    ours = {path for path in evaluated if names_source(repo.text(path, found.sha), repo.url)}
    return ({*FILES, *FIGURES, *code_files(found.config)} & left) | ours


def read_encoder_config(folder: Path) -> dict:
    """The `config.json` of a folder that `orthossl pretrain` wrote, whose weights are there and readable.

    Raises:
        FileNotFoundError: no such folder, or no configuration or weights in it.
        ValueError: one of them is broken, or the folder is not one of ours.
    """
    EncoderRecord.read(folder)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has no model.safetensors: pass a run of orthossl pretrain that ended")
    try:
        with safe_open(weights, "pt") as opened:
            opened.keys()
    except SafetensorError as error:
        raise ValueError(f"{weights} is broken ({error}): write the encoder folder anew") from error
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def code_files(config: dict) -> set[str]:
    """The modules beside `config.json` that loading the encoder runs."""
    classes = config.get("auto_map") or {}
    return {f"{name.split('.')[0]}.py" for name in classes.values() if re.fullmatch(r"\w+\.\w+", str(name))}


def published_files(folder: Path, config: dict, card: str) -> dict[str, bytes | Path]:
    """Path in the repository → content, or where it lies; without the card, but with the pictures that it shows."""
    names = {*FILES, *FIGURES, *code_files(config), *_PICTURE.findall(card)}
    return {name: folder / name for name in sorted(names) if (folder / name).is_file()}


def size_of(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def refuse_tokens(contents: dict[str, bytes | Path], token: str | None = None) -> None:
    """Raises a ValueError if something that looks like an access token, or `token` itself, is in one of the files."""
    for name, content in contents.items():
        text = content if isinstance(content, bytes) else _readable_part(content)
        found = TOKEN.search(text)
        if found or (token and token.encode() in text):
            shown = f" ({found[0][:6].decode()}…)" if found else ""
            raise ValueError(
                f"{name} holds an access token{shown}: remove it; nothing was published. If others have seen the file, "
                "revoke the token"
            )


def _readable_part(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    # Numbers follow the header; only the header holds text.
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))
