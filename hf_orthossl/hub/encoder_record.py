"""The origin of an encoder, recorded in its `config.json`, and the Python calls that load the encoder."""

import dataclasses
import math
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict

from ..untrusted import read_object
from .escaping import Safe, literal

if TYPE_CHECKING:
    from ..methods import SSLMethod

POOLINGS = ("pooler_output", "cls", "mean", "mean_channels_last", "summary", "cls_token_value", "feature_maps")
# The channels of an image; as in `encoders/description.py`, which imports torch.
MAX_CHANNELS = 1024


@dataclass(frozen=True)
class EncoderRecord:
    """The origin and the use of an encoder: the `orthossl` block of its `config.json`.

    Args:
        backbone (`str`): Name of the architecture: a timm name, a Hub id, or the last part of a folder's path.
        backbone_config (`dict`, *optional*): Arguments of the architecture that differ from its defaults.
        num_features (`int`): Dimension D of the representation.
        parameters (`int`, *optional*): Number of the encoder's parameters.
        image_size (`int`): Height and width of the input images, in pixels.
        mean (`list[float]`): Mean of each of the C channels, for normalizing images in [0, 1].
        std (`list[float]`): Standard deviation of each channel.
        pooling (`str`): The part of the output of `AutoModel` that is the representation, see
            `Encoder.pooling`.
        method (`str`): The name of the SSL method, see `orthossl methods`.
        method_config (`dict`, *optional*): Hyper-parameters of the method.
        regularizer (`str`, *optional*): The name of a penalty; `None` without one.
        regularizer_config (`dict`, *optional*): Other arguments of the penalty.
        gamma (`float`, *optional*): Weight γ of the penalty in the loss; `None` without one.
        penalty_mode (`str`, *optional*): How the penalty acted, "loss" or "decoupled"; `None` without one.
        strength (`float`, *optional*): Strength λ of a decoupled penalty.
        constrain (`str`, *optional*): What the weights were constrained to, "orthogonal"; `None` for free ones.
        whitening (`float`, defaults to 0): Weight of the feature whitening loss.
        embedding_regularizer (`str`, *optional*): The name of an embedding regularizer; `None` without one.
        embedding_weight (`float`, *optional*): Its weight w; `None` without one.
        embedding_layer (`str`, *optional*): What it acted on, "embedding" or "representation"; `None` without one.
        embedding_config (`dict`, *optional*): Its options.
        dataset (`str`, *optional*): Training data: a Hub id, or the name of a folder.
        split (`str`, *optional*): Split of the data set.
        num_images (`int`, *optional*): Number of images in the split; `None` for a stream.
        base_model (`str`, *optional*): Hub id of the initial weights; `None` if they were random or are unknown.
        training (`dict`, *optional*): Settings of the training, as [`training_record`] returns them; JSON values.
        version (`str`, *optional*): Version of this package.
        commit (`str`, *optional*): Commit of this package's checkout, ending in `-dirty` if files were changed.
        library (`str`, defaults to `"timm"`): Library that loads the encoder, "timm" or "transformers"; not part
            of the block.
        remote_code (`bool`, defaults to `False`): Whether code in the folder defines the architecture;
            not part of the block.
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
    penalty_mode: str | None = None
    strength: float | None = None
    constrain: str | None = None
    whitening: float = 0.0
    embedding_regularizer: str | None = None
    embedding_weight: float | None = None
    embedding_layer: str | None = None
    embedding_config: dict = field(default_factory=dict)
    dataset: str | None = None
    split: str | None = None
    num_images: int | None = None
    base_model: str | None = None
    training: dict = field(default_factory=dict)
    version: str | None = None
    commit: str | None = None
    parameters: int | None = None
    # Determined from the rest of config.json.
    library: str = "timm"
    remote_code: bool = False

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read and validate the record of an encoder folder; the file is untrusted.

        Raises:
            FileNotFoundError: There is no `config.json`.
            ValueError: The file is not JSON within the limits of `untrusted.py`, was not written by this package, or
                has an entry of the wrong type.
        """
        path = Path(folder) / "config.json"
        try:
            config = read_object(Path(folder), path.name)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} does not exist: pass an encoder folder, such as runs/default/encoder"
            ) from None
        block = config.get("orthossl")
        if not isinstance(block, dict):
            raise ValueError(f"{path} has no orthossl block: pass an encoder that orthossl pretrain wrote")
        values: dict[str, Any] = {}
        for spec in dataclasses.fields(cls)[:-2]:
            required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            if spec.name in block:
                values[spec.name] = _checked(path, spec, block[spec.name])
            elif required:
                raise ValueError(f"{path}: orthossl.{spec.name} is missing: export the encoder again with this version")
        if values["pooling"] not in POOLINGS:
            pooling = values["pooling"][:80]
            raise ValueError(f"{path}: orthossl.pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if len(values["mean"]) != len(values["std"]):
            raise ValueError(
                f"{path}: orthossl.mean must be as many numbers as orthossl.std, one per channel, got "
                f"{len(values['mean'])} and {len(values['std'])}"
            )
        return cls(**values, **library_of(config))

    def to_dict(self) -> dict:
        """Return the `orthossl` block of `config.json`."""
        values = dataclasses.asdict(self)
        del values["library"], values["remote_code"]
        return values

    @property
    def known_method(self) -> "type[SSLMethod] | None":
        """Return the class of the method; `None` if this version does not have it."""
        # Imported only when needed, because it imports torch, which reading a record does not need.
        from ..methods import get_method

        try:
            return get_method(self.method)
        except ValueError:
            return None

    @property
    def title(self) -> str:
        """Return the method's title, as its authors write it."""
        return self.known_method.title if self.known_method else self.method

    @property
    def short_name(self) -> str:
        """Return backbone, method, penalty and embedding regularizer joined by hyphens, such as "resnet18-byol-so"."""
        parts = [self.backbone.rpartition("/")[2], self.method, self.regularizer, self.embedding_regularizer]
        return "-".join(part for part in parts if part)


def is_ours(config) -> bool:
    """Return whether a `config.json` was written by this package."""
    return isinstance(config, dict) and isinstance(config.get("orthossl"), dict)


class Loadable(Protocol):
    """The attributes that [`loading_calls`] needs: the library, and whether code of the repository is needed."""

    @property
    def library(self) -> str:
        """Return the library that loads the encoder, "timm" or "transformers"."""
        ...

    @property
    def remote_code(self) -> bool:
        """Return whether code next to the weights defines the architecture."""
        ...


class Library(TypedDict):
    """The attributes of [`Loadable`] as a dictionary."""

    library: str
    remote_code: bool


def library_of(config: dict) -> Library:
    """Return library and need for remote code of the encoder with this `config.json`."""
    return {"library": "timm" if "architecture" in config else "transformers", "remote_code": "auto_map" in config}


def loading_calls(
    encoder: Loadable, location: str, revision: str | None = None, *, is_folder: bool = False
) -> dict[str, Safe | None]:
    """Return Python calls that load an encoder without this package.

    Args:
        encoder ([`Loadable`]): An [`EncoderRecord`], or an entry of a leaderboard.
        location (`str`): Hub id, or path of a folder.
        revision (`str`, *optional*): Branch on the Hub; defaults to the main one.
        is_folder (`bool`, defaults to `False`): Whether `location` is a folder.

    Returns:
        `dict`: `timm_call`, `None` if timm does not have the architecture; `auto_call`, with transformers; `location`,
        the arguments that name the location; `trust`, the argument that allows code of the repository, or an empty
        string.
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
    """Return the git commit of this package's checkout.

    Returns:
        `str` or `None`: The commit, ending in `-dirty` if files were changed; `None` if the package is installed.
    """

    def git(*arguments: str) -> str:
        # Optional locks could make a concurrent git command in this checkout fail.
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        command, folder = ["git", *arguments], Path(__file__).parents[1]
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
            encoding="utf-8",
            timeout=10,
        ).stdout

    try:
        # A virtual environment inside another repository is not a checkout of this package.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip() or None
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _checked(path: Path, spec: dataclasses.Field, value: Any) -> Any:
    """Return an untrusted value if it has the type of its field, else raise a ValueError."""
    if value is None and spec.default is None:
        return None
    if spec.type == list[float]:
        valid = isinstance(value, list) and 1 <= len(value) <= MAX_CHANNELS and all(map(_is_number, value))
        kind = f"1 to {MAX_CHANNELS} finite numbers, one per channel"
    elif spec.type in (float, float | None):
        valid, kind = _is_number(value), "a finite number"
    elif spec.type in (int, int | None):
        valid, kind = type(value) is int and 0 <= value < 2**53, "a whole number"
    elif spec.type in (str, str | None):
        valid, kind = isinstance(value, str), "text"
    else:
        expected = dict if spec.type is dict else bool
        valid, kind = isinstance(value, expected), "an object" if expected is dict else "true or false"
    if not valid:
        raise ValueError(f"{path}: orthossl.{spec.name} must be {kind}, got {str(value)[:80]!r}")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e300 and math.isfinite(value)
