"""Skip, count and report images that cannot be decoded, and stop a run that has too many of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..distributed.collectives import all_gather_object, all_reduce_max, rank, world_size

# A run continues while at most this share of a data set is unreadable.
LIMIT = 0.01
# The length of a stream is unknown, so its share is checked only after this many images.
STREAM_MINIMUM = 100


class Unreadable(NamedTuple):
    """An image that was skipped: its row, its name, and the reason."""

    index: int  # type: ignore[assignment]  # hides `tuple.index`, which is not used
    name: str
    reason: str


class TooManyUnreadable(ValueError):
    """Raised if more than 1 % of a data set's images cannot be read; the message names them.

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
    def of(cls, unreadable: Iterable[Unreadable], total: int, log: Path | None = None) -> "TooManyUnreadable":
        """Return the error for unreadable images.

        Args:
            unreadable (iterable of [`Unreadable`]): The images.
            total (`int`): The number of images that were tried.
            log (`Path`, *optional*): The file that lists all of them.
        """
        images = list(unreadable)
        names = "; ".join(f"{image.name} ({image.reason})" for image in images[:5])
        more = f" and {len(images) - 5} more" if len(images) > 5 else ""
        where = f", listed in {log}" if log else ""
        return cls(
            f"{len(images)} of {total} images cannot be read, more than {LIMIT:.0%}: "
            f"repair or remove {names}{more}{where}"
        )


class UnreadableLog:
    """A log file of a run's unreadable images, each listed and counted once.

    A file left by an earlier part of the same run is continued. With several processes, each counts the images of all
    of them, so that the limit applies to the whole run, and the main process writes the file.

    Args:
        path (`str` or `Path`): The file, with one line per image; it is created for the first image.
        total (`int`, *optional*): The number of images in the data set. Without it (for a stream), the images seen
            since the start of this part of the run are counted.
    """

    def __init__(self, path: str | Path, total: int | None = None):
        self.path = Path(path)
        self.total = total
        self.seen = 0
        self._new = 0
        self._images: dict[int, Unreadable] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
                index, *rest = line.split("\t")
                if index.isdecimal() and len(rest) == 2:  # a run that was killed may have left half a line
                    self._images[int(index)] = Unreadable(int(index), *rest)

    def __len__(self) -> int:
        return len(self._images)

    def add(self, unreadable: Iterable[tuple[int, str, str]], seen: int = 0) -> None:
        """Add the unreadable images of a batch; every process must call it for each of its batches.

        Args:
            unreadable (iterable of `(index, name, reason)`): The batch's `unreadable`.
            seen (`int`, defaults to 0): The number of images in the batch, including replacements. Needed only for a
                stream.

        Raises:
            TooManyUnreadable: More than 1 % of the images cannot be read.
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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines("\t".join(map(str, image)) + "\n" for image in new.values())
        # The file does not record how many images of a stream an earlier part of the run saw.
        count, total = (self._new, self.seen) if self.total is None else (len(self), self.total)
        judged = self.total is not None or self.seen >= STREAM_MINIMUM
        if judged and count > LIMIT * total:
            raise TooManyUnreadable.of(list(self._images.values())[-count:], total, self.path)
