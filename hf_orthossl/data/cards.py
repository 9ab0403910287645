"""Check where a data set sends its reader, by its card or its list of files: its author may be a stranger."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from datasets import config
from huggingface_hub import hf_hub_download

from ..untrusted import read_object

# Files in which `datasets` looks for the names of the files to read.
_CARDS = (config.REPOCARD_FILENAME, config.REPOYAML_FILENAME)
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?$", re.MULTILINE | re.DOTALL)
# Far above those of any real card.
_MAX_BYTES, _MAX_VALUES = 2**22, 10_000


def check_card(folder: Path, title: str, *, hub: bool = False) -> None:
    """Check that the card of a folder names only files inside of it, before `datasets` reads or requests them.

    Args:
        folder (`Path`): The folder of the data set.
        title (`str`): The name of the data set, for errors.
        hub (`bool`, defaults to `False`): Whether the card may name files of other data sets on the Hub.

    Raises:
        ValueError: The card names a file elsewhere, or cannot be read.
    """
    for name in _CARDS:
        path = folder / name
        if not path.is_file():
            continue
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"dataset {title}: {name} is larger than {_MAX_BYTES >> 20} MiB: shorten or remove it")
        text = path.read_text(encoding="utf-8", errors="replace")
        front = _FRONT.match(text)
        about = front["yaml"] if front else text if name == config.REPOYAML_FILENAME else ""
        try:
            content = yaml.safe_load(about)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"dataset {title}: the YAML of {name} cannot be read ({reason}): repair it") from error
        configs = content.get("configs") if isinstance(content, dict) else None
        for place in _places(configs):
            parts = place.replace("\\", "/").split("/")
            elsewhere = "://" in place or "::" in place or not parts[0] or ".." in parts or parts[0].endswith(":")
            if elsewhere and not (hub and re.match(r"hf://(?!.*::)(?!.*\.\.)", place)):
                raise ValueError(
                    f"dataset {title}: {name} names {place[:200]!r}, which is not inside of the data set: remove it "
                    "there, or pass the files themselves"
                )


def check_card_on_hub(dataset: str) -> None:
    """Check the card of a data set on the Hub as [`check_card`] does."""
    try:
        card = hf_hub_download(dataset, config.REPOCARD_FILENAME, repo_type="dataset")
    except Exception:  # without a card nothing can be wrong with it; what else is wrong is said when files are read
        return
    check_card(Path(card).parent, dataset, hub=True)


def check_saved(folder: Path, title: str) -> None:
    """Check that a folder of `save_to_disk` names only regular files in it, because opening a pipe waits for ever.

    Args:
        folder (`Path`): The folder.
        title (`str`): The name of the data set, for errors.

    Raises:
        ValueError: It names a file elsewhere, or one that is not there.
    """
    parts = [folder]
    if (folder / config.DATASETDICT_JSON_FILENAME).is_file():
        splits = _json(folder / config.DATASETDICT_JSON_FILENAME, title).get("splits")
        parts = [folder / _plain_name(name, title) for name in (splits if isinstance(splits, list) else ())]
    for part in parts:
        listed = _json(part / config.DATASET_STATE_JSON_FILENAME, title).get("_data_files")
        for entry in listed if isinstance(listed, list) else ():
            name = _plain_name(entry.get("filename") if isinstance(entry, dict) else entry, title)
            if not (part / name).is_file():
                raise ValueError(f"dataset {title}: {part / name} is not a regular file: save the data set again")
        # Read by `datasets` too.
        _json(part / config.DATASET_INFO_FILENAME, title)


def _plain_name(name: Any, title: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"(?!\.{1,2}$)[^/\\\0]{1,255}", name):
        raise ValueError(
            f"dataset {title} names {str(name)[:200]!r}, which is no file inside of it: save the data set again"
        )
    return name


def _json(path: Path, title: str) -> dict[str, Any]:
    """Return the object in a JSON file of a data set."""
    try:
        return read_object(path.parent, path.name)
    except (ValueError, OSError) as error:
        raise ValueError(f"dataset {title}: {error}") from error


def _places(configs: Any) -> Iterator[str]:
    """Yield the names of files and folders in the `configs` of a card."""
    entries = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    values = [entry.get(key) for entry in entries for key in ("data_files", "data_dir")]
    seen = 0
    while values:
        value, seen = values.pop(), seen + 1
        if seen > _MAX_VALUES:
            raise ValueError(f"the card of a data set names more than {_MAX_VALUES:,} files: pass the files themselves")
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
