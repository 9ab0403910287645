"""Streams of images: one epoch as a torch iterable data set, and endless batches over several processes."""

import itertools
import logging
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..distributed.collectives import all_reduce_min, rank, world_size
from .augment.recipes import Recipe
from .columns import unformatted
from .dataset import ItemMaker, collate, require_source
from .opening import UnreadableImage, image_name
from .sources import ImageSource
from .unreadable import STREAM_MINIMUM, TooManyUnreadable, Unreadable, allowed

logger = logging.getLogger(__name__)

# Rows converted to Python at a time; converting them one by one is five times slower.
_READ = 64


class Row(NamedTuple):
    """A row of a stream: the epoch, the index in the epoch, and the undecoded image and label."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides `tuple.index`, which is not used
    image: Any
    label: Any


class StreamingImageDataset(IterableDataset):
    """Images of a streamed source, with the items of [`ImageDataset`].

    Iterating over it yields one epoch, which the workers of a data loader divide by shards. Unreadable images are
    skipped and reported in the `unreadable` of a neighbouring item. Use [`StreamBatches`] to train on several processes
    or to continue in the middle of an epoch.

    Args:
        source ([`ImageSource`]): The images, from [`load_source`] with `streaming=True`.
        views ([`Recipe`] or `str`, *optional*): The recipe of the views to be made of the batches, or its name.
        image_size (`int`, *optional*): The side of the encoder's input, in pixels. Needed if image sizes differ.
        seed (`int`, defaults to 0): Determines the order and the crops made during decoding.
        shuffle_buffer (`int`, defaults to 0): The number of images from which the next one is drawn; the order of the
            shards is shuffled too. 0 keeps the stream's order.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The source is not a stream, its images are smaller than the views, or `image_size` is missing.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        views: Recipe | str | None = None,
        image_size: int | None = None,
        seed: int = 0,
        shuffle_buffer: int = 0,
    ):
        require_source(source)
        if not isinstance(source.dataset, datasets.IterableDataset):
            raise ValueError(
                f"dataset {source.name} is not a stream: use ImageDataset, or load_source(…, streaming=True)"
            )
        self.source = source
        self._make_item = ItemMaker(source, views, image_size, seed)
        columns = [source.image_column] + ([source.label_column] if source.label_column else [])
        rows = unformatted(source.dataset.select_columns(columns), source.image_column)
        self._rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else rows

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order and the crops."""
        self._make_item.set_epoch(epoch)
        self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield items whose `index` is unique within an epoch.

        Raises:
            TooManyUnreadable: All images, or those at the beginning of the stream, cannot be read.
        """
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        # Each item is delayed by one, so that the last can also report the images skipped after it.
        waiting: dict[str, Any] | None = None
        skipped: list[Unreadable] = []
        seen, limit = 0, self.source.max_unreadable
        for seen, row in enumerate(self._rows, start=1):
            index = first + (seen - 1) * step
            image = row[self.source.image_column]
            try:
                item = self._make_item(image, row.get(self.source.label_column), index)
            except UnreadableImage as error:
                skipped.append(Unreadable(index, image_name(image, index), str(error)))
                if len(skipped) > max(STREAM_MINIMUM, allowed(seen, limit)):
                    raise TooManyUnreadable.of(skipped, seen, limit) from error
                continue
            if waiting is not None:
                yield waiting
            waiting, skipped = item | {"unreadable": skipped}, []
        if waiting is not None:
            yield waiting | {"unreadable": waiting["unreadable"] + skipped}
        elif skipped:
            raise TooManyUnreadable.of(skipped, seen, limit)

    def groups(self, processes: int) -> int:
        """Return the number of groups of shard files: the greatest common divisor of files and processes."""
        return math.gcd(self._rows.num_shards, processes)

    def blocks(
        self, epoch: int, size: int, *, rank: int = 0, processes: int = 1, skip: int = 0, groups: int | None = None
    ) -> Generator[list[Row], None, None]:
        """Yield one process's part of an epoch in blocks of `size` rows; only the last block may be shorter.

        The shard files are assigned to the processes in [`~StreamingImageDataset.groups`]. The processes of a group
        read the same files and take turns with the blocks: with one group, block j·P + p of the whole stream is block
        j of process p. If P divides the number of files, no row is read twice. Groups made for another number of
        processes are first merged, row by row, until their number divides P, so that steps of the same size contain
        the same images.

        Args:
            epoch (`int`): The epoch, which determines the order.
            size (`int`): The number of rows per block, at least 1.
            rank (`int`, defaults to 0): The number of the process.
            processes (`int`, defaults to 1): The number of processes P.
            skip (`int`, defaults to 0): The number of rows of the epoch, over all processes, that were used before.
                They are read but not decoded.
            groups (`int`, *optional*): The number of groups with which the epoch began, if that was on a different
                number of processes.

        Yields:
            `list[Row]`: Rows whose `index` is unique in the epoch over all processes, also after skipping.
        """
        groups = groups or self.groups(processes)
        merged = math.gcd(groups, processes)
        first, member, members = rank % merged, rank // merged, processes // merged
        streams = [self._read_group(epoch, group, groups, skip // groups) for group in range(first, groups, merged)]
        rows = itertools.chain.from_iterable(zip(*streams, strict=False))
        for turn in itertools.cycle(range(members)):
            block = list(itertools.islice(rows, size))
            if turn == member and block:
                yield block
            if len(block) < size:
                return

    def decode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return one item per row; an unreadable image is replaced by the next readable one of the block.

        Raises:
            TooManyUnreadable: No image of the block can be read.
        """
        items: list[dict[str, Any] | None] = []
        unreadable = []
        for row in rows:
            try:
                items.append(self._make_item(row.image, row.label, row.index, row.epoch))
            except UnreadableImage as error:
                items.append(None)
                unreadable.append(Unreadable(row.index, image_name(row.image, row.index), str(error)))
        if not unreadable:
            return [item for item in items if item is not None]
        if len(unreadable) == len(rows):
            raise TooManyUnreadable.of(unreadable, len(rows), self.source.max_unreadable)
        replaced = [next(item for item in items[place:] + items if item) for place in range(len(items))]
        replaced[0] = replaced[0] | {"unreadable": unreadable}
        return replaced

    def _read_group(self, epoch: int, group: int, groups: int, skip: int) -> Iterator[Row]:
        stream = split_dataset_by_node(self._rows, rank=group, world_size=groups)
        stream.set_epoch(epoch)
        rows = itertools.islice(self._read(stream), skip, None)
        return (Row(epoch, place * groups + group, *row) for place, row in enumerate(rows, start=skip))

    def _read(self, stream: datasets.IterableDataset) -> Iterator[tuple[Any, Any]]:
        for part in stream.iter(batch_size=_READ):
            images = part[self.source.image_column]
            yield from zip(images, part.get(self.source.label_column) or [None] * len(images), strict=True)


class _Start(NamedTuple):
    """The position in the data at which an epoch began or was resumed.

    Args:
        batch (`int`): The number of the batch in the run.
        epoch (`int`): The epoch.
        images (`int`): The images of the epoch that were used before.
        groups (`int`, *optional*): The epoch's groups of shard files; by default those of the current number of
            processes.
    """

    batch: int
    epoch: int
    images: int
    groups: int | None = None


class StreamBatches(IterableDataset):
    """Endless collated batches of a [`StreamingImageDataset`], one epoch after the other.

    Each process reads its part of the stream, see [`StreamingImageDataset.blocks`], and its workers decode. The batches
    therefore do not depend on the number of workers, and no worker idles if there are few shard files. An epoch ends on
    all processes at once, when one of them has no full batch left; with a single process and `drop_last=False`, the
    last batch may be smaller.

    A resumed run calls [`~StreamBatches.resume`] and then skips the batches that it used before, as `accelerate` and
    the Trainer do. The skipped batches are empty and cost nothing.

    Args:
        dataset ([`StreamingImageDataset`]): The stream.
        batch_size (`int`): The number of images per process.
        drop_last (`bool`, defaults to `True`): Drop the images that do not fill a batch at the end of an epoch.
        loader (`dict`): Further arguments of torch's `DataLoader`, such as `num_workers`.
    """

    def __init__(self, dataset: StreamingImageDataset, batch_size: int, *, drop_last: bool = True, **loader: Any):
        self.dataset, self.batch_size, self.drop_last, self.loader = dataset, batch_size, drop_last, loader
        self._starts = [_Start(0, 0, 0)]

    def position(self, batches: int) -> dict[str, int]:
        """Return the position in the data after a number of batches per process, as JSON, the same on every process."""
        start = max(start for start in self._starts if start.batch <= batches)
        return {
            "epoch": start.epoch,
            "images": start.images + (batches - start.batch) * self.batch_size * world_size(),
            "groups": start.groups or self.dataset.groups(world_size()),
        }

    def resume(self, batches: int, position: dict[str, int]) -> None:
        """Continue from a position, also if it was saved by a run with another number of processes.

        If the number of images per step over all processes is unchanged, every image still occurs once in the epoch,
        whose shard files stay in the groups with which it began. The next epoch has the groups of the current number
        of processes.

        Args:
            batches (`int`): The number of batches that the caller will skip.
            position (`dict`): The return value of [`~StreamBatches.position`].
        """
        self._starts = [_Start(batches, **position)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches in the form of [`collate`], and empty ones before the point of resumption.

        Raises:
            ValueError: The stream has fewer images than one step needs.
        """
        # A new iterator starts again from where the first one started.
        del self._starts[1:]
        for _ in range(self._starts[0].batch):
            yield {}
        yield from DataLoader(_Decoder(self.dataset), batch_sampler=self._blocks(), collate_fn=collate, **self.loader)

    def _blocks(self) -> Iterator[list[Row]]:
        (batch, epoch, images, groups), processes = self._starts[0], world_size()
        while True:
            before = batch
            blocks = self.dataset.blocks(
                epoch, self.batch_size, rank=rank(), processes=processes, skip=images, groups=groups
            )
            block = next(blocks, [])
            while all_reduce_min(len(block)) == self.batch_size:
                yield block
                batch, block = batch + 1, next(blocks, [])
            # A single image has no batch statistics.
            if processes == 1 and not self.drop_last and len(block) > 1:
                yield block
                batch += 1
            elif len(block) == len(next(blocks, [])) == self.batch_size:
                logger.warning(
                    f"epoch {epoch} of {self.dataset.source.name} ended with images left on process {rank()}, because "
                    "its shard files are longer than those of other processes: write the data set in files of equal "
                    "length"
                )
            blocks.close()
            if batch == before and images == 0:
                raise ValueError(
                    f"the stream {self.dataset.source.name} has fewer images than the {processes * self.batch_size} of "
                    "one step: lower --per_device_train_batch_size"
                )
            epoch, images, groups = epoch + 1, 0, None
            self._starts.append(_Start(batch, epoch, images))


class _Decoder(Dataset):
    """Decode, in the workers, the rows that the main process has read."""

    def __init__(self, dataset: StreamingImageDataset):
        self.dataset = dataset

    def __getitems__(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        return self.dataset.decode(rows)
