import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_orthossl.data import (
    ImageDataset,
    Recipe,
    StreamingImageDataset,
    TooManyUnreadable,
    UnreadableLog,
    Views,
    ViewSpec,
    collate,
    get_recipe,
    load_source,
    without_unreadable,
)
from hf_orthossl.data.unreadable import allowed
from hf_orthossl.distributed.collectives import rank

RECIPE = get_recipe("cifar-asym")


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def source_of(sizes: list[tuple[int, int]], broken: tuple[int, ...] = (), streaming: bool = False):
    """A source of noise images of the given heights and widths; `broken` rows hold junk. Labels are row numbers."""
    rng = np.random.default_rng(0)
    intact = [png(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    images = [{"bytes": b"junk" if row in broken else data, "path": f"{row}.png"} for row, data in enumerate(intact)]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": images, "label": list(range(len(sizes)))}, features=features)
    return load_source(rows, streaming=streaming)


def equal(one: dict, two: dict) -> bool:
    assert one.keys() == two.keys()
    tensors = [(one[key], two[key]) for key in ("pixel_values", "labels", "index") if key in one]
    tensors += list(zip(one.get("crops", []), two.get("crops", []), strict=True))
    return one["unreadable"] == two["unreadable"] and all(torch.equal(*map(torch.as_tensor, pair)) for pair in tensors)


# --- forms ---------------------------------------------------------------------------------------------------------


def test_uniform_images_come_whole():
    source = source_of([(8, 10)] * 5)
    data = ImageDataset(source, views=RECIPE, image_size=8)
    batch = collate([data[row] for row in range(5)])
    assert batch["pixel_values"].shape == (5, 3, 8, 10)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"].tolist() == batch["index"].tolist() == list(range(5))
    original = np.asarray(Image.open(io.BytesIO(source.dataset[2]["image"]["bytes"])))
    np.testing.assert_array_equal(data[2]["pixel_values"].permute(1, 2, 0).numpy(), original)


def test_a_stray_size_is_fitted_to_the_common_one():
    sizes = [(8, 10)] * 200
    sizes[1] = (33, 21)
    data = ImageDataset(source_of(sizes), views=RECIPE, image_size=8)
    assert collate([data[0], data[1]])["pixel_values"].shape == (2, 3, 8, 10)


def test_images_of_different_sizes_are_cropped_at_decode():
    recipe = get_recipe("cifar-multicrop")
    data = ImageDataset(source_of([(40, 50), (64, 33), (90, 41)]), views=recipe, image_size=32, seed=1)
    batch = collate([data[row] for row in range(3)])
    assert [tuple(crop.shape) for crop in batch["crops"]] == [(3, 3, size, size) for size in recipe.sizes(32)]
    assert batch["crops"][0].dtype == torch.uint8
    views = Views(recipe, 32, (0.5,) * 3, (0.25,) * 3)(batch["crops"], 0)
    assert [view.shape for view in views] == [crop.shape for crop in batch["crops"]]


def test_large_uniform_images_are_cropped_at_decode():
    assert "crops" in ImageDataset(source_of([(60, 80)] * 3), views=RECIPE, image_size=16)[0]


def test_crop_at_decode_is_a_resized_region_of_the_image():
    # One possible region, so the crop is known: the whole image.
    recipe = Recipe("whole", (ViewSpec(scale=(1.0, 1.0), ratio=(1.0, 1.0)),))
    source = source_of([(40, 40), (48, 48)])
    data = ImageDataset(source, views=recipe, image_size=16)
    original = Image.open(io.BytesIO(source.dataset[0]["image"]["bytes"])).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(data[0]["crops"][0].permute(1, 2, 0).numpy(), np.asarray(original))


def test_crops_follow_seed_epoch_and_row_only():
    source = source_of([(40, 50), (64, 33)])
    data, same, other = (ImageDataset(source, views=RECIPE, image_size=16, seed=seed) for seed in (1, 1, 2))
    first = data[0]
    assert equal(first, data[0])
    assert equal(first, same[0])
    assert not equal(first, other[0])
    assert not torch.equal(*first["crops"])
    data.set_epoch(1)
    assert not equal(first, data[0])
    data.set_epoch(0)
    assert equal(first, data[0])
    assert equal(first, ImageDataset(source, views=RECIPE, image_size=16, seed=1, indices=[1, 0])[1])


def test_evaluation_resizes_the_shorter_side_and_keeps_the_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    rows = datasets.Dataset.from_dict({"image": [png(wide), png(wide.transpose(1, 0, 2))]}).cast_column(
        "image", datasets.Image()
    )
    data = ImageDataset(load_source(rows), image_size=20)
    for item in (data[0], data[1]):
        assert item["pixel_values"].shape == (3, 20, 20)
        assert item["labels"] == -1
        assert (item["pixel_values"][:, 3:17, 3:17].int() - 200).abs().max() <= 1
    same = ImageDataset(source_of([(8, 8)] * 2), image_size=8)
    assert equal(same[0], ImageDataset(source_of([(8, 8)] * 2))[0])


def test_indices_choose_rows():
    data = ImageDataset(source_of([(8, 8)] * 6), indices=[4, 2])
    assert len(data) == 2
    assert [data[position]["index"] for position in (0, 1, -1)] == [4, 2, 2]
    with pytest.raises(IndexError):
        data[2]


def test_images_smaller_than_the_crop_are_refused():
    with pytest.raises(ValueError, match="are 20×20, smaller than image_size 32: pass --image_size 20"):
        ImageDataset(source_of([(20, 20)] * 3), views=RECIPE, image_size=32)
    with pytest.raises(ValueError, match="mostly 25×20, smaller than image_size 32"):
        ImageDataset(source_of([(20, 25), (20, 25), (50, 50)]), views=RECIPE, image_size=32)
    ImageDataset(source_of([(20, 25), (40, 41), (50, 50)]), views=RECIPE, image_size=32)
    ImageDataset(source_of([(20, 20)] * 3), image_size=32)
    with pytest.raises(ValueError, match="differ in size: pass image_size"):
        ImageDataset(source_of([(20, 20), (30, 30)]), views=RECIPE)
    with pytest.raises(ValueError, match="image_size is 0"):
        ImageDataset(source_of([(20, 20)]), image_size=0)


# --- loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[(8, 8)] * 12, [(20, 24), (24, 22)] * 6])
def test_workers_make_the_same_batches(sizes):
    data = ImageDataset(source_of(sizes, broken=(5,)), views=RECIPE, image_size=8)
    batches = [list(DataLoader(data, 4, collate_fn=collate, num_workers=number)) for number in (0, 2)]
    assert len(batches[0]) == len(batches[1]) == 3
    assert all(equal(*pair) for pair in zip(*batches, strict=True))
    assert all(equal(item, data[row]) for row, item in enumerate(data.__getitems__(list(range(12)))))


def test_persistent_workers_hear_of_the_next_epoch():
    data = ImageDataset(source_of([(20, 24), (24, 22)] * 3), views=RECIPE, image_size=8)
    loader = DataLoader(data, 6, collate_fn=collate, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        (batch,) = loader
        assert equal(batch, collate(data.__getitems__(range(6))))


# --- unreadable images ---------------------------------------------------------------------------------------------


def test_the_next_readable_image_stands_in():
    data = ImageDataset(source_of([(8, 8)] * 6, broken=(1, 2, 5)))
    batch = collate(data.__getitems__([0, 1, 4, 5]))
    assert batch["pixel_values"].shape[0] == 4
    assert batch["index"].tolist() == batch["labels"].tolist() == [0, 3, 4, 0]
    assert [(index, name) for index, name, _ in batch["unreadable"]] == [(1, "1.png"), (2, "2.png"), (5, "5.png")]
    assert all(reason.startswith("UnidentifiedImageError: ") for *_, reason in batch["unreadable"])
    assert not any("\n" in reason for *_, reason in batch["unreadable"])


def test_a_data_set_that_breaks_off_ends_the_search_in_one_line_from_a_worker_too():
    data = ImageDataset(source_of([(8, 8)] * 90, broken=tuple(range(10, 80))))
    for workers in (0, 1):
        with pytest.raises(TooManyUnreadable) as caught:
            list(DataLoader(data, 15, collate_fn=collate, num_workers=workers))
        assert str(caught.value).startswith(
            "32 of 90 images cannot be read, more than the 5 allowed: repair or remove 10.png ("
        )
        assert "\n" not in str(caught.value)


def test_log_counts_each_image_once_and_names_it(tmp_path):
    path = tmp_path / "run" / "unreadable_images.txt"
    log = UnreadableLog(path, total=300)
    log.add([])
    assert not path.exists()
    log.add([(7, "a\tb\n.png", "OSError: bad\nfile"), (7, "a\tb\n.png", "again")])
    log.add([(7, "a\tb\n.png", "again"), (8, "c.png", "truncated")])
    assert len(log) == 2
    assert path.read_text().splitlines() == ["7\ta b .png\tOSError: bad file", "8\tc.png\ttruncated"]


@pytest.mark.parametrize(
    ("total", "limit", "number"),
    [(50, 0.01, 5), (1000, 0.01, 10), (50, 0.2, 10), (1000, 1, 1), (1000, 30, 30), (1000, 0, 0), (40, 0.5, 20)],
)
def test_a_share_allows_five_images_and_a_number_is_one(total, limit, number):
    assert allowed(total, limit) == number


def test_log_stops_above_the_limit_with_the_names(tmp_path):
    log = UnreadableLog(tmp_path / "unreadable_images.txt", total=200, max_unreadable=2)
    log.add([(1, "one.png", "bad"), (2, "two.png", "bad")])
    with pytest.raises(TooManyUnreadable, match=r"3 of 200 .*one\.png \(bad\); two\.png \(bad\); three\.png \(worse\)"):
        log.add([(3, "three.png", "worse")])
    assert len((tmp_path / "unreadable_images.txt").read_text().splitlines()) == 3
    assert issubclass(TooManyUnreadable, ValueError)


def test_log_of_a_resumed_run_goes_on_where_it_was(tmp_path):
    path = tmp_path / "unreadable_images.txt"
    UnreadableLog(path, 200, 2).add([(1, "one.png", "bad"), (2, "two.png", "bad")])
    with path.open("a") as file:
        file.write("3\tcut o")
    again = UnreadableLog(path, 200, 2)
    again.add([(2, "two.png", "bad")])
    assert len(again) == 2
    with pytest.raises(TooManyUnreadable):
        again.add([(4, "four.png", "bad")])


def log_on_a_process(path, total):
    log, here = UnreadableLog(path, total, 3), rank()
    log.add([(here, f"{here}.png", "bad"), (9, "9.png", "bad")], seen=150)
    log.add([])
    early = len(log), log.seen
    try:
        log.add([(5, "5.png", "bad")] if here else [])
    except TooManyUnreadable as error:
        return early, str(error)


@pytest.mark.parametrize("total", [300, None])
def test_log_of_several_processes_counts_for_all_and_names_each_image_once(total, two_processes, tmp_path):
    path = tmp_path / "unreadable_images.txt"
    first, second = two_processes.run(log_on_a_process, path, total)
    assert first == second
    assert first[0] == (3, 300)
    assert first[1].startswith("4 of 300 images cannot be read")
    assert [line.split("\t")[1] for line in path.read_text().splitlines()] == ["0.png", "9.png", "1.png", "5.png"]


def test_log_of_a_stream_judges_by_what_was_seen(tmp_path):
    def bad(*numbers):
        return [(number, f"{number}.png", "bad") for number in numbers]

    log = UnreadableLog(tmp_path / "unreadable_images.txt", max_unreadable=0.1)
    log.add(bad(*range(10)), seen=10)  # 10 % of the first hundred
    log.add([], seen=190)
    log.add(bad(*range(10, 20)), seen=1)
    with pytest.raises(TooManyUnreadable, match=r"21 of 202 images cannot be read, more than the 20 allowed"):
        log.add(bad(20), seen=1)
    # A run that continues has seen none of it yet, and does not know how much the first part saw.
    again = UnreadableLog(tmp_path / "unreadable_images.txt", max_unreadable=0.1)
    again.add([], seen=110)
    again.add(bad(*range(30, 41)), seen=1)
    with pytest.raises(TooManyUnreadable, match=r"12 of 112 images .* allowed: repair or remove 30\.png"):
        again.add(bad(41), seen=1)


def test_the_first_unreadable_image_is_said_once(tmp_path, caplog):
    log = UnreadableLog(tmp_path / "unreadable_images.txt", total=300)
    log.add([(7, "a.png", "truncated")])
    log.add([(7, "a.png", "truncated"), (8, "b.png", "truncated")])
    assert caplog.messages == [
        "a.png cannot be read (truncated): another image takes its place, and all such images are listed in "
        f"{tmp_path / 'unreadable_images.txt'}"
    ]


def test_a_measurement_omits_what_cannot_be_read():
    source = source_of([(8, 8)] * 6, broken=(1, 2, 5))
    batch = without_unreadable(collate(ImageDataset(source, unreadable="omit").__getitems__(range(6))))
    assert batch["index"].tolist() == batch["labels"].tolist() == [0, 3, 4]
    assert len(batch["pixel_values"]) == 3
    assert [name for _, name, _ in batch["unreadable"]] == ["1.png", "2.png", "5.png"]
    crops = ImageDataset(source_of([(40, 50), (64, 33)], broken=(0,)), views=RECIPE, image_size=8, unreadable="omit")
    assert [len(part) for part in without_unreadable(collate(crops.__getitems__([0, 1])))["crops"]] == [1, 1]
    cached = ImageDataset(source, unreadable="omit", cache_images="always")
    for _ in range(2):
        items = cached.__getitems__([0, 1])
        assert [bool(item["unreadable"]) for item in items] == [False, True]
    with pytest.raises(ValueError, match="unreadable 'drop' is unknown: choose from replace, omit"):
        ImageDataset(source, unreadable="drop")


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_every_image_once_and_names_the_broken_ones(workers):
    data = StreamingImageDataset(
        source_of([(8, 8)] * 20, broken=(0, 7, 19), streaming=True), views=RECIPE, image_size=8
    )
    batches = list(DataLoader(data, 4, collate_fn=collate, num_workers=workers))
    labels = torch.cat([batch["labels"] for batch in batches]).tolist()
    assert sorted(labels) == [row for row in range(20) if row not in (0, 7, 19)]
    assert sorted(name for batch in batches for _, name, _ in batch["unreadable"]) == ["0.png", "19.png", "7.png"]
    indices = torch.cat([batch["index"] for batch in batches]).tolist()
    assert len(set(indices)) == len(indices)
    if workers == 0:
        whole = ImageDataset(source_of([(8, 8)] * 20), views=RECIPE, image_size=8)
        assert torch.equal(batches[0]["pixel_values"][0], whole[1]["pixel_values"])


def test_a_stream_is_shuffled_by_seed_and_epoch():
    source = source_of([(8, 8)] * 30, streaming=True)
    data, same = (StreamingImageDataset(source, image_size=8, seed=3, shuffle_buffer=30) for _ in range(2))

    def order(stream):
        return [item["labels"] for item in stream]

    first = order(data)
    assert first == order(same) != list(range(30))
    data.set_epoch(1)
    assert sorted(order(data)) == list(range(30))
    assert order(data) != first


def test_streams_of_different_sizes_are_cropped_at_decode():
    source = source_of([(20, 24), (24, 22)] * 3, streaming=True)
    items = list(StreamingImageDataset(source, views=RECIPE, image_size=8))
    whole = ImageDataset(source_of([(20, 24), (24, 22)] * 3), views=RECIPE, image_size=8)
    assert all(equal(item, whole[row]) for row, item in enumerate(items))


def test_a_stream_of_junk_ends():
    source = source_of([(8, 8)] * 120 + [(8, 8)] * 120, broken=tuple(range(70, 240)), streaming=True)
    with pytest.raises(TooManyUnreadable, match="images cannot be read"):
        list(StreamingImageDataset(source, image_size=8))


def test_streams_and_tables_are_not_mixed_up():
    with pytest.raises(ValueError, match="StreamingImageDataset"):
        ImageDataset(source_of([(8, 8)], streaming=True))
    with pytest.raises(ValueError, match="use ImageDataset"):
        StreamingImageDataset(source_of([(8, 8)]))


# --- wrong types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ImageDataset, StreamingImageDataset])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "digits"}, "source must be an ImageSource, got 'digits': open it with load_source"),
        ({"source": None}, "source must be an ImageSource, got None"),
        ({"views": 5}, "views must be a recipe or the name of one, such as 'digits', got 5"),
        ({"image_size": "8"}, "image_size must be a positive number of pixels, got '8'"),
    ],
)
def test_wrong_types_are_refused_by_name(kind, arguments, message):
    source = source_of([(8, 8)] * 2, streaming=kind is StreamingImageDataset)
    with pytest.raises(TypeError, match=message) as caught:
        kind(**{"source": source, "views": RECIPE, "image_size": 8, **arguments})
    assert "\n" not in str(caught.value)


def test_views_may_be_the_name_of_a_recipe():
    source = source_of([(40, 50), (64, 33)])
    data, same = (ImageDataset(source, views=views, image_size=16) for views in ("cifar-asym", RECIPE))
    assert equal(data[0], same[0])
    with pytest.raises(ValueError, match="did you mean 'cifar-asym'"):
        ImageDataset(source, views="cifar-asymm", image_size=16)
