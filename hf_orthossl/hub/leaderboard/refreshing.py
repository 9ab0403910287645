"""A board that is read anew now and then; while the Hub is away, the last good one stays."""

import logging
import threading
from collections.abc import Callable

from .schema import Board

_log = logging.getLogger(__name__)


class RefreshedBoard:
    """Reads a board at the start and then every so often, in a thread of its own. Called, it gives the latest.

    Args:
        read (`Callable[[], Board]`): Reads the board; whatever it raises is logged, and the last good board stays.
        every (`float`, defaults to 3600): Seconds between two readings.
        retry (`float`, *optional*): Seconds until the next try where the first reading failed, with an empty board
            until then; by default that failure is raised.
        first (`Callable[[], Board]`, *optional*): Reads the board at the start, where that is quicker than `read`,
            which then follows at once.

    Raises:
        ValueError, OSError: the first reading failed, and there is no `retry`.

    Example:

    ```python
    >>> board = RefreshedBoard(lambda: read_snapshot("owner/board"))
    >>> board().collected_at
    ```
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
        self._pending = first is not None
        if retry is None:
            self._board = (first or read)()
        else:
            self.refresh(first)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="board-refresh", daemon=True)
        self._thread.start()

    def __call__(self) -> Board:
        return self._board

    def refresh(self, read: Callable[[], Board] | None = None) -> bool:
        """Reads once, now; `False` if that failed."""
        try:
            self._board = (read or self._read)()
        except Exception as error:  # a thread that dies would leave the board as it is for ever
            _log.warning("the board of %s stays: %s", self._board.collected_at or "before", str(error)[:300])
            return False
        return True

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(self._pause()):
            self._pending = False
            self.refresh()

    def _pause(self) -> float:
        if self._pending:
            return 0
        return self._every if self._board.collected_at else self._retry
