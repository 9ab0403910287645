"""Write the vectors of all images of a data set to one file: in constant memory, by any number of processes, resumably.

The images are cut into parts of equal size. Each process computes whole parts and writes each as a file into a hidden
folder beside the output; a killed run loses the parts it was computing. When all are there, the main process joins them
to the output in order, which appears whole, and removes the folder. So neither kills nor processes change a row.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from .. import __version__
from ..data import ImageDataset, ImageSource
from ..data.fingerprint import difference
from ..data.unreadable import TooManyUnreadable, Unreadable, allowed, check_unreadable, left_out_note
from ..distributed.collectives import on_main, rank, shard_range, wait_for_all
from ..distributed.progress import here
from ..encoders import Encoder
from ..encoders.channels import match_channels
from ..encoders.embedding import VectorReader, normalized_batches
from ..evaluation.features import are_equal, encoder_key, weights_hash
from ..files import replace_file, replacing, replacing_files, require_writable
from ..locks import locked
from ..spectra.layers import evaluation_mode
from .formats import VECTOR, WRITERS, output_files, vectors_of

# A part has at most as many images and bytes of vectors: what a kill can lose, and what a process holds in memory.
PART_IMAGES, PART_BYTES = 1024, 32 * 1024**2
_SETTINGS = "settings.json"
# What of the record says only how something was called, and may differ when a run is continued.
_NAMES = ("encoder.model", "encoder.backbone", "data.name")


@dataclass
class EmbeddingFile:
    """A file of vectors that has been written.

    Args:
        path (`Path`): The file.
        images (`int`): The number of its rows.
        shape (`tuple[int, ...]`): The shape of each image's vectors: `(D,)`, or `(h, w, D)` with tokens.
        computed (`int`): How many images this run has computed; the others were there when it began.
        seconds (`float`): How long it computed.
        notes (`list[str]`): Sentences on what a reader of the file must know.
    """

    path: Path
    images: int
    shape: tuple[int, ...]
    computed: int
    seconds: float
    notes: list[str] = field(default_factory=list)


def embed_to_file(
    encoder: Encoder,
    source: ImageSource,
    output: str | Path,
    *,
    model: str | None = None,
    layer: str = "representation",
    tokens: str | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> EmbeddingFile:
    """Write one row per image of a data set: its path, its label if there are any, and its vector.

    Every process of a run calls this function. If a run was killed, the same call goes on.

    Args:
        encoder ([`Encoder`]): The encoder.
        source ([`ImageSource`]): The images, no stream.
        output (`str` or `Path`): The file, `.parquet`, `.npz` or `.npy`, which must not exist.
        model (`str`, *optional*): What the user calls the encoder, for the record.
        layer (`str`, defaults to "representation"): See [`VectorReader`].
        tokens (`str`, *optional*): See [`VectorReader`].
        batch_size (`int`, defaults to 256): Images per forward pass.
        num_workers (`int`, defaults to 0): Number of processes that decode images.
        progress (`bool`, defaults to `False`): Show a progress bar.
        say (`Callable`, *optional*): Receives lines on what is done.

    Returns:
        [`EmbeddingFile`]: What was written.

    Raises:
        ValueError: The output exists or has no known format, the layer does not exist, or the output was begun with
            another encoder, other images or another layer.
        TooManyUnreadable: More images cannot be read than the source allows.
        OSError: The output cannot be written.

    Example:
        >>> embed_to_file(load_encoder("runs/a", pretrained=True), load_source("images"), "features.parquet")
    """
    output = Path(output)
    folder = output.with_name(f".{output.name}.parts")
    on_main(lambda: require_new(output))
    if source.num_rows is None:
        raise ValueError(f"dataset {source.name} is a stream, whose rows have no numbers: open it as a whole")
    match_channels(encoder, source)
    reader = VectorReader(encoder, layer, tokens)
    with locked(folder, "output"):
        size, missing = on_main(lambda: _begin(folder, output, reader, source, model, batch_size))
        own = [missing[place] for place in shard_range(len(missing))]
        parts, total = -(-source.num_rows // size), source.num_rows
        todo = sum(min(size, total - number * size) for number in missing)
        if todo < total:
            say(f"resumed  {total - todo:,} of {total:,} images were embedded before")
        started = time.monotonic()
        settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
        settings["progress"] = "embedding" if progress and rank() == 0 else None
        _compute(reader, source, folder, own, size, settings)
        wait_for_all()
        seconds = time.monotonic() - started
        # The other processes wait while the main one copies, which may be long without computing.
        with here.waiting_elsewhere():
            images, notes = on_main(lambda: _finish(folder, output, source, parts))
    with contextlib.suppress(OSError):  # the lock removes only a folder that it has made
        folder.rmdir()
    return EmbeddingFile(output, images, reader.shape, todo, seconds, notes)


def require_new(output: Path) -> None:
    """Check that an output does not exist yet and can be written.

    Args:
        output (`Path`): The file.

    Raises:
        ValueError: It or a file beside it exists, or its name does not end in that of a format.
        OSError: Its folder cannot be written.
    """
    for file in output_files(output):
        if file.is_symlink() or file.exists():
            raise ValueError(f"output {file} exists: remove it, or pass another --output")
    require_writable(output.parent, argument="output")


def _begin(
    folder: Path, output: Path, reader: VectorReader, source: ImageSource, model: str | None, batch_size: int
) -> tuple[int, list[int]]:
    """Return the images of a part and the parts that are missing, after a check that a begun output is the same.

    Raises:
        ValueError: The output was begun otherwise.
    """
    path, about = folder / _SETTINGS, _record(reader, source, model)
    if not path.exists():
        most = max(min(PART_IMAGES, PART_BYTES // (4 * prod(reader.shape))), 1)
        size = max(most // batch_size, 1) * batch_size
        replace_file(path, json.dumps({"size": size, "about": about}), durable=True)
    else:
        begun = json.loads(path.read_text(encoding="utf-8"))
        _require_same(output, folder, begun["about"], about)
        size = begun["size"]
    parts = -(-about["data"]["rows"] // size)
    return size, [number for number in range(parts) if _part_metadata(folder, number) is None]


def _record(reader: VectorReader, source: ImageSource, model: str | None) -> dict[str, Any]:
    """Return what determines the vectors, as JSON."""
    encoder = reader.encoder
    about = {
        "package": f"hf_orthossl {__version__}",
        "encoder": {
            "model": model or encoder.name,
            "backbone": encoder.name,
            "weights": weights_hash(encoder),
            "key": encoder_key(encoder),
        },
        "layer": reader.layer,
        "tokens": reader.tokens,
        "pooling": reader.pooling,
        "shape": reader.shape,
        "preprocessing": {
            "resize": f"shorter side to {encoder.image_size} px, bicubic, centre cropped",
            "channels": encoder.channels,
            "mean": encoder.mean,
            "std": encoder.std,
            **source.pixels.settings(),
        },
        "data": {
            "fingerprint": source.fingerprint,
            "name": source.name,
            "split": source.split,
            "rows": source.num_rows,
            "class_names": source.class_names,
        },
    }
    # As it is read back: lists instead of tuples.
    return json.loads(json.dumps(about))


def _require_same(output: Path, folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with an output that was begun with another encoder, other data or another layer."""
    old, new = _flat(before), _flat(now)
    # The input of the encoder is part of its key, and is named by itself.
    for key in sorted(old | new, key=lambda key: key.startswith("encoder.")):
        if key in _NAMES or old.get(key) == new.get(key):
            continue
        if key == "data.fingerprint" and old.get(key) and new.get(key):
            what = f"other images ({difference(old[key], new[key])})"
        elif key in ("encoder.weights", "encoder.key"):
            what = f"another encoder ({old.get('encoder.model')}, of other weights or another input)"
        else:
            what = f"{key.rpartition('.')[2]} {old.get(key)}, which is {new.get(key)} now"
        raise ValueError(
            f"output {output} was begun with {what}: repeat that command, pass another --output, or remove {folder} "
            "to begin again"
        )


def _flat(about: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in about.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _compute(
    reader: VectorReader, source: ImageSource, folder: Path, parts: Sequence[int], size: int, settings: dict[str, Any]
) -> None:
    """Compute the vectors of some parts, in ascending order, and write each part when it is complete.

    Raises:
        TooManyUnreadable: The parts have more unreadable images than the whole data set may have.
    """
    encoder, total = reader.encoder, source.num_rows or 0
    dataset = ImageDataset(source, image_size=encoder.image_size, unreadable="omit")
    step, batches = settings.pop("batch_size"), []
    for number in parts:
        rows = range(number * size, min((number + 1) * size, total))
        batches += [rows[start : start + step] for start in range(0, len(rows), step)]
    unreadable: list[Unreadable] = []
    waiting, held = list(parts), list[tuple[Tensor, Tensor, Tensor]]()

    def write(until: int | None) -> None:
        """Write the parts before one that has begun; a part without readable images has no rows."""
        while waiting and waiting[0] != until:
            number = waiting.pop(0)
            missing = [image for image in unreadable if image.index // size == number]
            _write_part(folder, number, _table(reader, source, held), missing)
            held.clear()
            if len(unreadable) > allowed(total, source.max_unreadable):
                raise TooManyUnreadable.of(unreadable, total, source.max_unreadable)

    images = normalized_batches(encoder, dataset, batches=batches, unreadable=unreadable, **settings)
    with evaluation_mode(encoder), contextlib.closing(images):  # type: ignore[type-var]  # it is a generator
        for batch in images:
            write(until=int(batch["index"][0]) // size)
            held.append((batch["index"], batch["labels"], reader(batch["pixel_values"]).cpu()))
    write(until=None)


def _table(reader: VectorReader, source: ImageSource, held: Sequence[tuple[Tensor, Tensor, Tensor]]) -> pa.Table:
    """Return the rows of a part, from its batches of rows, labels and vectors."""
    empty = (torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), torch.empty(0, *reader.shape))
    index, labels, vectors = (torch.cat(parts) for parts in zip(empty, *held, strict=True))
    rows = index.tolist()
    columns: dict[str, Any] = {"row": pa.array(index.numpy()), "path": pa.array(source.names(rows), pa.string())}
    if source.page_of_row is not None:
        columns["page"] = pa.array([source.page(row) for row in rows], pa.int32())
    if source.label_column is not None:
        known = [label if label >= 0 else None for label in labels.tolist()]
        columns["label"] = pa.array(known, pa.int64())
        if names := source.class_names:
            columns["class"] = pa.array([None if label is None else names[label] for label in known], pa.string())
    flat = np.ascontiguousarray(vectors.numpy()).reshape(-1)
    columns[VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), prod(reader.shape))
    return pa.table(columns)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _write_part(folder: Path, number: int, table: pa.Table, unreadable: Sequence[Unreadable]) -> None:
    table = table.replace_schema_metadata({"unreadable": json.dumps(unreadable)})
    # The errors of a full disk name the bytes that are needed.
    with replacing(_part(folder, number), need=table.nbytes, otherwise="pass another --output") as partial:
        pq.write_table(table, partial, compression="none", use_dictionary=False)


def _part_metadata(folder: Path, number: int) -> tuple[int, list[Unreadable]] | None:
    """Return the number of rows of a part and its unreadable images; `None` if it is missing or damaged."""
    try:
        file = pq.ParquetFile(_part(folder, number))
        found = json.loads(file.schema_arrow.metadata[b"unreadable"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return file.metadata.num_rows, [Unreadable(*image) for image in found]


def _finish(folder: Path, output: Path, source: ImageSource, parts: int) -> tuple[int, list[str]]:
    """Join all parts to the output, remove them, and return the number of rows and sentences on them.

    Raises:
        ValueError: A part is missing.
        TooManyUnreadable: More images cannot be read than allowed.
    """
    found = [_part_metadata(folder, number) for number in range(parts)]
    if missing := [number for number, part in enumerate(found) if part is None]:
        raise ValueError(
            f"output {output}: {_part(folder, missing[0])} is missing: processes on several machines need a folder "
            "that all of them write to"
        )
    rows = sum(part[0] for part in found if part is not None)
    unreadable = [image for part in found if part is not None for image in part[1]]
    total = source.num_rows or 0
    check_unreadable(unreadable, total, source.max_unreadable)
    about = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))["about"]
    about |= {"images": rows, "unreadable": unreadable, "notes": left_out_note(unreadable, total, source.split)}
    judged = _Judge()

    def tables(columns: Sequence[str] | None) -> Iterator[pa.Table]:
        for number in range(parts):
            table = pq.read_table(_part(folder, number), columns=columns, partitioning=None)
            yield table.replace_schema_metadata(None)

    # Read once more before they are written, because what is found belongs into the file.
    for table in tables([VECTOR]):
        judged.see(torch.from_numpy(vectors_of(table, about["shape"]).copy()).flatten(1))
    about["notes"] += judged.notes()
    with replacing_files(output.parent, otherwise="pass another --output") as unfinished:
        WRITERS[output.suffix.lower()](unfinished / output.name, tables, rows, about)
    for path in folder.iterdir():
        if path.name == _SETTINGS or path.name.startswith("part-"):
            path.unlink()
    return rows, about["notes"]


class _Judge:
    """Find in vectors that pass by in parts whether all are equal, and how many are not finite."""

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.count, self.not_finite, self.equal = 0, 0, True

    def see(self, vectors: Tensor) -> None:
        """Look at the vectors `(n, D)` of a part."""
        if not len(vectors):
            return
        self.first = vectors[:1] if self.first is None else self.first
        self.count += len(vectors)
        self.not_finite += int((~vectors.isfinite().all(dim=1)).sum())
        self.equal = self.equal and are_equal(self.first, vectors)

    def notes(self) -> list[str]:
        """Return a sentence on each of the two, if it is so."""
        if self.not_finite:
            return [f"{self.not_finite:,} of {self.count:,} vectors are not finite: the encoder may have diverged."]
        if self.equal and self.count > 1:
            return [f"The vectors of all {self.count:,} images are equal: at this layer the encoder has collapsed."]
        return []
