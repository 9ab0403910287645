"""Streams over processes and workers: every image once per epoch, from the beginning and from any point on."""

import itertools
import logging
from pathlib import Path

import datasets
import pytest
import torch
from streams import write_files

from hf_orthossl.data import StreamBatches, StreamingImageDataset, TooManyUnreadable, get_recipe, load_source

BATCH = 16
RECIPE = get_recipe("cifar-asym")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    no_pause()


def no_pause() -> None:
    # datasets waits so long at the end of every shuffled pass over parquet files.
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0


def stream_of(folder: Path, *, views=None, shuffle_buffer: int = 100, **settings) -> StreamBatches:
    no_pause()
    source = load_source(str(folder), streaming=True)
    data = StreamingImageDataset(source, views=views, image_size=8, seed=3, shuffle_buffer=shuffle_buffer)
    return StreamBatches(data, BATCH, **settings)


def labels_of(stream: StreamBatches, batches: int) -> list[list[int]]:
    return [batch["labels"].tolist() for batch in itertools.islice(stream, batches)]


def labels_and_indices(folder, batches, position=None):
    stream = stream_of(folder)
    if position is not None:
        stream.resume(0, position)
    found = list(itertools.islice(stream, batches))
    return [b["labels"].tolist() for b in found], [b["index"].tolist() for b in found], stream.position(batches)


def flat(lists) -> list[int]:
    return [value for inner in lists for value in inner]


def files_of(total: int, count: int) -> list[int]:
    return [total * (i + 1) // count - total * i // count for i in range(count)]


# --- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [8, 6, 3, 1])
def test_two_processes_see_every_image_once_per_epoch(files, two_processes, tmp_path):
    folder = write_files(tmp_path / "data", files_of(960, files))
    first, second = two_processes.run(labels_and_indices, folder, 60)
    for epoch in (slice(0, 30), slice(30, 60)):
        assert sorted(flat(first[0][epoch] + second[0][epoch])) == list(range(960))
        assert len(set(flat(first[1][epoch] + second[1][epoch]))) == 960
    assert flat(first[0][:30]) != flat(first[0][30:])
    if files % 2:
        # They take the blocks of one stream in turn: what one process alone has, in order.
        alone, _, _ = labels_and_indices(folder, 120)
        assert [batch for pair in zip(first[0], second[0], strict=True) for batch in pair] == alone


@pytest.mark.parametrize("files", [8, 3])
def test_an_epoch_leaves_out_less_than_a_step_and_ends_at_once(files, two_processes, tmp_path):
    folder = write_files(tmp_path / "data", files_of(1000, files))
    first, second = two_processes.run(labels_and_indices, folder, 31)
    assert first[2] == second[2] == {"epoch": 0, "images": 31 * 32, "groups": 2 if files == 8 else 1}
    seen = flat(first[0] + second[0])
    assert len(set(seen)) == len(seen) == 992
    first, second = two_processes.run(labels_and_indices, folder, 32)
    assert first[2] == second[2] == {"epoch": 1, "images": 32, "groups": 2 if files == 8 else 1}
    assert len(first[0][-1]) == len(second[0][-1]) == BATCH


def uneven_epoch(folder):
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("hf_orthossl.data.streaming")
    logger.addHandler(handler)
    try:
        return labels_and_indices(folder, 8), found
    finally:
        logger.removeHandler(handler)


def test_files_of_uneven_length_end_together_and_are_told(two_processes, tmp_path):
    folder = write_files(tmp_path / "data", [300, 100])
    shares, told = zip(*two_processes.run(uneven_epoch, folder), strict=True)
    for epoch in (slice(0, 6), slice(6, 8)):
        seen = flat(shares[0][0][epoch] + shares[1][0][epoch])
        assert len(set(seen)) == len(seen)
    assert shares[0][2] == shares[1][2] == {"epoch": 1, "images": 64, "groups": 2}
    assert len(told[0] + told[1]) == 1
    assert "files of equal length" in (told[0] + told[1])[0]


@pytest.mark.parametrize(("files", "processes"), [(6, 4), (4, 4), (12, 8), (5, 3), (1, 4)])
def test_blocks_of_any_number_of_processes_are_a_partition(files, processes, tmp_path):
    data = stream_of(write_files(tmp_path / "data", files_of(480, files))).dataset
    read = [list(data.blocks(1, 10, rank=rank, processes=processes)) for rank in range(processes)]
    rows = [row for blocks in read for block in blocks for row in block]
    assert sorted(row.label for row in rows) == list(range(480))
    assert len({row.index for row in rows}) == 480
    assert all(len(block) == 10 for blocks in read for block in blocks[:-1])
    for rank, blocks in enumerate(read):
        later = list(data.blocks(1, 10, rank=rank, processes=processes, skip=3 * 10 * processes))
        assert later == blocks[3:]


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_last_batch_of_one_process(drop_last, tmp_path):
    stream = stream_of(write_files(tmp_path / "data", [40]), drop_last=drop_last)
    sizes = [len(labels) for labels in labels_of(stream, 6)]
    assert sizes == ([16] * 6 if drop_last else [16, 16, 8] * 2)
    epoch, images = (2, 0) if drop_last else (1, 16)
    assert stream.position(4) == {"epoch": epoch, "images": images, "groups": 1}


def test_a_stream_that_is_too_short(tmp_path):
    with pytest.raises(ValueError, match="fewer images than the 16 of one step"):
        next(iter(stream_of(write_files(tmp_path / "data", [15]))))


# --- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_as_if_nothing_had_been(workers, tmp_path):
    """Labels, crops made at decode and order; also at the end of an epoch, whose last files run dry."""
    folder = write_files(tmp_path / "data", [90, 30, 50], sizes=(20, 24))
    settings = {"num_workers": workers}
    whole = list(itertools.islice(stream_of(folder, views=RECIPE), 26))
    assert "crops" in whole[0]
    for done in (0, 1, 7, 9, 10, 11, 19, 23):
        before = stream_of(folder, views=RECIPE, **settings)
        read = list(itertools.islice(before, done + 1))
        after = stream_of(folder, views=RECIPE, **settings)
        after.resume(done, before.position(done))
        rest = list(itertools.islice(after, done + 3))
        assert rest[:done] == [{}] * done
        for expected, batches in ((whole[: done + 1], read), (whole[done : done + 3], rest[done:])):
            for one, other in zip(expected, batches, strict=True):
                assert one["labels"].tolist() == other["labels"].tolist()
                assert one["index"].tolist() == other["index"].tolist()
                assert all(torch.equal(a, b) for a, b in zip(one["crops"], other["crops"], strict=True))


@pytest.mark.parametrize("files", [6, 3])
def test_two_processes_resume_without_duplicates_or_loss(files, two_processes, tmp_path):
    folder = write_files(tmp_path / "data", files_of(960, files))
    whole = two_processes.run(labels_and_indices, folder, 60)
    (early, _, position), (others, _, same) = two_processes.run(labels_and_indices, folder, 37)
    assert position == same == {"epoch": 1, "images": 7 * 2 * BATCH, "groups": 2 if files == 6 else 1}
    rest = two_processes.run(labels_and_indices, folder, 23, position)
    for uninterrupted, before, after in zip(whole, (early, others), rest, strict=True):
        assert uninterrupted[0] == before + after[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_another_number_of_processes_reads_what_is_left(processes, two_processes, tmp_path):
    """Where processes share blocks, here of 3 files over 2: in an epoch that began with the other number."""
    folder = write_files(tmp_path / "data", files_of(960, 3))
    if processes == 1:
        shares = two_processes.run(labels_and_indices, folder, 10)
        rest = [labels_and_indices(folder, 40, shares[0][2])]
    else:
        shares = [labels_and_indices(folder, 20)]
        rest = two_processes.run(labels_and_indices, folder, 20, shares[0][2])
    used = [label for labels, _, _ in shares for label in flat(labels)]
    left = [label for labels, _, _ in rest for label in flat(labels)]
    assert sorted(used + left) == list(range(960))


@pytest.mark.parametrize(("files", "before", "now"), [(12, 4, 1), (12, 4, 2), (12, 2, 4), (12, 4, 3), (6, 6, 4)])
def test_an_epoch_begun_by_another_number_of_processes_has_the_same_steps(files, before, now, tmp_path):
    """Steps of 24 images, of files that the processes had dealt among them: the same images in each."""
    data = stream_of(write_files(tmp_path / "data", files_of(480, files))).dataset

    def steps(processes, **place):
        shares = [data.blocks(1, 24 // processes, rank=rank, processes=processes, **place) for rank in range(processes)]
        return [sorted(row for block in step for row in block) for step in zip(*shares, strict=True)]

    whole = steps(before)
    assert sorted(row.label for step in whole for row in step) == list(range(480))
    assert steps(now, skip=24 * 7, groups=data.groups(before)) == whole[7:]


def test_the_groups_of_an_epoch_are_kept_to_its_end(two_processes, tmp_path):
    folder = write_files(tmp_path / "data", files_of(960, 6))
    shares = two_processes.run(labels_and_indices, folder, 10)
    labels, _, position = labels_and_indices(folder, 40, shares[0][2])
    assert sorted(flat(labels) + [label for before, _, _ in shares for label in flat(before)]) == list(range(960))
    assert position == {"epoch": 0, "images": 960, "groups": 2}
    assert labels_and_indices(folder, 41, shares[0][2])[2] == {"epoch": 1, "images": BATCH, "groups": 1}


def test_what_was_had_is_not_decoded_again(tmp_path, monkeypatch):
    from hf_orthossl.data import dataset

    folder, decoded, decode = write_files(tmp_path / "data", [100, 100]), [], dataset.decode_channels
    monkeypatch.setattr(
        dataset, "decode_channels", lambda value, *rest, **page: decoded.append(value) or decode(value, *rest, **page)
    )
    stream = stream_of(folder)
    stream.resume(11, {"epoch": 0, "images": 11 * BATCH})
    assert len(labels_of_resumed(stream, 12)) == BATCH
    assert len(decoded) == BATCH


def labels_of_resumed(stream: StreamBatches, batches: int) -> list[int]:
    return list(itertools.islice(stream, batches))[-1]["labels"].tolist()


# --- unreadable images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_once_and_another_of_its_batch_stands_in(workers, tmp_path):
    folder = write_files(tmp_path / "data", [64], broken=(5, 6, 31))
    batches = list(itertools.islice(stream_of(folder, shuffle_buffer=0, num_workers=workers), 4))
    assert [len(batch["labels"]) for batch in batches] == [BATCH] * 4
    assert batches[0]["labels"][4:8].tolist() == [4, 7, 7, 7]
    assert batches[1]["labels"][14:].tolist() == [30, 16]
    assert [[name for _, name, _ in b["unreadable"]] for b in batches] == [["5.png", "6.png"], ["31.png"], [], []]


def test_a_batch_of_junk_stops_the_run(tmp_path):
    folder = write_files(tmp_path / "data", [64], broken=tuple(range(16, 32)))
    with pytest.raises(TooManyUnreadable, match="16 of 16 images cannot be read"):
        labels_of(stream_of(folder, shuffle_buffer=0), 2)
