"""Turn the files of one repository into its entry on the board; what fails a check is rejected with the reason."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from ...card.sections import split_front_matter
from ...encoder_record import library_of
from ..schema import (
    Constraint,
    Count,
    EmbeddingLayer,
    Entry,
    Name,
    PenaltyMode,
    RejectedError,
    Rejection,
    ShortName,
    Size,
    Spectra,
    Weight,
    checked,
    shown,
    whole_to,
)
from .parse import parse_arrays, parse_object, parse_yaml
from .read import RESULTS, Claims
from .spectra import spectra_of

CONFIG, CARD, WEIGHTS = "config.json", "README.md", "model.safetensors"
SCALARS, ARRAYS = "spectra.json", "spectra.safetensors"
_NAMED = (CONFIG, CARD, RESULTS, SCALARS, ARRAYS)
_WIDTH = Annotated[int, whole_to(10**6)]
_EVAL_FILE = re.compile(r"\.eval_results/[A-Za-z0-9][\w.-]{0,150}\.ya?ml", re.ASCII)
_PICKLE = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt|joblib|npy|npz)", re.IGNORECASE | re.DOTALL)


@dataclass
class Published:
    """The parts of one commit of a repository that the board reads: all but `files` is what the Hub says."""

    repo_id: str
    revision: str
    author: str
    last_modified: str | None
    # Bytes of each file.
    sizes: dict[str, int] = field(default_factory=dict)
    # SHA-256 of `model.safetensors`, and numbers in it.
    weights: str | None = None
    parameters: int | None = None
    # Contents of the files that were read.
    files: dict[str, bytes] = field(default_factory=dict)


def wanted_files(paths: list[str]) -> list[str]:
    """Return the paths that the board reads, by exact names: no other path is ever requested."""
    return [path for path in _NAMED if path in paths] + sorted(path for path in paths if _EVAL_FILE.fullmatch(path))


def check(published: Published) -> tuple[Entry | None, list[Rejection]]:
    """Return the entry of a repository, or `None`, and what was rejected; never raise, whatever the files hold."""
    claims = Claims(published.repo_id, published.revision)
    for name, reason in _suspicious_names(list(published.sizes)):
        claims.reject(name, reason)
    return claims.attempt(_entry, published, claims), claims.rejected


def _entry(published: Published, claims: Claims) -> Entry:
    if WEIGHTS not in published.sizes:
        raise RejectedError(WEIGHTS, "is missing: only safetensors are ever loaded, never a pickle")
    if CONFIG not in published.files:
        raise RejectedError(CONFIG, "is missing or could not be read")
    config = parse_object(published.files[CONFIG], CONFIG)
    block = config.get("orthossl")
    if not isinstance(block, dict):
        raise RejectedError(CONFIG, "has no orthossl block: the tag alone makes no entry")
    training: Any = block.get("training")
    training = training if isinstance(training, dict) else {}

    def optional(kind: Any, name: str, settings: dict = block) -> Any:
        return _optional(claims, kind, name, settings)

    num_features = checked(_WIDTH, "num_features", block.get("num_features"))
    claims.trained_on = str(block.get("dataset") or "").lower(), str(block.get("split") or "").lower()
    _add_claims(published, claims)
    return Entry(
        repo_id=published.repo_id,
        revision=published.revision,
        author=published.author,
        last_modified=published.last_modified,
        backbone=checked(Name, "backbone", block.get("backbone")),
        method=checked(ShortName, "method", block.get("method")),
        pretrained_on=optional(Name, "dataset"),
        image_size=checked(Size, "image_size", block.get("image_size")),
        parameters=published.parameters,
        results=claims.merged(),
        spectra=claims.attempt(_spectra, published, num_features),
        library_version=optional(ShortName, "version"),
        weights=published.weights,
        steps=optional(Count, "steps", training),
        epochs=optional(Weight, "epochs", training),
        images_per_step=optional(Count, "images_per_step", training),
        **_remedies(block, training, claims),
        **library_of(config),
    )


def _remedies(block: dict, training: dict, claims: Claims) -> dict[str, Any]:
    """Return the fields of an entry that say what acted against collapse; what has the weight 0 did not act."""
    before = len(claims.rejected)
    penalty = _named(block, "regularizer", "gamma", "penalty_mode", "strength")
    mode = _optional(claims, PenaltyMode, "penalty_mode", {"penalty_mode": "loss"} | penalty)
    # γ weighs a penalty in the loss, λ a decoupled one.
    weight_name = "strength" if mode == "decoupled" else "gamma"
    weight = _optional(claims, Weight, weight_name, penalty)
    kind = _optional(claims, ShortName, "regularizer", penalty) if weight != 0 else None
    embedding = _named(block, "embedding_regularizer", "embedding_layer", "embedding_weight")
    embedding_weight = _optional(claims, Weight, "embedding_weight", embedding)
    embedding_kind = _optional(claims, ShortName, "embedding_regularizer", embedding) if embedding_weight != 0 else None
    remedies = {
        "regularizer": kind,
        "gamma": None,
        **({"penalty_mode": mode, weight_name: weight} if kind else {}),
        "embedding_regularizer": embedding_kind,
        "embedding_layer": _optional(claims, EmbeddingLayer, "embedding_layer", embedding) if embedding_kind else None,
        "embedding_weight": embedding_weight if embedding_kind else None,
        "constrain": _optional(claims, Constraint, "constrain", _named(block, "constrain")),
        "whitening": _optional(claims, Weight, "whitening", block) or None,
        "optimizer": _optional(claims, ShortName, "optimizer", training),
    }
    return remedies | {"remedies_read": len(claims.rejected) == before}


def _named(block: dict, name: str, *belonging: str) -> dict[str, Any]:
    """Return a setting and what belongs to it, as far as they are there; nothing if its name is "none" or empty."""
    value = block.get(name)
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none")):
        return {}
    return {one: block[one] for one in (name, *belonging) if block.get(one) is not None}


def _optional(claims: Claims, kind: Any, name: str, settings: dict) -> Any:
    """Return a setting that the board can do without: a malformed one is rejected, and the encoder stays."""
    value = settings.get(name)
    return None if value is None else claims.attempt(checked, kind, name, value)


def _add_claims(published: Published, claims: Claims) -> None:
    """Read the three forms: the two that state protocols as data first."""
    files = published.files
    if RESULTS in files:
        claims.attempt(claims.add_results_json, files[RESULTS])
    if CARD in files:
        front, _ = split_front_matter(files[CARD].decode("utf-8", errors="replace"))
        metadata = claims.attempt(parse_yaml, front, "the card's metadata")
        claims.add_model_index(metadata.get("model-index") if isinstance(metadata, dict) else None)
    for path in sorted(files):
        if _EVAL_FILE.fullmatch(path):
            claims.attempt(claims.add_eval_file, path, files[path])


def _spectra(published: Published, num_features: int) -> Spectra | None:
    if SCALARS not in published.files:
        return None
    scalars = parse_object(published.files[SCALARS], SCALARS)
    return spectra_of(scalars, parse_arrays(published.files.get(ARRAYS, b""), ARRAYS), num_features)


def _suspicious_names(paths: list[str]) -> list[tuple[str, str]]:
    tricks = [path for path in paths if not _is_plain_path(path)]
    pickles = [path for path in paths if _PICKLE.fullmatch(path)]
    return [
        (kind, f"some {danger} ({len(named)}), none is opened: {', '.join(map(shown, named[:3]))}")
        for kind, danger, named in (
            ("file names", "would leave their folder or cannot be read", tricks),
            ("pickles", "can run code when loaded", pickles),
        )
        if named
    ]


def _is_plain_path(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and ":" not in path and not {"", ".", ".."} & set(parts)
