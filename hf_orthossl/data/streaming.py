"""Streams of images as a torch iterable data set."""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..distributed.collectives import all_reduce_min, rank, world_size
from .augment.recipes import Recipe
from .dataset import ItemMaker, collate
from .decoding import UnreadableImage
from .sources import ImageSource
from .unreadable import LIMIT, STREAM_MINIMUM, TooManyUnreadable, Unreadable

logger = logging.getLogger(__name__)


# Rows converted to Python at a time; one by one is five times slower.
_READ = 64


class Row(NamedTuple):
    """An image of a stream, not decoded: the epoch, its index in the epoch, image and label as the source has them."""

    epoch: int
    index: int
    image: Any
    label: Any


class StreamingImageDataset(IterableDataset):
    """Images of a streamed source, with the items of [`ImageDataset`].

    Iterated, it gives one epoch, which workers of a data loader share out by shards. Unreadable images are skipped and
    named in the `unreadable` of a neighbouring item. For training over several processes, and to continue in the middle
    of an epoch, there is [`StreamBatches`].

    Args:
        source ([`ImageSource`]): Loaded with `streaming=True`.
        views ([`Recipe`], *optional*): Recipe of the views to be made of the batches.
        image_size (`int`, *optional*): Side of the encoder's input, in pixels; needed where image sizes differ.
        seed (`int`, defaults to 0): Determines the order and crops made at decode.
        shuffle_buffer (`int`, defaults to 0): Images from which the next one is drawn, also in the order of shards;
            0 keeps the stream's order.

    Raises:
        ValueError: the source is no stream, its images are smaller than the views, or `image_size` is missing.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        views: Recipe | None = None,
        image_size: int | None = None,
        seed: int = 0,
        shuffle_buffer: int = 0,
    ):
        if not isinstance(source.dataset, datasets.IterableDataset):
            raise ValueError(f"dataset {source.name} is no stream: use ImageDataset, or load_source(…, streaming=True)")
        self.source = source
        self._make = ItemMaker(source, views, image_size, seed)
        columns = [source.image_column] + ([source.label_column] if source.label_column else [])
        rows = source.dataset.select_columns(columns)
        self._rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else rows

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, whose order and crops are its own."""
        self._make.set_epoch(epoch)
        self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Items whose `index` is unique within an epoch.

        Raises:
            TooManyUnreadable: a stream's beginning, or all of it, cannot be read.
        """
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        # An item waits for the next one, so that images skipped at the very end still have one to be named in.
        waiting, skipped, seen = None, [], 0
        for seen, row in enumerate(self._rows, start=1):
            index = first + (seen - 1) * step
            image = row[self.source.image_column]
            try:
                item = self._make(image, row.get(self.source.label_column), index)
            except UnreadableImage as error:
                skipped.append(Unreadable(index, self._make.name(image, index), str(error)))
                if len(skipped) > max(STREAM_MINIMUM, LIMIT * seen):
                    raise TooManyUnreadable.of(skipped, seen) from error
                continue
            if waiting is not None:
                yield waiting
            waiting, skipped = item | {"unreadable": skipped}, []
        if waiting is not None:
            yield waiting | {"unreadable": waiting["unreadable"] + skipped}
        elif skipped:
            raise TooManyUnreadable.of(skipped, seen)

    def groups(self, processes: int) -> int:
        """Into how many groups the shard files are dealt for so many processes: as many as divide both numbers."""
        return math.gcd(self._rows.num_shards, processes)

    def blocks(
        self, epoch: int, size: int, *, rank: int = 0, processes: int = 1, skip: int = 0, groups: int | None = None
    ) -> Iterator[list[Row]]:
        """One process's share of an epoch in blocks of `size` rows, of which only the last may be shorter.

        The shard files are dealt to the processes in [`~StreamingImageDataset.groups`]. A group's processes read the
        same files and take its blocks in turn: with one group, block j·P + p of the whole stream is the j-th of
        process p, and where P divides the number of files, no row is read twice. Groups that were made for another
        number of processes are first put together, row by row, to as many as divide P: steps with as many images then
        have the same ones.

        Args:
            epoch (`int`): Its order is its own.
            size (`int`): Rows per block, at least 1.
            rank (`int`, defaults to 0), processes (`int`, defaults to 1): Whose share, of how many.
            skip (`int`, defaults to 0): Rows of the epoch, over all processes, that were used before: they are read but
                not decoded.
            groups (`int`, *optional*): Those in which the epoch was begun, where another number of processes did.

        Returns:
            Rows whose `index` is unique in the epoch over all processes, and the same whatever is skipped.
        """
        groups = groups or self.groups(processes)
        together = math.gcd(groups, processes)
        first, member, members = rank % together, rank // together, processes // together
        mine = [self._group(epoch, group, groups, skip // groups) for group in range(first, groups, together)]
        numbered = itertools.chain.from_iterable(zip(*mine, strict=False))
        for turn in itertools.cycle(range(members)):
            block = list(itertools.islice(numbered, size))
            if turn == member and block:
                yield block
            if len(block) < size:
                return

    def decode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """As many items as rows: the next readable image of the block stands in for an unreadable one.

        Raises:
            TooManyUnreadable: none can be read.
        """
        items, unreadable = [], []
        for row in rows:
            try:
                items.append(self._make(row.image, row.label, row.index, row.epoch))
            except UnreadableImage as error:
                items.append(None)
                unreadable.append(Unreadable(row.index, self._make.name(row.image, row.index), str(error)))
        if len(unreadable) == len(rows):
            raise TooManyUnreadable.of(unreadable, len(rows))
        if unreadable:
            items = [next(item for item in items[place:] + items if item) for place in range(len(items))]
            items[0] = items[0] | {"unreadable": unreadable}
        return items

    def _group(self, epoch: int, group: int, groups: int, skip: int) -> Iterator[Row]:
        stream = split_dataset_by_node(self._rows, rank=group, world_size=groups)
        stream.set_epoch(epoch)
        rows = itertools.islice(self._read(stream), skip, None)
        return (Row(epoch, place * groups + group, *row) for place, row in enumerate(rows, start=skip))

    def _read(self, stream: datasets.IterableDataset) -> Iterator[tuple[Any, Any]]:
        for part in stream.iter(batch_size=_READ):
            images = part[self.source.image_column]
            yield from zip(images, part.get(self.source.label_column) or [None] * len(images), strict=True)


class _Start(NamedTuple):
    """Where an epoch was entered: the batch's number in the run, the epoch, images used of it before, and its groups.

    Without groups, they are those of the present number of processes.
    """

    batch: int
    epoch: int
    images: int
    groups: int | None = None


class StreamBatches(IterableDataset):
    """Collated batches of a [`StreamingImageDataset`] without end, one epoch after the other.

    Each process reads its share of the stream, see [`StreamingImageDataset.blocks`], and its workers decode: batches do
    not depend on how many workers there are, and none of them idles where there are few shard files. An epoch ends on
    all processes at once, when one of them has no full batch left; with a single process and `drop_last=False`, the
    last batch may be smaller.

    A run that continues calls [`~StreamBatches.resume`] and then skips the batches it has had: these come empty, at no
    cost, so that `accelerate`'s and the Trainer's own skipping is all that a front needs.

    Args:
        dataset ([`StreamingImageDataset`]): What to read.
        batch_size (`int`): Images per process.
        drop_last (`bool`, defaults to `True`): Leave out what does not fill a batch at the end of an epoch.
        loader (`dict`): Further arguments of torch's `DataLoader`, such as `num_workers`.
    """

    def __init__(self, dataset: StreamingImageDataset, batch_size: int, *, drop_last: bool = True, **loader: Any):
        self.dataset, self.batch_size, self.drop_last, self.loader = dataset, batch_size, drop_last, loader
        self._starts = [_Start(0, 0, 0)]

    def position(self, batches: int) -> dict[str, int]:
        """Where in the data a run is after so many batches per process: JSON, the same on every process."""
        start = max(found for found in self._starts if found.batch <= batches)
        return {
            "epoch": start.epoch,
            "images": start.images + (batches - start.batch) * self.batch_size * world_size(),
            "groups": start.groups or self.dataset.groups(world_size()),
        }

    def resume(self, batches: int, position: dict[str, int]) -> None:
        """Continues from a [`~StreamBatches.position`], be it of a run with another number of processes.

        With as many images per step over all processes, every image still comes once in the epoch, whose shard files
        stay in the groups it was begun with; the next epoch has those of the present number of processes.

        Args:
            batches (`int`): Batches that the front will skip.
            position (`dict`): What [`~StreamBatches.position`] gave.
        """
        self._starts = [_Start(batches, **position)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches as [`collate`] makes them; empty ones for those before the point of resuming.

        Raises:
            ValueError: the stream has fewer images than one step takes.
        """
        # Epochs entered by an earlier iterator are entered anew.
        del self._starts[1:]
        for _ in range(self._starts[0].batch):
            yield {}
        yield from DataLoader(_Decoded(self.dataset), batch_sampler=self._blocks(), collate_fn=collate, **self.loader)

    def _blocks(self) -> Iterator[list[Row]]:
        (batch, epoch, images, groups), processes = self._starts[0], world_size()
        while True:
            before = batch
            place = {"rank": rank(), "processes": processes, "skip": images, "groups": groups}
            blocks = self.dataset.blocks(epoch, self.batch_size, **place)
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
                    f"epoch {epoch} of {self.dataset.source.name} ended with images left on process {rank()}, as its "
                    "shard files hold more than others': write the data set in files of equal length"
                )
            blocks.close()
            if batch == before and images == 0:
                raise ValueError(
                    f"the stream {self.dataset.source.name} has fewer images than the {processes * self.batch_size} of "
                    "one step: lower --per_device_train_batch_size"
                )
            epoch, images, groups = epoch + 1, 0, None
            self._starts.append(_Start(batch, epoch, images))


class _Decoded(Dataset):
    """What workers make of the rows that the main process has read."""

    def __init__(self, dataset: StreamingImageDataset):
        self.dataset = dataset

    def __getitems__(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        return self.dataset.decode(rows)
