"""Printing that never fails and shows no secret: what a terminal cannot show is replaced, a closed pipe loses lines.

`orthossl pretrain … | head` must not end a training, and "γ" must not end it on a terminal without Greek.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .messages import without_secrets

if TYPE_CHECKING:
    from tqdm import tqdm

# What to show instead, in an encoding without these characters.
PLAIN = {"γ": "gamma", "α": "alpha", "β": "beta", "ε": "eps", "σ": "sigma", "×": "x", "·": ".", "…": "...", "–": "-"}
PLAIN |= {"−": "-", "±": "+-", "≥": ">=", "≤": "<=", "→": "->", "°": " deg", "‖": "||", "é": "e", "’": "'"}
# The reader of a pipe has ended, or the terminal is gone.
GONE = (errno.EPIPE, errno.EIO)


def shows_bars() -> bool:
    """Return whether somebody sees a bar move: in a terminal or a notebook, and not in the file of a batch system."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def progress_bar(rows: Iterable[Any] | None, title: str, shown: bool = True, **settings: Any) -> "tqdm":
    """Return a bar over some rows, which disappears at its end; none is shown where nobody sees it move.

    Args:
        rows (iterable, *optional*): What is counted.
        title (`str`): What is done with them.
        shown (`bool`, defaults to `True`): Whether a bar is wanted.
        settings: Further arguments of `tqdm`.
    """
    from tqdm.auto import tqdm  # imports IPython's widgets where they are

    return tqdm(rows, desc=title, disable=not (shown and shows_bars()), leave=False, dynamic_ncols=True, **settings)


def keep_printing() -> None:
    """Make printing to standard output and standard error never fail, in this process.

    Call it first in a command. Streams that are no files, such as those of a notebook, are left as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by the shell, as with >&-.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for as long as Python runs
            continue
        if type(stream) is not io.TextIOWrapper or isinstance(getattr(stream.buffer, "raw", stream.buffer), _Lines):
            continue
        try:
            stream.flush()
            raw = _Lines(stream.fileno(), "w", closefd=False)
            # If it were collected, it would close the file.
            raw.replaced = stream
        except (OSError, ValueError):
            continue
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                raw if stream.write_through else io.BufferedWriter(raw),  # type: ignore[arg-type]  # as Python does
                encoding=stream.encoding,
                errors="orthossl",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            ),
        )


def replace_characters() -> None:
    """Show characters that the terminal has not as plain ones; unlike [`keep_printing`], keep the streams."""
    for stream in (sys.stdout, sys.stderr):
        if type(stream) is io.TextIOWrapper:
            stream.reconfigure(errors="orthossl")


class _Lines(io.FileIO):
    """A file whose lines are lost once nobody reads them, and in which nobody reads a secret.

    Libraries print addresses with their logins, and tracebacks the values of variables.
    """

    replaced: io.TextIOWrapper

    def write(self, data):
        # Byte for byte, because a character may be cut in two.
        text = bytes(data).decode("latin-1")
        shown = without_secrets(text)
        if shown != text:
            rest = memoryview(shown.encode("latin-1"))
            while rest:
                rest = rest[self._write(rest) :]
            return len(data)
        return self._write(data)

    def _write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Return plain text for characters that cannot be encoded; bytes of file names that are not text as hex."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (f"\\x{ord(one) - 0xDC00:02x}" if "\udc80" <= one <= "\udcff" else PLAIN.get(one, "?") for one in text)
    return "".join(shown), error.end


codecs.register_error("orthossl", _replaced)
