"""Open what a user names as images: folders, lists, tables, shards, a Hub id, the digits, or a data set in memory."""

import functools
import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow.parquet as pq
from huggingface_hub import constants

from ..disk_errors import full_disk
from ..messages import describe, first_line, suggest
from .cards import check_card, check_card_on_hub, check_saved
from .digits import digits
from .items import is_items, table_of_items
from .listing import HELD_OUT, SPLITS, ImageFile, LeftOut, Listing, list_folders, readable_extensions, split_kind
from .shapes import shapes
from .tables import LISTS, TABLES, holds_paths, list_paths, list_table

AnyDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset
Splits: TypeAlias = dict[str, AnyDataset]

# Name → the data set that this package makes itself, without a network.
EMBEDDED = {"digits": digits, "shapes": shapes}
# The files by which a folder of `save_to_disk` is recognized.
_SAVED = ("state.json", "dataset_dict.json")
# The builder of `datasets` that reads shards of each kind.
_SHARDS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
# Beside shards, up to this many image files are figures of a data card.
_FIGURES = 16


@dataclass
class Opened:
    """A data set as the user named it: all its splits, and what is known of the files behind them.

    Args:
        splits (`dict`): The data set of each split.
        title (`str`): The name of the data set.
        listing ([`Listing`], *optional*): The image files by split, if the images are files.
        shards (`dict[str, list[str]]`): The local files of each split, if they hold many images each.
        given (`bool`): Whether the user passed a single split, which is then used whatever its name.
        left_out (`list`): What of the files is not used, for the user.
        within (`list[str]`, *optional*): The folders in which the files that rows name must lie, if somebody else may
            have written the rows; by default they may lie anywhere.
    """

    splits: Splits
    title: str
    listing: Listing | None = None
    shards: dict[str, list[str]] = field(default_factory=dict)
    given: bool = False
    left_out: list[LeftOut] = field(default_factory=list)
    within: list[str] | None = None


def open_splits(
    dataset: Any,
    name: str | None,
    streaming: bool,
    image_column: str | None = None,
    label_column: str | None = None,
    exclude: Iterable[str | Path] = (),
    arrays: bool = False,
) -> Opened:
    """Return all splits of a data set; see [`load_source`] for the arguments and errors.

    With `arrays`, NumPy files are images too.
    """
    if isinstance(dataset, list | tuple) and len(dataset) == 1 and isinstance(dataset[0], str | os.PathLike):
        dataset = dataset[0]
    if isinstance(dataset, str | os.PathLike):
        is_path, dataset = not isinstance(dataset, str), os.fspath(dataset)
        if dataset in EMBEDDED and not is_path:
            opened = Opened(dict(EMBEDDED[dataset]()), dataset)
        elif not (is_path or is_local(dataset)):
            return Opened(
                call_hub(datasets.load_dataset, dataset, name, streaming=streaming), dataset, within=_within([])
            )
        else:
            opened = _open_local([dataset], name, streaming, image_column, label_column, exclude, arrays)
    elif isinstance(dataset, list | tuple) and dataset and all(isinstance(d, str | os.PathLike) for d in dataset):
        paths = [os.fspath(path) for path in dataset]
        opened = _open_local(paths, name, streaming, image_column, label_column, exclude, arrays)
    elif isinstance(dataset, dict) and all(isinstance(part, AnyDataset) for part in dataset.values()):
        splits = {str(split): data for split, data in dataset.items()}
        opened = Opened(splits, _name_of(dataset), given=len(splits) == 1)
    elif isinstance(dataset, AnyDataset):
        opened = Opened({str(dataset.split or "train"): dataset}, _name_of(dataset), given=True)
    elif is_items(dataset):
        opened = Opened({"train": table_of_items(dataset)}, type(dataset).__name__, given=True)
    else:
        raise TypeError(
            f"dataset must be {', '.join(map(repr, EMBEDDED))}, a folder, a list or table of paths, a Hub id, a list "
            f"of Pillow images, or a data set of the datasets library or of torchvision's kind, got {describe(dataset)}"
        )
    if streaming:
        opened.splits = {split: _to_stream(data) for split, data in opened.splits.items()}
    return opened


def _name_of(dataset: Any) -> str:
    part = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    return getattr(getattr(part, "info", None), "dataset_name", None) or "given"


def _to_stream(data: AnyDataset) -> datasets.IterableDataset:
    if isinstance(data, datasets.IterableDataset):
        return data
    # Workers divide a stream by its shards, so there must be at least as many shards as workers.
    return data.to_iterable_dataset(num_shards=max(min(len(data), 64), 1))


def is_local(dataset: str) -> bool:
    """Return whether an argument names local files, or can only be an id on the Hub.

    Raises:
        FileNotFoundError: It is a path or pattern, and there is no such file.
    """
    path = Path(dataset).expanduser()
    if path.exists() or _is_pattern(dataset):
        return True
    relative = not path.is_absolute() and not dataset.startswith((".", "~"))
    if not relative or dataset.count("/") > 1 or path.suffix.lower() in {*LISTS, *TABLES, *_SHARDS}:
        raise FileNotFoundError(f"dataset {dataset}: there is no such file or folder")
    return False


def _is_pattern(dataset: str) -> bool:
    return not os.path.exists(dataset) and re.search(r"[*?\[{]", dataset) is not None


def _expand(pattern: str) -> list[Path]:
    """Return the files that a pattern with `*`, `?`, `[…]`, `**` and `{a,b}` or `{000..099}` matches.

    Raises:
        FileNotFoundError: There is none.
    """
    braces = re.search(r"\{([^{}]+)\}", pattern)
    if braces:
        start, end = pattern[: braces.start()], pattern[braces.end() :]
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
        if numbers:
            width = len(numbers[1])
            choices = [f"{number:0{width}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
        else:
            choices = braces[1].split(",")
        return [path for choice in choices for path in _expand(start + choice + end)]
    if not re.search(r"[*?\[]", pattern) or os.path.exists(pattern):
        files = [pattern]
    else:
        files = sorted(glob.glob(pattern, recursive=True))
    found = [Path(file) for file in files if os.path.exists(file)]
    if not found:
        raise FileNotFoundError(f"dataset {pattern}: there is no such file or folder")
    return found


def _open_local(
    given: list[str],
    name: str | None,
    streaming: bool,
    image_column: str | None,
    label_column: str | None,
    exclude: Iterable[str | Path],
    arrays: bool,
) -> Opened:
    """Open folders, lists, tables, shards or image files, all of one kind."""
    paths = [
        path
        for item in given
        for path in (_expand(os.path.expanduser(item)) if _is_pattern(item) else [Path(item).expanduser()])
    ]
    paths = list(dict.fromkeys(paths))
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"dataset {path}: there is no such file or folder")
    title = ", ".join(given)
    kinds = {_kind(path, image_column, arrays) for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"dataset names {' and '.join(sorted(kinds))}: pass several of one kind")
    kind = kinds.pop()
    columns = {"image_column": image_column, "label_column": label_column}
    if kind == "folders":
        return _without_columns(_open_folders(paths, title, name, streaming, exclude, arrays), columns)
    if kind == "shards":
        return _open_shards(paths, title, streaming)
    if kind == "lists of paths":
        is_list = [path.suffix.lower() in LISTS for path in paths]
        listings = [
            list_paths(path) if plain else list_table(path, image_column, label_column)
            for path, plain in zip(paths, is_list, strict=True)
        ]
        opened = _from_listing(functools.reduce(_united, listings), title)
        return _without_columns(opened, columns) if all(is_list) else opened
    files = [ImageFile(str(path), str(path)) for path in paths]
    return _without_columns(_from_listing(Listing({"train": files}, len(files), []), title), columns)


def _without_columns(opened: Opened, columns: dict[str, str | None]) -> Opened:
    """Return a data set; if it consists of listed files, refuse names of columns, which it does not have."""
    name = next((name for name, value in columns.items() if value is not None), None)
    if name is not None and opened.listing is not None:
        raise ValueError(
            f"{name} is {columns[name]!r}, but the images of {opened.title} are files without columns: leave it out"
        )
    return opened


def _kind(path: Path, image_column: str | None, arrays: bool) -> str:
    """Return what a path holds, in the plural."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "folders"
    if not path.is_file():
        raise ValueError(f"dataset {path} is not a regular file: pass a folder or a file")
    if suffix in (".parquet", ".pq"):
        return "lists of paths" if holds_paths(path, image_column) else "shards"
    if suffix in _SHARDS:
        return "shards"
    if suffix in LISTS or suffix in TABLES:
        return "lists of paths"
    if suffix in readable_extensions(arrays):
        return "image files"
    raise ValueError(
        f"dataset {path} is a {suffix or 'file without an extension'}: pass a folder, a list of paths "
        f"({', '.join((*LISTS, *TABLES))}), or shards ({', '.join(_SHARDS)})"
    )


def _united(first: Listing, second: Listing) -> Listing:
    splits = {
        split: first.splits.get(split, []) + second.splits.get(split, [])
        for split in dict.fromkeys([*first.splits, *second.splits])
    }
    return Listing(
        splits,
        first.seen + second.seen,
        first.left_out + second.left_out,
        first.classes_from or second.classes_from,
        first.notes + second.notes,
        missing=first.missing + second.missing,
    )


def _open_shards(files: Sequence[Path], title: str, streaming: bool) -> Opened:
    """Open files that hold many images each; their splits are those that their names or folders name."""
    builders = {_SHARDS[path.suffix.lower()] for path in files}
    if len(builders) > 1:
        raise ValueError(f"dataset {title} has files of several formats ({', '.join(sorted(builders))}): pass one")
    shards: dict[str, list[str]] = {}
    for path in files:
        kind = split_kind(path.name.split(".")[0], strict=False) or split_kind(path.parent.name)
        shards.setdefault(kind or "train", []).append(str(path))
    try:
        splits = datasets.load_dataset(builders.pop(), data_files=shards, streaming=streaming)
    except Exception as error:  # each builder of datasets raises its own classes
        raise full_disk(error) or ValueError(
            f"dataset {title} cannot be read ({_cause(error)}): check its files"
        ) from error
    # Training images first, whatever the order of the names.
    splits = {split: splits[split] for split in sorted(splits, key=SPLITS.index)}
    return Opened(splits, title, shards=shards, within=_within([path.parent for path in files]))


def _open_folders(
    folders: list[Path], title: str, name: str | None, streaming: bool, exclude: Iterable[str | Path], arrays: bool
) -> Opened:
    """Open one or several folders of images, or a folder of files that `datasets` reads."""
    if len(folders) == 1 and any((folders[0] / file).is_file() for file in _SAVED):
        check_saved(folders[0], title)
        try:
            saved = datasets.load_from_disk(str(folders[0]))
        except Exception as error:  # its files may hold anything
            raise ValueError(f"dataset {title} cannot be read ({_cause(error)}): save it again") from error
        if isinstance(saved, dict):
            return Opened({str(split): data for split, data in saved.items()}, title, within=_within(folders))
        return Opened({str(saved.split or "train"): saved}, title, given=True, within=_within(folders))
    listing = list_folders(folders, [Path(path) for path in exclude], arrays)
    images = sum(map(len, listing.splits.values()))
    if len(folders) > 1:
        return _from_listing(listing, title)
    described = [path for path in listing.tables if _describes_images(path)]
    shards = [path for path in listing.tables if Path(path).suffix.lower() in _SHARDS and _holds_images(path)]
    if not described and not (shards and images <= _FIGURES) and (images or not listing.tables):
        return _from_listing(listing, title)
    check_card(folders[0], title)
    try:
        if described:
            splits = datasets.load_dataset("imagefolder", data_dir=str(folders[0]), streaming=streaming)
        else:
            splits = datasets.load_dataset(str(folders[0]), name, streaming=streaming)
    except Exception as error:  # each builder of datasets raises its own classes
        raise full_disk(error) or ValueError(
            f"dataset {title} cannot be read ({_cause(error)}): check its files{what_else(listing)}"
        ) from error
    files = {"train": shards} if len(splits) == 1 else {}
    beside = [LeftOut("image files beside them", images)] if images else []
    splits = {str(split): data for split, data in splits.items()}
    return Opened(splits, title, shards=files, left_out=beside, within=_within(folders))


def _within(folders: Iterable[Path]) -> list[str]:
    """Return folders and those of the libraries, in which downloaded and unpacked files lie, as absolute paths."""
    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return [os.path.abspath(folder) for folder in (*folders, *caches)]


def _cause(error: BaseException) -> str:
    """Return the first line of the error that caused another; `datasets` says in its own only that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _describes_images(path: str) -> bool:
    """Return whether a file is the metadata of an image folder of `datasets`: it names files in a column."""
    file = Path(path)
    if file.stem != "metadata" or file.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        return False
    try:
        if file.suffix.lower() == ".parquet":
            header = " ".join(pq.read_schema(file).names)
        else:
            with file.open(encoding="utf-8", errors="replace") as lines:
                header = next(itertools.islice(lines, 1), "")
    except (OSError, ValueError):
        return False
    return re.search(r"\bfile_names?\b|_file_names?\b", header) is not None


def _holds_images(path: str) -> bool:
    """Return whether a shard holds images; a table of numbers beside images does not."""
    if not path.lower().endswith((".parquet", ".pq")):
        return True
    try:
        return not holds_paths(Path(path))
    except ValueError:
        return False


def _from_listing(listing: Listing, title: str) -> Opened:
    """Return the data set of listed files: an undecoded `image` column and, if there are classes, a `label` column."""
    labels = {file.label for files in listing.splits.values() for file in files} - {None}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    numbers: dict[Any, int | None] = {None: None}
    if labels and all(isinstance(label, int) for label in labels):
        features["label"] = datasets.Value("int64")
        numbers |= {label: int(label) for label in labels if label is not None}
    elif labels:
        names = sorted({str(label) for label in labels})
        features["label"] = datasets.ClassLabel(names=names)
        numbers |= {label: names.index(str(label)) for label in labels}
    splits = {}
    for split, files in listing.splits.items():
        columns: dict[str, list[Any]] = {"image": [{"bytes": None, "path": file.path} for file in files]}
        if labels:
            columns["label"] = [numbers[file.label] for file in files]
        splits[split] = datasets.Dataset.from_dict(columns, features=features, split=split)
    return Opened(splits, title, listing, left_out=listing.left_out)


def call_hub(function: Callable[..., Any], dataset: str, name: str | None, **options: Any) -> Any:
    """Call a function of `datasets` that reads from the Hub, once the card has been checked that it follows.

    Raises:
        ValueError: The card names files elsewhere, or the Hub does not provide the data set.
    """
    check_card_on_hub(dataset)
    try:
        return function(dataset, name, **options)
    except Exception as error:  # network, access, configuration and format raise many classes, with the same remedy
        remedy = suggest(dataset, EMBEDDED, otherwise="check the name and the connection, or pass a local folder")
        raise full_disk(error) or ValueError(
            f"dataset {dataset!r} is not a local folder and cannot be loaded from the Hub ({_cause(error)}): {remedy}"
        ) from error


def what_else(listing: Listing | None) -> str:
    """Return what a data set without images has."""
    if listing is None or not listing.left_out:
        return ""
    return f" among {listing.seen:,} files ({'; '.join(map(str, listing.left_out))})"


def default_split(opened: Opened) -> str:
    """Return the split used if none is requested: "train", else the first that is neither test nor validation.

    Raises:
        ValueError: All splits are named test or validation.
    """
    names = list(opened.splits)
    if "train" in names or opened.given:
        return "train" if "train" in names else names[0]
    usable = [name for name in names if split_kind(name, strict=False) not in HELD_OUT]
    if not usable:
        raise ValueError(
            f"data set {opened.title} has only the splits {', '.join(names)}, which are for measuring: pass --split "
            f"{names[0]} to use one of them nevertheless"
        )
    return usable[0]
