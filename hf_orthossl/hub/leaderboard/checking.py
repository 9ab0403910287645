"""From the files of one repository to its entry on the board; what does not pass is put aside with the reason."""

import re
from dataclasses import dataclass, field
from typing import Any

from ..card.sections import split_front_matter
from ..encoder_record import library_of
from . import values
from .parsing import parse_arrays, parse_json, parse_yaml
from .results_of import Results
from .schema import Aside, Entry, Spectra
from .spectra_of import spectra_of
from .values import Refused

CONFIG, CARD, WEIGHTS = "config.json", "README.md", "model.safetensors"
SCALARS, ARRAYS = "spectra.json", "spectra.safetensors"
_EVAL_FILE = re.compile(r"\.eval_results/[A-Za-z0-9][\w.-]{0,150}\.ya?ml", re.ASCII)
_PICKLE = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt|joblib|npy|npz)", re.IGNORECASE | re.DOTALL)


@dataclass
class Published:
    """What was read of one commit of a repository.

    Args:
        repo_id, revision, author, last_modified (`str`): Of the repository, by the Hub.
        sizes (`dict[str, int]`): Bytes of each file, by the Hub.
        weights (`str`, *optional*): SHA-256 of `model.safetensors`, by the Hub.
        parameters (`int`, *optional*): Numbers in it, by the Hub.
        files (`dict[str, bytes]`): What was read of the files that the board needs.
    """

    repo_id: str
    revision: str
    author: str
    last_modified: str | None
    sizes: dict[str, int] = field(default_factory=dict)
    weights: str | None = None
    parameters: int | None = None
    files: dict[str, bytes] = field(default_factory=dict)


def wanted_files(paths: list[str]) -> list[str]:
    """Those that the board reads, by exact names: no other path is ever asked for."""
    named = [path for path in (CONFIG, CARD, SCALARS, ARRAYS) if path in paths]
    return named + sorted(path for path in paths if _EVAL_FILE.fullmatch(path))


def check_names(published: Published) -> list[Aside]:
    """What is odd about the names of a repository's files."""
    asides = []
    tricks = [path for path in published.sizes if not _is_plain_path(path)]
    if tricks:
        shown = ", ".join(values.shown(path) for path in tricks[:3])
        asides.append(
            ("file names", f"some would leave their folder or cannot be read ({len(tricks)}), none is opened: {shown}")
        )
    pickles = [path for path in published.sizes if _PICKLE.fullmatch(path)]
    if pickles:
        shown = ", ".join(values.shown(path) for path in pickles[:3])
        asides.append(("pickles", f"some can run code when loaded ({len(pickles)}), none is opened: {shown}"))
    return [Aside(published.repo_id, published.revision, *about) for about in asides]


def check(published: Published) -> tuple[Entry | None, list[Aside]]:
    """The entry of a repository, or `None`, and what was put aside. Never raises, whatever the files hold."""
    results = Results(published.repo_id, published.revision)
    try:
        entry = _entry(published, results)
    except Refused as error:
        results.aside(error.field, error.reason)
        entry = None
    return entry, check_names(published) + results.asides


def _entry(published: Published, results: Results) -> Entry:
    if WEIGHTS not in published.sizes:
        raise Refused(WEIGHTS, "is missing: only safetensors are ever loaded, never a pickle")
    if CONFIG not in published.files:
        raise Refused(CONFIG, "is missing or could not be read")
    config = parse_json(published.files[CONFIG], CONFIG)
    block = config.get("orthossl")
    if not isinstance(block, dict):
        raise Refused(CONFIG, "has no orthossl block: the tag alone makes no entry")
    num_features = values.count("num_features", block.get("num_features"), 10**6)
    results.trained_on = tuple(str(block.get(name) or "").lower() for name in ("dataset", "split"))
    _add_results(published, results)
    regularizer, gamma = _penalty(block, results)
    return Entry(
        repo_id=published.repo_id,
        revision=published.revision,
        author=published.author,
        last_modified=published.last_modified,
        backbone=values.name("backbone", block.get("backbone")),
        method=values.name("method", block.get("method"), 40),
        regularizer=regularizer,
        gamma=gamma,
        pretrained_on=_optional(results, values.name, "dataset", block),
        image_size=values.count("image_size", block.get("image_size"), 10_000),
        parameters=published.parameters,
        results=results.merged(),
        spectra=_spectra(published, results, num_features),
        library_version=_optional(results, values.name, "version", block, 40),
        weights=published.weights,
        **_length(block, results),
        **library_of(config),
    )


def _penalty(block: dict, results: Results) -> tuple[str | None, float | None]:
    """The penalty and its weight; one of weight 0 is none, whatever it is called."""
    named = block.get("regularizer")
    if isinstance(named, str) and named.strip().lower() in ("", "none"):
        return None, None
    gamma = _optional(results, values.number, "gamma", block, 0, 1e9)
    regularizer = _optional(results, values.name, "regularizer", block, 40) if gamma != 0 else None
    return regularizer, gamma if regularizer else None


def _length(block: dict, results: Results) -> dict[str, Any]:
    training = block.get("training")
    training = training if isinstance(training, dict) else {}
    return {
        "steps": _optional(results, values.count, "steps", training),
        "epochs": _optional(results, values.number, "epochs", training, 0, 1e9),
        "images_per_step": _optional(results, values.count, "images_per_step", training),
    }


def _add_results(published: Published, results: Results) -> None:
    for path in sorted(published.files):
        if _EVAL_FILE.fullmatch(path):
            try:
                results.add_eval_file(path, parse_yaml(published.files[path], path))
            except Refused as error:
                results.aside(error.field, error.reason)
    if CARD not in published.files:
        return
    try:
        front, _ = split_front_matter(published.files[CARD].decode("utf-8", errors="replace"))
        metadata = parse_yaml(front, "the card's metadata")
        results.add_model_index(metadata.get("model-index") if isinstance(metadata, dict) else None)
    except Refused as error:
        results.aside(error.field, error.reason)


def _spectra(published: Published, results: Results, num_features: int) -> Spectra | None:
    if SCALARS not in published.files:
        return None
    try:
        scalars = parse_json(published.files[SCALARS], SCALARS)
        arrays = parse_arrays(published.files.get(ARRAYS, b""), ARRAYS)
        return spectra_of(scalars, arrays, num_features)
    except Refused as error:
        results.aside(error.field, error.reason)
        return None


def _optional(results: Results, read: Any, name: str, block: dict, *limits: Any) -> Any:
    """An entry that the board can do without: what is wrong with it goes aside, and the encoder stays."""
    if block.get(name) is None:
        return None
    try:
        return read(name, block[name], *limits)
    except Refused as error:
        results.aside(error.field, error.reason)
        return None


def _is_plain_path(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and ":" not in path and not {"", ".", ".."} & set(parts)
