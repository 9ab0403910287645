"""A board as files: `board.json` for the page, `board.parquet` for everyone, and a data set card."""

import csv
import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....files import replace_file, replacing_files
from ...measurements import protocol_text
from ..fetch import Fetcher, Gone, NoFile, NotRead
from ..schema import Board, BoardResult, Entry, RejectedError, from_json, to_json

BOARD, TABLE, CARD = "board.json", "board.parquet", "README.md"
MAX_BYTES = 256 * 2**20
# Words in the card by which a data set is known as one of a board.
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

{encoders} encoders with {results} results, read from {endpoint} on {date}. {rejected} entries were rejected;
`board.json` lists each with the reason.

`board.parquet` has one row per result (an encoder without results has one row, with an empty `value`):

```python
from datasets import load_dataset

board = load_dataset("{location}", split="train")
```

`source` tells who measured: "author", a claim of the encoder's author; "verified", a claim that this board confirmed by
measuring the published weights again; "board", that measurement. `revision` is the commit of the encoder that was read.
`regularizer` is the penalty on the weights: with the `penalty_mode` "loss" one of weight `gamma` in the loss, with
"decoupled" a step of `strength` after the optimizer's. Other remedies against collapse are `constrain` (weights kept
"orthogonal"), `embedding_regularizer` (of weight `embedding_weight`, on `embedding_layer`), the weight of feature
`whitening`, and the `optimizer` where it is Muon or AdaMuon; none has the weight 0, which is empty. Where
`remedies_read` is false, one of these settings could not be read, and what is empty may not be absent.
Accuracies and average precisions are in [0, 1]. Names come from unknown authors: show them as text.

{mark}
"""
# Column of the table → type in Parquet; a column without any value would have none.
_COLUMNS = {
    **dict.fromkeys(("repo_id", "backbone", "method", "regularizer"), "string"),
    "gamma": "double",
    "penalty_mode": "string",
    "strength": "double",
    **dict.fromkeys(("constrain", "embedding_regularizer", "embedding_layer"), "string"),
    **dict.fromkeys(("embedding_weight", "whitening"), "double"),
    "optimizer": "string",
    "remedies_read": "bool",
    "pretrained_on": "string",
    **dict.fromkeys(("image_size", "parameters"), "int64"),
    **dict.fromkeys(("task", "dataset", "split", "metric"), "string"),
    **dict.fromkeys(("value", "low", "high"), "double"),
    **dict.fromkeys(("protocol", "source", "date"), "string"),
    **dict.fromkeys(("effective_rank", "relative_rank", "rankme", "alpha"), "double"),
    **dict.fromkeys(("revision", "last_modified"), "string"),
}
_log = logging.getLogger(__name__)


def table(board: Board) -> list[dict[str, Any]]:
    """Return the board as flat rows, one per result; an encoder without results has one row without a `value`."""
    return [_row(entry, result) for entry in board.entries for result in entry.results or (None,)]


def parquet(board: Board) -> bytes:
    """Return the rows of [`table`] as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table(board), schema=schema), sink)
    return sink.getvalue().to_pybytes()


def csv_text(board: Board) -> str:
    """Return the rows of [`table`] as CSV; no cell begins as a spreadsheet's formula does."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    if board.entries:
        writer.writerow(_COLUMNS)
        writer.writerows([_cell(value) for value in row.values()] for row in table(board))
    return sink.getvalue()


def write_snapshot(board: Board, folder: str | Path, *, location: str | None = None) -> Path:
    """Write `board.json`, `board.parquet` and a card that names the data set `location`, by default the folder."""
    folder = Path(folder)
    card = _CARD.format(
        encoders=f"{len(board.entries):,}",
        results=f"{sum(len(entry.results) for entry in board.entries):,}",
        rejected=f"{len(board.rejected):,}",
        endpoint=board.endpoint,
        date=board.collected_at[:10],
        location=location or folder.name,
        mark=MARK,
    )
    # All or none: each describes the same board.
    with replacing_files(folder) as unfinished:
        replace_file(unfinished / BOARD, to_json(board))
        replace_file(unfinished / TABLE, parquet(board))
        replace_file(unfinished / CARD, card)
    return folder


def read_snapshot(location: str | Path, *, token: str | None = None) -> Board:
    """Read and check a board, from a folder or from a data set "owner/name" on the Hub.

    A `Path` is always a folder, so that a missing one is never looked for on the Hub.

    Raises:
        FileNotFoundError: There is no board.
        ValueError: The board is not of this form.
        OSError: The Hub does not answer.
    """
    content = read_part(location, BOARD, token=token)
    try:
        return from_json(content)
    except RejectedError as error:
        raise ValueError(
            f"{BOARD} of {location} is not a board ({error}): build it anew with orthossl leaderboard build"
        ) from error
    except ValueError as error:
        raise ValueError(f"{BOARD} of {location}: {error}") from error


def read_part(location: str | Path, name: str, *, token: str | None = None) -> bytes:
    """Read one file of a snapshot; raise as [`read_snapshot`] does."""
    path = Path(location)
    if isinstance(location, Path) or path.is_dir():
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path} has no {name}: build it with orthossl leaderboard build --output_dir {path}"
            )
        if (path / name).stat().st_size > MAX_BYTES:
            raise ValueError(f"{path / name} is larger than {MAX_BYTES >> 20} MiB: it is not a board")
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
    """Read one file of a snapshot in a data set "owner/name", also where a local folder has that name."""
    return Fetcher(token=token).file(dataset, "main", name, MAX_BYTES, kind="dataset")


class RefreshedBoard:
    """A board that a thread reads anew at intervals; call it for the latest. While the Hub is away, the last one stays.

    Args:
        read (`Callable[[], Board]`): Reads the board; an error is logged.
        every (`float`, defaults to 3600): Seconds between two readings.
        retry (`float`, *optional*): Seconds until the next try if the first reading fails, with an empty board until
            then; by default the failure is raised.
        first (`Callable[[], Board]`, *optional*): Reads the board at the start, where that is quicker than `read`,
            which then follows at once.
    """

    def __init__(
        self,
        read: Callable[[], Board],
        every: float = 3600,
        *,
        retry: float | None = None,
        first: Callable[[], Board] | None = None,
    ):
        self._read, self._every, self._retry = read, every, retry
        self._board = Board([], [], "", "")
        if retry is None:
            self._board = (first or read)()
        else:
            self.refresh(first)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first is not None,), name="board-refresh", daemon=True)
        self._thread.start()

    def __call__(self) -> Board:
        """Return the latest board."""
        return self._board

    def refresh(self, read: Callable[[], Board] | None = None) -> bool:
        """Read the board once, now; return whether that succeeded."""
        try:
            self._board = (read or self._read)()
        except Exception as error:  # a thread that dies would never refresh the board again
            _log.warning("the board of %s stays: %s", self._board.collected_at or "before", str(error)[:300])
            return False
        return True

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self, at_once: bool) -> None:
        if at_once:
            self.refresh()
        while not self._stop.wait(self._every if self._board.collected_at or self._retry is None else self._retry):
            self.refresh()


def _row(entry: Entry, result: BoardResult | None) -> dict[str, Any]:
    summary = entry.spectra.summary if entry.spectra else {}
    protocol = protocol_text(result) if result else None
    sources = (vars(entry), vars(result) | {"protocol": protocol} if result else {}, summary)
    # The commit and the date of the encoder, not those of a result.
    own = {"revision": entry.revision, "last_modified": entry.last_modified}
    return {name: own.get(name) or next((s[name] for s in sources if name in s), None) for name in _COLUMNS}


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
