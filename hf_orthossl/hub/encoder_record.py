"""What an encoder folder says of itself: the `orthossl` block of its `config.json`, and how the encoder is loaded."""

import dataclasses
import json
import math
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from .escaping import Safe, literal

if TYPE_CHECKING:
    from ..methods import SSLMethod

POOLINGS = ("pooler_output", "cls", "mean")
_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class EncoderRecord:
    """Where an encoder comes from and how it is used.

    Args:
        backbone (`str`): What it was built from: a timm name, a Hub id, or the last part of a folder.
        backbone_config (`dict`, *optional*): Arguments of the architecture other than its own.
        num_features (`int`): D, numbers per image.
        image_size (`int`): Side of the images in pixels.
        mean, std (`list[float]`): Three numbers each, by which images in [0, 1] are normalized.
        pooling (`str`): Where `AutoModel` keeps the representation, "pooler_output", "cls" or "mean".
        method (`str`): The SSL method, as `orthossl methods` names it.
        method_config (`dict`, *optional*): Its hyper-parameters.
        regularizer (`str`, *optional*): The name of a penalty; `None` without one.
        regularizer_config (`dict`, *optional*): Further arguments of the penalty.
        gamma (`float`, *optional*): Weight γ of the penalty; `None` without.
        whitening (`float`, defaults to 0): Weight of feature whitening.
        dataset (`str`, *optional*): Training data: a Hub id, or the name of a folder.
        split (`str`, *optional*): The part trained on.
        num_images (`int`, *optional*): Images in it; `None` for a stream.
        base_model (`str`, *optional*): Hub id of the weights it started from; `None` if untrained or not known.
        training (`dict`, *optional*): How it was trained, as [`training_record`] says it; JSON values.
        version (`str`, *optional*): Of this package.
        commit (`str`, *optional*): Of this package's checkout, with `-dirty` if it had changes.
        library (`str`, defaults to "timm"): "timm" or "transformers", as the rest of `config.json` has it.
        remote_code (`bool`, defaults to `False`): Whether only code in the folder knows the architecture.
    """

    backbone: str
    num_features: int
    image_size: int
    mean: list[float]
    std: list[float]
    pooling: str
    method: str
    backbone_config: dict = field(default_factory=dict)
    method_config: dict = field(default_factory=dict)
    regularizer: str | None = None
    regularizer_config: dict = field(default_factory=dict)
    gamma: float | None = None
    whitening: float = 0.0
    dataset: str | None = None
    split: str | None = None
    num_images: int | None = None
    base_model: str | None = None
    training: dict = field(default_factory=dict)
    version: str | None = None
    commit: str | None = None
    # What the rest of config.json says, whoever wrote it.
    library: str = "timm"
    remote_code: bool = False

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The record of an encoder folder, checked: the file may come from anywhere.

        Raises:
            FileNotFoundError: there is no `config.json`.
            ValueError: it is not JSON, was not written by this package, or an entry is of the wrong kind.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: pass an encoder folder, such as runs/default/encoder")
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: it is no config.json of an encoder")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        block = config.get("orthossl") if isinstance(config, dict) else None
        if not isinstance(block, dict):
            raise ValueError(f"{path} has no orthossl block: only encoders that orthossl pretrain wrote have a card")
        values = {}
        for spec in dataclasses.fields(cls)[:-2]:
            required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            if spec.name in block:
                values[spec.name] = _checked(path, spec, block[spec.name])
            elif required:
                raise ValueError(f"{path}: orthossl.{spec.name} is missing: write the encoder anew with this version")
        if values["pooling"] not in POOLINGS:
            pooling = values["pooling"][:80]
            raise ValueError(f"{path}: orthossl.pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        return cls(**values, **library_of(config))

    def to_dict(self) -> dict:
        """The `orthossl` block."""
        values = dataclasses.asdict(self)
        del values["library"], values["remote_code"]
        return values

    @property
    def known_method(self) -> "type[SSLMethod] | None":
        """The method's class; `None` for a name that this version does not know."""
        # Needs torch, which what reads a record alone does without.
        from ..methods import get_method

        try:
            return get_method(self.method)
        except ValueError:
            return None

    @property
    def title(self) -> str:
        """The method as its authors write it."""
        return self.known_method.title if self.known_method else self.method

    @property
    def short_name(self) -> str:
        """Such as "resnet18-byol-so"."""
        parts = [self.backbone.rpartition("/")[2], self.method, self.regularizer]
        return "-".join(part for part in parts if part)


def is_ours(config) -> bool:
    """Whether a configuration is of an encoder that this package wrote."""
    return isinstance(config, dict) and isinstance(config.get("orthossl"), dict)


class Loadable(Protocol):
    """What is known of an encoder: "timm" or "transformers", and whether only code beside it knows the architecture."""

    @property
    def library(self) -> str:
        """Return the library that loads the encoder."""

    @property
    def remote_code(self) -> bool:
        """Return whether only code beside the weights knows the architecture."""


def library_of(config: dict) -> dict[str, str | bool]:
    """The fields of [`Loadable`] for an encoder with this `config.json`."""
    return {"library": "timm" if "architecture" in config else "transformers", "remote_code": "auto_map" in config}


def loading_calls(
    encoder: Loadable, location: str, revision: str | None = None, *, is_folder: bool = False
) -> dict[str, Safe | None]:
    """Python that loads an encoder without this package.

    Args:
        encoder ([`EncoderRecord`] or a board's [`~leaderboard.schema.Entry`]): Which library it is for.
        location (`str`): Hub id, or a folder.
        revision (`str`, *optional*): Branch on the Hub; the main one by default.
        is_folder (`bool`, defaults to `False`): What `location` is.

    Returns:
        `dict`: `timm_call` (`None` where timm alone does not know the architecture), `auto_call`, `location` (the
        arguments that say where it is) and `trust` (the one that runs code of the repository, or nothing).
    """
    source = f"local-dir:{location}" if is_folder else f"hf-hub:{location}" + (f"@{revision}" if revision else "")
    native_timm = encoder.library == "timm" and not encoder.remote_code
    where = Safe(literal(location) + (f", revision={literal(revision)}" if revision else ""))
    trust = Safe(", trust_remote_code=True" if encoder.remote_code else "")
    return {
        "timm_call": Safe(f"timm.create_model({literal(source)}, pretrained=True).eval()") if native_timm else None,
        "auto_call": Safe(f"AutoModel.from_pretrained({where}{trust}).eval()"),
        "location": where,
        "trust": trust,
    }


def package_commit() -> str | None:
    """The git commit that this package runs from, ending in `-dirty` if files were changed; `None` if installed."""
    here = Path(__file__).parents[1]
    # No lock is taken: another git command may be at work here.
    quiet = {"cwd": here, "env": os.environ | {"GIT_OPTIONAL_LOCKS": "0"}, "capture_output": True, "timeout": 10}
    try:
        # An environment inside someone's own repository is no checkout of this package.
        subprocess.run(["git", "ls-files", "--error-unmatch", "__init__.py"], check=True, **quiet)
        named = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(named, check=True, text=True, **quiet).stdout.strip() or None
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _checked(path: Path, spec: dataclasses.Field, value: Any) -> Any:
    if value is None and spec.default is None:
        return None
    if spec.type == list[float]:
        valid = isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
        kind = "three finite numbers"
    elif spec.type in (float, float | None):
        valid, kind = _is_number(value), "a finite number"
    elif spec.type in (int, int | None):
        valid, kind = type(value) is int and 0 <= value < 2**53, "a whole number"
    elif spec.type in (str, str | None):
        valid, kind = isinstance(value, str), "text"
    else:
        valid, kind = isinstance(value, spec.type), "an object" if spec.type is dict else "true or false"
    if not valid:
        raise ValueError(f"{path}: orthossl.{spec.name} must be {kind}, got {str(value)[:80]!r}")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e300 and math.isfinite(value)
