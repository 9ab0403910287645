"""What of an encoder folder may leave the machine."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .record import EncoderRecord

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


def is_ours(config) -> bool:
    """Whether a configuration is of an encoder that this package wrote."""
    return isinstance(config, dict) and isinstance(config.get("orthossl"), dict)


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
