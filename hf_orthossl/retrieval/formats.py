"""Write vectors to files: Parquet, NumPy's archive, or a NumPy array beside a table, each written from parts in order.

No format holds more than a part of the vectors in memory while it is written.
"""

import csv
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# The key of what was run, as JSON, in the metadata of a Parquet file.
ABOUT = "hf_orthossl"
VECTOR = "vector"
# Bytes of vectors in a row group: parts are collected until they have as many.
_GROUP = 32 * 1024**2

# A function that yields the parts in order, some of their columns or all: they are read more than once.
Parts = Callable[[Sequence[str] | None], Iterator[pa.Table]]


def output_files(output: Path) -> list[Path]:
    """Return the files that an output consists of, itself last.

    Raises:
        ValueError: Its name does not end in that of a format.
    """
    suffix = output.suffix.lower()
    if suffix not in WRITERS:
        raise ValueError(f"output is {str(output)!r}: its name must end in {', '.join(WRITERS)}")
    beside = [output.with_suffix(".csv"), output.with_suffix(".json")] if suffix == ".npy" else []
    return [*beside, output]


def vectors_of(table: pa.Table, shape: Sequence[int]) -> np.ndarray:
    """Return the vectors `(n, *shape)` of a part, float32."""
    values = table[VECTOR].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(table), *shape)


def _write_parquet(file: Path, parts: Parts, rows: int, about: dict[str, Any]) -> None:
    """Write a table with a column `vector`, a list of fixed size, and what ran in its metadata."""
    schema, waiting = next(parts(None)).schema.with_metadata({ABOUT: json.dumps(about)}), list[pa.Table]()
    # Numbers of a vector hardly ever repeat, so that a dictionary of them is a waste.
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["class"]) as writer:
        for table in parts(None):
            waiting.append(table)
            if sum(one[VECTOR].nbytes for one in waiting) >= _GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _write_npz(file: Path, parts: Parts, rows: int, about: dict[str, Any]) -> None:
    """Write the arrays `vectors`, `rows`, `paths`, `labels`, `class_names`, and `about` as JSON."""
    shape, names = tuple(about["shape"]), about["data"]["class_names"]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "vectors", np.float32, (rows, *shape), (vectors_of(table, shape) for table in parts(None)))
        known: list[str] = next(parts(None)).schema.names
        for column, array in (("row", "rows"), ("page", "pages"), ("label", "labels")):
            if column in known:
                values = (table[column].fill_null(-1).to_numpy() for table in parts([column]))
                _add(archive, array, np.int64, (rows,), values)
        longest = max((len(path) for table in parts(["path"]) for path in table["path"].to_pylist()), default=1)
        kind = np.dtype(f"U{longest}")
        paths = (np.array(table["path"].to_pylist(), dtype=kind) for table in parts(["path"]))
        _add(archive, "paths", kind, (rows,), paths)
        for name, value in (("class_names", names), ("about", json.dumps(about))):
            if value is not None:
                text = np.array(value)
                _add(archive, name, text.dtype, text.shape, iter([text]))


def _write_npy(file: Path, parts: Parts, rows: int, about: dict[str, Any]) -> None:
    """Write the vectors alone, and beside them what each row is (`.csv`) and what ran (`.json`)."""
    shape = tuple(about["shape"])
    with file.open("wb") as opened:
        _write_header(opened, np.float32, (rows, *shape))
        for table in parts(None):
            opened.write(np.ascontiguousarray(vectors_of(table, shape)).data)
    columns = [name for name in next(parts(None)).schema.names if name != VECTOR]
    with file.with_suffix(".csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as opened:
        written = csv.writer(opened)
        written.writerow(columns)
        for table in parts(columns):
            written.writerows(zip(*(table[name].to_pylist() for name in columns), strict=True))
    file.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


# The ending of an output's name → the function that writes it: file, parts, number of rows, what ran.
WRITERS: dict[str, Callable[[Path, Parts, int, dict[str, Any]], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".npy": _write_npy,
}


def _add(archive: zipfile.ZipFile, name: str, kind: Any, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as opened:
        _write_header(opened, kind, shape)
        for values in parts:
            opened.write(np.ascontiguousarray(values, dtype=kind).tobytes())


def _write_header(opened: Any, kind: Any, shape: tuple[int, ...]) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, about)
