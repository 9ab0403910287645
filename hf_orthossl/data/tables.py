"""Read lists and tables of image paths: a text file with one path per line, or a CSV or parquet file with columns."""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..messages import first_line, suggest
from .listing import SPLITS, ImageFile, LeftOut, Listing, split_kind

LISTS = (".txt", ".lst", ".list")
TABLES = (".csv", ".tsv", ".parquet", ".pq")
_PATH_COLUMNS = (
    *("image", "img", "path", "image_path", "img_path", "filepath", "file_path", "file", "filename", "file_name"),
    *("image_name", "image_file", "name", "id", "image_id"),
)
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "cls", "species", "y")
_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold", "usage")
# Extensions tried for a path without one.
_GUESSED = ("", ".jpg", ".png", ".jpeg", ".tif", ".JPG")
# Paths looked at to find the column that holds them.
_SAMPLED = 32


def holds_paths(file: Path, image_column: str | None = None) -> bool:
    """Return whether a parquet file is a table of paths rather than of encoded images.

    Args:
        file (`Path`): The file.
        image_column (`str`, *optional*): The column of images, if known.

    Raises:
        ValueError: The file is not parquet.
    """
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"dataset {file} cannot be read as parquet ({first_line(error)})") from error
    fields = [schema.field(image_column)] if image_column in schema.names else list(schema)
    binary = (
        *(pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_list, pa.types.is_large_list),
        pa.types.is_fixed_size_list,
        lambda kind: isinstance(kind, pa.BaseExtensionType),  # arrays of datasets
    )
    return not any(test(field.type) for field in fields for test in binary)


def list_paths(file: Path) -> Listing:
    """List the images that a text file names, one path per line, relative to the file.

    Empty lines and those that begin with "#" are skipped. A number or name after the path, separated by a tab, comma
    or space, is the label of the image.

    Raises:
        ValueError: The file is not text in UTF-8, or names no image that exists.
        OSError: The file cannot be read.
    """
    lines = [line.strip() for line in _read_text(file).splitlines()]
    paths: list[str] = []
    labels: list[str | None] = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        path, label = line, None
        if not _exists(file.parent, line) and (match := re.fullmatch(r"(.+?)(?:\t|\s*,\s*|\s+)([^\s,/]+)", line)):
            path, label = match.groups()
        paths.append(path)
        labels.append(label)
    return _listing(file, paths, labels if any(labels) else None, None, "the list")


def list_table(file: Path, image_column: str | None = None, label_column: str | None = None) -> Listing:
    """List the images that a CSV, TSV or parquet table names by paths, relative to the table.

    The column of paths is found by its usual names, else it is the first whose values are existing files. The column
    of labels and that of splits are optional and found by their usual names.

    Args:
        file (`Path`): The table; a CSV has a line of column names.
        image_column (`str`, *optional*): The column of paths.
        label_column (`str`, *optional*): The column of classes.

    Raises:
        ValueError: A column does not exist, none holds paths, or no image exists.
        OSError: The file cannot be read.
    """
    columns = _read_columns(file)
    for column, argument in ((image_column, "image_column"), (label_column, "label_column")):
        if column is not None and column not in columns:
            raise ValueError(f"{argument} {column!r} is not in {file}: {suggest(column, columns)}")
    column = image_column or _path_column(file, columns)
    split_column = _usual(columns, _SPLIT_COLUMNS, besides=(column, label_column))
    if split_column is not None and not all(split_kind(str(name)) for name in {*columns[split_column]}):
        split_column = None
    label_column = label_column or _usual(columns, _LABEL_COLUMNS, besides=(column, split_column))
    return _listing(
        file,
        [_text(value) for value in columns[column]],
        None if label_column is None else columns[label_column],
        None if split_column is None else [split_kind(str(name)) or "train" for name in columns[split_column]],
        f"column {label_column!r} of {file.name}",
    )


def _listing(
    file: Path,
    paths: Sequence[str],
    labels: Sequence[Any] | None,
    splits: Sequence[str] | None,
    classes_from: str,
) -> Listing:
    """Return the existing files among paths, with their classes and splits."""
    missing: list[str] = []
    twice = LeftOut("named more than once")
    found: dict[str, list[ImageFile]] = {}
    seen = set()
    labels = labels if labels is None else [None if _is_missing(label) else label for label in labels]
    numbers = labels is not None and all(label is None or _is_number(label) for label in labels)
    for place, name in enumerate(paths):
        path = _exists(file.parent, name)
        if path is None:
            missing.append(name)
            continue
        if path in seen:
            twice.count += 1
            twice.names += [name][: 3 - len(twice.names)]
            continue
        seen.add(path)
        label = None if labels is None else labels[place]
        if label is not None:
            label = int(label) if numbers else str(label)
        found.setdefault(splits[place] if splits else "train", []).append(ImageFile(path, name, label))
    if not found:
        such = f" (such as {missing[0]}): paths are relative to {file.parent}" if missing else ""
        raise ValueError(f"dataset {file} names no file that exists{such}")
    absent = LeftOut("missing", len(missing), missing[:3])
    return Listing(
        {split: found[split] for split in SPLITS if split in found},
        len(paths),
        [entry for entry in (absent, twice) if entry.count],
        classes_from if labels is not None and any(label is not None for label in labels) else None,
        missing=missing,
    )


def _exists(folder: Path, name: str) -> str | None:
    """Return the path of a regular file relative to a folder; one without its extension is found too."""
    for suffix in _GUESSED if "." not in os.path.basename(name)[1:] else ("",):
        path = os.path.join(folder, os.path.expanduser(name) + suffix)
        if os.path.isfile(path):
            return path
    return None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset {file} is not text in UTF-8 ({first_line(error)}): save it as UTF-8") from error


def _read_columns(file: Path) -> dict[str, list[Any]]:
    """Return the columns of a table by name; the values of a CSV are text."""
    if file.suffix.lower() in (".parquet", ".pq"):
        return pq.read_table(file).to_pydict()
    text = _read_text(file)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:4096].splitlines()[0] if text else "", delimiters=",;\t|")
    except (csv.Error, IndexError):
        dialect = csv.excel
    rows = [row for row in csv.reader(text.splitlines(), dialect) if row]
    if len(rows) < 2:
        raise ValueError(f"dataset {file} has no rows: it must have a line of column names and one line per image")
    names = [name.strip() for name in rows[0]]
    if uneven := next((place for place, row in enumerate(rows) if len(row) != len(names)), None):
        raise ValueError(
            f"dataset {file}: row {uneven + 1} has {len(rows[uneven])} values, but there are {len(names)} columns"
        )
    return {name: [row[place].strip() for row in rows[1:]] for place, name in enumerate(names)}


def _path_column(file: Path, columns: dict[str, list[Any]]) -> str:
    usual = [name for known in _PATH_COLUMNS for name in columns if name.lower() == known]
    for column in dict.fromkeys([*usual, *columns]):
        sample = [_text(value) for value in columns[column][:_SAMPLED]]
        if any(value and _exists(file.parent, value) for value in sample):
            return column
    raise ValueError(
        f"dataset {file} has no column of paths of existing files, relative to {file.parent}: pass image_column, one "
        f"of {', '.join(columns)}"
    )


def _usual(columns: dict[str, Any], names: Sequence[str], besides: Sequence[str | None]) -> str | None:
    return next(
        (column for name in names for column in columns if column.lower() == name and column not in besides), None
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _is_missing(label: Any) -> bool:
    return label is None or label != label or (isinstance(label, str) and label.strip().lower() in ("", "nan", "none"))


def _is_number(label: Any) -> bool:
    if isinstance(label, str):
        return re.fullmatch(r"-?\d{1,18}", label) is not None
    return isinstance(label, int) and abs(label) < 10**18
