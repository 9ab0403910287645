"""Do the pieces of the studies, in parts, in one process or several."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hf_orthossl.comparison import ComparisonOptions, run_comparison
from hf_orthossl.comparison.record import COMPARISON
from hf_orthossl.locks import InUse, locked

from .plan import Piece, Size


def run_all(
    pieces: Sequence[Piece], size: Size, seeds: int, minutes: float | None, root: Path, keep: Callable[[], None]
) -> bool:
    """Do the runs that are left: all pieces from one seed before any from the next.

    Wherever it is stopped, the pieces have as many seeds as each other. Each of several processes takes a piece that no
    other has, and only then helps with those of others.

    Args:
        pieces (sequence of [`Piece`]): In this order.
        size ([`Size`]): How large the runs are.
        seeds (`int`): Runs of each arm.
        minutes (`float`, *optional*): Stop after so long.
        root (`Path`): Where runs go.
        keep (callable): Is called after each piece, to keep its rows.

    Returns:
        `bool`: Whether all runs have ended.

    Raises:
        ValueError: A piece cannot be run.
        OSError: A file cannot be read or written.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for count in range(1, seeds + 1):
        due = [piece for piece in pieces if count <= (piece.most_seeds or seeds)]
        for alone in (True, False):
            for piece in due:
                folder = root / piece.study / piece.name
                if _has_ended(piece, count, folder):
                    continue
                left = None if end is None else (end - time.monotonic()) / 60
                if left is not None and left <= 0:
                    return False
                with _piece(root / ".pieces" / f"{piece.study}-{piece.name}", alone) as free:
                    if free:
                        print(f"\n{piece.study}: {piece.name}, {count} seed{'s' if count > 1 else ''}", flush=True)
                        _compare(piece, size, count, left, folder)
                        keep()
    return all(
        _has_ended(piece, min(seeds, piece.most_seeds or seeds), root / piece.study / piece.name) for piece in pieces
    )


def _has_ended(piece: Piece, seeds: int, folder: Path) -> bool:
    """Return whether nothing of a piece is left to do."""
    path = folder / COMPARISON
    if not path.is_file():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    return (
        record["left"] == 0 and record["seeds"] >= seeds and [arm["name"] for arm in record["arms"]] == piece.arm_names
    )


def _compare(piece: Piece, size: Size, seeds: int, minutes: float | None, folder: Path) -> None:
    """Do the runs of a piece that are left, as far as the time allows."""
    options = ComparisonOptions(
        arms=piece.arm_names,
        seeds=seeds,
        strengths={name: list(values) for name, values in piece.strengths.items()} or None,
        images=size.images,
        max_minutes=minutes,
        output_dir=str(folder),
    )
    run_comparison(options, piece.given(size), arms=list(piece.made) or None)


@contextlib.contextmanager
def _piece(folder: Path, alone: bool) -> Iterator[bool]:
    """Yield whether this process may work on a piece: always, or only if no other process does."""
    if not alone:
        yield True
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except InUse:
            yield False
            return
        yield True
