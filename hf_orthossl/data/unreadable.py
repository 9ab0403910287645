"""Leave out, count and name images that cannot be decoded, and stop a run that has too many of them.

In training another image takes the place of an unreadable one, so that batches keep their size. In a measurement none
does: the image counts neither as right nor as wrong, and results say how many images they are of.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..distributed.collectives import all_gather_object, all_reduce_max, rank, world_size
from ..files import append_lines, read_lines
from ..messages import warn_above_bars
from .options import MAX_UNREADABLE

logger = logging.getLogger(__name__)

# A share allows at least this many images, so that one of fifty does not stop a run.
AT_LEAST = 5
# The length of a stream is unknown: until this many images are seen, its share is that of as many.
STREAM_MINIMUM = 100
# The images that a message names.
NAMED = 5


def allowed(total: int, max_unreadable: float = MAX_UNREADABLE) -> int:
    """Return how many images may be unreadable.

    A class whose images are all unreadable is no reason to stop, but what is measured then says so.

    Args:
        total (`int`): The number of images.
        max_unreadable (`float`, defaults to 0.01): A number of images or, below 1, a share, which allows at least 5
            images; 0 allows none.
    """
    if max_unreadable == 0 or max_unreadable >= 1:
        return int(max_unreadable)
    return max(int(max_unreadable * total), AT_LEAST)


class Unreadable(NamedTuple):
    """An image that was skipped: its row, its name, and the reason."""

    index: int  # type: ignore[assignment]  # hides `tuple.index`, which is not used
    name: str
    reason: str


class TooManyUnreadable(ValueError):
    """Raised if more images cannot be read than [`allowed`]; the message names them.

    Args:
        text (`str`): The message.
        message (`str`, *optional*): The whole traceback, from which torch reconstructs an exception raised in a data
            loader's worker; its last line contains the message.
    """

    # torch passes `message` only to exceptions that have an attribute of this name.
    message = True

    def __init__(self, text: str = "", *, message: str | None = None):
        if message is not None:
            text = message.strip().splitlines()[-1].partition("TooManyUnreadable: ")[2]
        super().__init__(text)

    @classmethod
    def of(
        cls, unreadable: Sequence[Unreadable], total: int, max_unreadable: float, log: Path | None = None
    ) -> "TooManyUnreadable":
        """Return the error for unreadable images.

        Args:
            unreadable (sequence of [`Unreadable`]): The images.
            total (`int`): The number of images that were tried.
            max_unreadable (`float`): The limit, see [`allowed`].
            log (`Path`, *optional*): The file that lists all of them.
        """
        most = allowed(total, max_unreadable)
        more = "" if most >= len(unreadable) else f", more than the {most:,} allowed"
        where = f", listed in {log}" if log else ""
        return cls(
            f"{len(unreadable):,} of {total:,} images cannot be read{more}: repair or remove "
            f"{_named(unreadable, reasons=True)}{where}, or pass a higher --max_unreadable (it is {max_unreadable:g})"
        )


def check_unreadable(unreadable: Sequence[Unreadable], total: int, max_unreadable: float) -> None:
    """Check the images that a measurement leaves out.

    Args:
        unreadable (sequence of [`Unreadable`]): The images left out.
        total (`int`): The number of images that were to be measured.
        max_unreadable (`float`): The limit, see [`allowed`].

    Raises:
        TooManyUnreadable: They are more than allowed, or all.
    """
    if unreadable and (len(unreadable) > allowed(total, max_unreadable) or len(unreadable) == total):
        raise TooManyUnreadable.of(unreadable, total, max_unreadable)


def left_out_note(unreadable: Sequence[Unreadable], total: int, split: str) -> list[str]:
    """Return a sentence that says which images of a split a measurement leaves out; none without such images."""
    if not unreadable:
        return []
    used, were = total - len(unreadable), "was" if len(unreadable) == 1 else "were"
    return [
        f"{used:,} of {total:,} images of {split} were used: {len(unreadable):,} cannot be read and {were} left out "
        f"({_named(unreadable)})."
    ]


def _named(unreadable: Sequence[Unreadable], reasons: bool = False) -> str:
    names = [f"{image.name} ({image.reason})" if reasons else image.name for image in unreadable[:NAMED]]
    more = f" and {len(unreadable) - NAMED:,} more" if len(unreadable) > NAMED else ""
    return ("; " if reasons else ", ").join(names) + more


class UnreadableLog:
    """A log file of a run's unreadable images, each listed and counted once.

    A file left by an earlier part of the same run is continued. With several processes, each counts the images of all
    of them, so that the limit applies to the whole run, and the main process writes the file.

    Args:
        path (`str` or `Path`): The file, with one line per image; it is created for the first image.
        total (`int`, *optional*): The number of images in the data set. Without it (for a stream), the images seen
            since the start of this part of the run are counted.
        max_unreadable (`float`, defaults to 0.01): The limit, see [`allowed`].
    """

    def __init__(self, path: str | Path, total: int | None = None, max_unreadable: float = MAX_UNREADABLE):
        self.path = Path(path)
        self.total = total
        self.max_unreadable = max_unreadable
        self.seen = 0
        self._new = 0
        self._images: dict[int, Unreadable] = {}
        for line in read_lines(self.path):
            index, *rest = line.split("\t")
            if index.isdecimal() and len(rest) == 2:
                self._images[int(index)] = Unreadable(int(index), *rest)

    def __len__(self) -> int:
        return len(self._images)

    def add(self, unreadable: Sequence[tuple[int, str, str]], seen: int = 0) -> None:
        """Add the unreadable images of a batch; every process must call it for each of its batches.

        Args:
            unreadable (sequence of `(index, name, reason)`): The batch's `unreadable`.
            seen (`int`, defaults to 0): The number of images in the batch, including replacements. Needed only for a
                stream.

        Raises:
            TooManyUnreadable: More images cannot be read than are allowed.
        """
        batch = list(unreadable)
        # A number is cheaper to reduce than a list is to gather, and almost every list is empty.
        if all_reduce_max(len(batch)) > 0:
            batch = [image for images in all_gather_object(batch) for image in images]
        new = {}
        for index, name, reason in batch:
            if index not in self._images and index not in new:
                # Tabs and line breaks would corrupt the file.
                new[index] = Unreadable(index, " ".join(name.split()), " ".join(reason.split()))
        # The batches of a stream have the same size on every process.
        self.seen += seen * world_size()
        self._new += len(new)
        self._images |= new
        if new and rank() == 0:
            append_lines(self.path, ("\t".join(map(str, image)) for image in new.values()))
        # The file does not record how many images of a stream an earlier part of the run saw.
        count, total = (self._new, self.seen) if self.total is None else (len(self), self.total)
        if count > allowed(max(total, STREAM_MINIMUM if self.total is None else 0), self.max_unreadable):
            raise TooManyUnreadable.of(list(self._images.values())[-count:], total, self.max_unreadable, self.path)
        if new and len(new) == len(self._images) and rank() == 0:
            first = next(iter(new.values()))
            warn_above_bars(
                logger,
                f"{first.name} cannot be read ({first.reason}): another image takes its place, and all such images are "
                f"listed in {self.path}",
            )
