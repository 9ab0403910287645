"""Images that cannot be decoded: skipped, counted, named in a file, and too many of them stop the run."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..distributed.collectives import all_gather_object, all_reduce_max, rank, world_size

# A run goes on with at most this share of a data set unreadable …
LIMIT = 0.01
# … which in a stream, whose length is unknown, is judged from this many images on.
STREAM_MINIMUM = 100


class Unreadable(NamedTuple):
    """One image that was skipped: its row, its name, and why."""

    index: int
    name: str
    reason: str


class TooManyUnreadable(ValueError):
    """More than 1 % of a data set's images cannot be read; the message names them.

    `message` is how torch hands over an exception that a data loader's worker raised: its whole traceback, of which
    the last line is ours.
    """

    message = True

    def __init__(self, text: str = "", *, message: str | None = None):
        if message is not None:
            text = message.strip().splitlines()[-1].partition("TooManyUnreadable: ")[2]
        super().__init__(text)

    @classmethod
    def of(cls, unreadable: Iterable[Unreadable], total: int, log: Path | None = None) -> "TooManyUnreadable":
        """The error that names `unreadable` among `total` images."""
        images = list(unreadable)
        names = "; ".join(f"{image.name} ({image.reason})" for image in images[:5])
        more = f" and {len(images) - 5} more" if len(images) > 5 else ""
        where = f", listed in {log}" if log else ""
        return cls(
            f"{len(images)} of {total} images cannot be read, more than {LIMIT:.0%}: "
            f"mend or remove {names}{more}{where}"
        )


class UnreadableLog:
    """Counts unreadable images, once each, and names them in a file.

    A file left by an earlier part of the same run is continued. Of several processes each is told what all of them
    found, so that the limit holds for the run as a whole; the main one writes.

    Args:
        path (`str` or `Path`): The file; written when there is something to write, one line per image.
        total (`int`, *optional*): Images in the data set. Without it (a stream) those seen since the start of this
            part of the run are counted.
    """

    def __init__(self, path: str | Path, total: int | None = None):
        self.path = Path(path)
        self.total = total
        self.seen = 0
        self._fresh = 0
        self._images: dict[int, Unreadable] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                index, *rest = line.split("\t")
                if index.isdecimal() and len(rest) == 2:  # a run that was killed may have left half a line
                    self._images[int(index)] = Unreadable(int(index), *rest)

    def __len__(self) -> int:
        return len(self._images)

    def add(self, unreadable: Iterable[tuple[int, str, str]], seen: int = 0) -> None:
        """Takes note of a batch; every process calls it, with a batch of its own.

        Args:
            unreadable (iterable of `(index, name, reason)`): The batch's `unreadable`.
            seen (`int`, defaults to 0): Images in the batch, with those that stand in for others; needed for a stream
                only.

        Raises:
            TooManyUnreadable: more than 1 % of the images cannot be read.
        """
        batch = list(unreadable)
        # A number is cheaper to send than a list, which is empty for almost every batch.
        if all_reduce_max(len(batch)) > 0:
            batch = [image for images in all_gather_object(batch) for image in images]
        fresh = {}
        for index, name, reason in batch:
            if index not in self._images and index not in fresh:
                # Tabs and line ends would break the file's form.
                fresh[index] = Unreadable(index, " ".join(name.split()), " ".join(reason.split()))
        # Batches of a stream are as large on every process.
        self.seen += seen * world_size()
        self._fresh += len(fresh)
        self._images |= fresh
        if fresh and rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines("\t".join(map(str, image)) + "\n" for image in fresh.values())
        # What an earlier part of the run saw of a stream is not known: only its unreadable images are in the file.
        found, total = (self._fresh, self.seen) if self.total is None else (len(self), self.total)
        judged = self.total is not None or self.seen >= STREAM_MINIMUM
        if judged and found > LIMIT * total:
            raise TooManyUnreadable.of(list(self._images.values())[-found:], total, self.path)
