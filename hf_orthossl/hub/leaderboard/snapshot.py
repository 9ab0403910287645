"""A board as files: `board.json` for the page, `board.parquet` for everyone, and a data set card."""

from pathlib import Path
from typing import Any

from ...files import replace_file
from .board_json import from_json, to_json
from .fetching import Fetcher, Gone, NoFile, NotRead
from .schema import Board, Entry, Measured
from .values import Refused

BOARD, TABLE, CARD = "board.json", "board.parquet", "README.md"
MAX_BYTES = 256 * 2**20
# By this a data set is known as ours.
MARK = "Made by `orthossl leaderboard build`."
_CARD = """---
pretty_name: Leaderboard of orthogonality-regularized encoders
tags:
- orthossl
- leaderboard
configs:
- config_name: default
  data_files: board.parquet
---

# Leaderboard of encoders published with orthossl

{encoders} encoders with {results} results, read from {endpoint} on {date}. {asides} entries were left out; `board.json`
lists each with the reason.

`board.parquet` has one row per result (an encoder without results has one row, with an empty `value`):

```python
from datasets import load_dataset

board = load_dataset("{location}", split="train")
```

`source` says who measured: "author", what the encoder's author published; "verified", the same where a re-run on the
published weights agreed; "board", that re-run's own number. `revision` is the commit of the encoder that was read.
Accuracies and average precisions are in [0, 1]. Names come from strangers: show them as text.

{mark}
"""


def table(board: Board) -> list[dict[str, Any]]:
    """The board as flat rows, one per result; an encoder without results has one row, with `value` `None`."""
    return [_row(entry, result) for entry in board.entries for result in entry.results or [None]]


def write_snapshot(board: Board, folder: str | Path, *, location: str | None = None) -> Path:
    """Writes `board.json`, `board.parquet` and the data set card; each file is replaced whole or not at all.

    Args:
        board ([`Board`]): What was collected.
        folder (`str` or `Path`): Where to; created.
        location (`str`, *optional*): Data set "owner/name" that the card names; the folder by default.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / BOARD, to_json(board).encode())
    replace_file(folder / TABLE, parquet(board))
    results = sum(len(entry.results) for entry in board.entries)
    card = _CARD.format(
        encoders=f"{len(board.entries):,}",
        results=f"{results:,}",
        asides=f"{len(board.asides):,}",
        endpoint=board.endpoint,
        date=board.collected_at[:10],
        location=location or folder.name,
        mark=MARK,
    )
    replace_file(folder / CARD, card.encode())
    return folder


def read_snapshot(location: str | Path, *, token: str | None = None) -> Board:
    """Reads a board, checked, from a folder or from a data set on the Hub.

    Args:
        location (`str` or `Path`): Folder that [`write_snapshot`] wrote, or data set "owner/name"; a `Path` is always
            a folder, so that a missing one is never looked for on the Hub.
        token (`str`, *optional*): For a private data set; defaults to the one of `hf auth login` or `HF_TOKEN`.

    Raises:
        FileNotFoundError: there is no board.
        ValueError: it is not of this form.
        OSError: the Hub does not answer.
    """
    content = read_part(location, BOARD, token=token)
    try:
        return from_json(content)
    except Refused as error:
        raise ValueError(
            f"{BOARD} of {location} is no board ({error}): build it anew with orthossl leaderboard build"
        ) from error
    except ValueError as error:
        raise ValueError(f"{BOARD} of {location}: {error}") from error


def read_part(location: str | Path, name: str, *, token: str | None = None) -> bytes:
    """One file of a snapshot; raises as [`read_snapshot`] does."""
    path = Path(location)
    if isinstance(location, Path) or path.is_dir():
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path} has no {name}: build it with orthossl leaderboard build --output_dir {path}"
            )
        if (path / name).stat().st_size > MAX_BYTES:
            raise ValueError(f"{path / name} is larger than {MAX_BYTES >> 20} MiB: it is no board")
        return (path / name).read_bytes()
    if str(location).count("/") != 1:
        raise FileNotFoundError(f"there is no board at {location}: pass a folder that exists, or a data set owner/name")
    try:
        return published_part(location, name, token=token)
    except NoFile as error:
        raise FileNotFoundError(
            f"the data set {location} has no {name}: orthossl leaderboard build --push_to_hub {location} writes one"
        ) from error
    except Gone as error:
        raise FileNotFoundError(
            f"there is no folder {location}, and no data set of this name, or not for this token: pass a folder that "
            "orthossl leaderboard build wrote, or a data set owner/name"
        ) from error
    except NotRead as error:
        raise OSError(f"there is no folder {location}, and as a data set it cannot be read: {error}") from error


def published_part(dataset: str, name: str, *, token: str | None = None) -> bytes:
    """One file of a snapshot in a data set "owner/name", also where a folder here has that name.

    Raises:
        Gone, NoFile: there is no such data set, or no such file in it.
        OSError: the Hub does not answer.
    """
    return Fetcher(token=token).file(dataset, "main", name, MAX_BYTES, kind="dataset")


def _row(entry: Entry, result: Measured | None) -> dict[str, Any]:
    summary = entry.spectra.summary if entry.spectra else {}
    about = {
        "repo_id": entry.repo_id,
        "backbone": entry.backbone,
        "method": entry.method,
        "regularizer": entry.regularizer,
        "gamma": entry.gamma,
        "pretrained_on": entry.pretrained_on,
        "image_size": entry.image_size,
        "parameters": entry.parameters,
    }
    names = ("task", "dataset", "split", "metric", "value", "low", "high", "protocol", "source", "date")
    measured = {name: getattr(result, name, None) for name in names}
    spectral = {name: summary.get(name) for name in ("effective_rank", "relative_rank", "rankme", "alpha")}
    return about | measured | spectral | {"revision": entry.revision, "last_modified": entry.last_modified}


def parquet(board: Board) -> bytes:
    """The rows of [`table`] as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = ("gamma", "value", "low", "high", "effective_rank", "relative_rank", "rankme", "alpha")
    integers = ("image_size", "parameters")
    # Named, as a column without any value would have no type.
    names = list(_row(_NOBODY, None))
    kinds = [pa.float64() if n in numbers else pa.int64() if n in integers else pa.string() for n in names]
    rows = pa.Table.from_pylist(table(board), schema=pa.schema(list(zip(names, kinds, strict=True))))
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    return sink.getvalue().to_pybytes()


_NOBODY = Entry("", "", "", None, "", "", None, None, None, 0, None, [], None, None)
