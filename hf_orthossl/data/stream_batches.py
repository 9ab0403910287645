"""Batches of a stream over several processes and workers, each image once per epoch, from any point on."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..distributed.collectives import all_reduce_min, rank, world_size

# By its public name, which the module of the same name would otherwise take.
from . import collate
from .streaming import Row, StreamingImageDataset

logger = logging.getLogger(__name__)


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
