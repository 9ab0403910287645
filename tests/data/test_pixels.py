"""One rule per data set for what becomes black and white: found from a sample, printed, and the same everywhere."""

import io
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from hf_orthossl.data import ImageDataset, UnreadableImage, decode_image, load_source
from hf_orthossl.data.pixels import PixelRule

RNG = np.random.default_rng(0)


def encoded(array, kind="TIFF", **options) -> bytes:
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, kind, **options)
    return file.getvalue()


def png16(array: np.ndarray) -> bytes:
    """A PNG of 16 bits and 1 to 4 channels, written from the specification: Pillow writes grey ones only."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(array: np.ndarray, **tags) -> bytes:
    """A TIFF with any number of bands and type, little-endian and uncompressed, written from the specification."""
    bands = array.shape[2] if array.ndim == 3 else 1
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    size = array.dtype.itemsize * 8
    sample_format = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    entries = [
        (256, 3, [array.shape[1]]),
        (257, 3, [array.shape[0]]),
        (258, 3, [size] * bands),
        (259, 3, [1]),
        (262, 3, [tags.get("photometric", 2 if bands > 2 else 1)]),
        (273, 4, [8]),
        (277, 3, [bands]),
        (278, 3, [array.shape[0]]),
        (279, 4, [len(data)]),
        *([(338, 3, tags["extra"])] if "extra" in tags else []),
        (339, 3, [sample_format] * bands),
    ]
    start = 8 + len(data)
    long, table = b"", struct.pack("<H", len(entries))
    after = start + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        packed = struct.pack("<" + "HI"[kind == 4] * len(values), *values)
        if len(packed) > 4:
            table += struct.pack("<HHII", tag, kind, len(values), after + len(long))
            long += packed
        else:
            table += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", start) + data + table + b"\0\0\0\0" + long


def source_of(files, streaming=False, labels=None, **options):
    images = [{"bytes": data, "path": f"{number}.img"} for number, data in enumerate(files)]
    features = {"image": datasets.Image(decode=False)}
    columns = {"image": images}
    if labels is not None:
        features["label"], columns["label"] = datasets.Value("int64"), labels
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return load_source(rows, streaming=streaming, **options)


def grey(source, row=0) -> np.ndarray:
    image = source.dataset[row]["image"]
    return np.asarray(decode_image(image, source.pixels, page=source.page(row)))[..., 1]


def scaled(values, low, high) -> np.ndarray:
    """The oracle: float64 and no table."""
    return np.rint(((values.astype(np.float64) - low) / (high - low) * 255).clip(0, 255)).astype(np.uint8)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF big-endian"])
def test_integers_are_scaled_from_the_depth_of_the_data_set_not_of_the_image(bits, kind):
    bright = RNG.integers(0, 2**bits, (9, 7)).astype(np.uint16)
    bright[0, 0] = 2**bits - 1
    dark = bright // 9
    if kind == "TIFF big-endian":
        images = [Image.frombytes("I;16B", (7, 9), a.astype(">u2").tobytes()) for a in (dark, bright)]
        files = [encoded(image) for image in images]
    else:
        files = [encoded(a, kind) for a in (dark, bright)]
    source = source_of(files)
    for row, values in enumerate((dark, bright)):
        np.testing.assert_array_equal(grey(source, row), scaled(values, 0, 2**bits - 1))
    assert source.pixels.describe() == f"16-bit grey, values {dark.min()}–{2**bits - 1}: scaled from {bits} bits"


def test_12_bits_give_the_grey_levels_of_the_same_images_in_8_bits():
    eight = RNG.integers(0, 256, (16, 16)).astype(np.uint8)
    twelve = np.rint(eight.astype(np.float64) * 4095 / 255).astype(np.uint16)
    np.testing.assert_array_equal(grey(source_of([encoded(twelve, "PNG")])), eight)


def test_16_bit_colours_are_read_in_full_and_transparency_is_white():
    colours = RNG.integers(0, 4096, (6, 5, 3)).astype(np.uint16)
    colours[0, 0] = 4095
    opacity = RNG.integers(0, 65536, (6, 5, 1)).astype(np.uint16)
    opacity[:4] = 65535
    source = source_of([png16(colours), png16(np.concatenate([colours, opacity], -1))])
    assert source.pixels.describe().startswith("16-bit RGB, values")
    assert "scaled from 12 bits; transparency is shown on white (1 of 2 sampled)" in source.pixels.describe()
    opaque, clear = (np.asarray(decode_image(row["image"], source.pixels)) for row in source.dataset)
    np.testing.assert_array_equal(opaque, scaled(colours, 0, 4095))
    share = opacity / 65535
    np.testing.assert_allclose(clear, opaque * share + 255 * (1 - share), atol=0.5)


def test_16_bit_colours_that_pillow_would_reduce_are_refused_unless_they_fill_their_range():
    full = RNG.integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    image = decode_image(tiff(full), source_of([tiff(full)]).pixels)
    assert np.abs(np.asarray(image).astype(int) - full / 257).max() <= 1
    with pytest.raises(ValueError, match=r"0\.img is a TIFF of 16-bit colours that reach only 4095.* convert"):
        source_of([tiff(full // 16)]).pixels  # noqa: B018


@pytest.mark.parametrize(
    ("values", "low", "high", "words"),
    [
        (RNG.random((8, 8), np.float32), 0, 1, "scaled from 0–1"),
        (RNG.random((8, 8), np.float32) * 255, 0, 255, "scaled from 0–255"),
        (RNG.random((8, 8), np.float32) * 3000 - 20, None, None, "scaled from that range"),
        (RNG.integers(-500, 2000, (8, 8)).astype(np.int16), None, None, "scaled from that range"),
        (RNG.integers(0, 2**31, (8, 8)).astype(np.uint32) * 2 + 1, 0, 2**32 - 1, "scaled from 32 bits"),
        (RNG.integers(-100, 100, (8, 8)).astype(np.int8), None, None, "scaled from that range"),
    ],
)
def test_floats_and_signed_and_wide_integers(values, low, high, words):
    low, high = (values.min(), values.max()) if low is None else (low, high)
    source = source_of([tiff(values), tiff(values[::-1])])
    assert words in source.pixels.describe()
    if values.dtype == np.int8:
        low, high = float(low), float(high)
    np.testing.assert_array_equal(grey(source), scaled(values, low, high))


@pytest.mark.parametrize("named", ["by the file", "by the user", "not a number"])
def test_missing_pixels_are_black_and_outside_of_the_range(named):
    height = RNG.random((8, 8)).astype(np.float32) * 1000 + 500
    hole = np.zeros((8, 8), bool)
    hole[2:4] = True
    holed = np.where(hole, np.float32(np.nan if named == "not a number" else -9999), height)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = "-9999"
    data = encoded(holed, tiffinfo=tags) if named == "by the file" else encoded(holed)
    source = source_of([data], **({"nodata": -9999} if named == "by the user" else {}))
    expected = np.where(hole, 0, scaled(height, height[~hole].min(), height[~hole].max()))
    np.testing.assert_array_equal(grey(source), expected)
    assert ("missing pixels (-9999) are black" in source.pixels.describe()) == (named != "not a number")


def test_a_value_far_from_all_others_is_pointed_out():
    height = (RNG.random((40, 40)) * 100 + 500).astype(np.float32)
    height[:10] = -9999
    assert "is -9999 the value of missing pixels? pass --nodata -9999" in source_of([tiff(height)]).pixels.describe()
    narrow = RNG.integers(20_000, 24_000, (40, 40)).astype(np.uint16)
    assert "98 % of them lie within 20" in source_of([tiff(narrow)]).pixels.describe()


def test_a_requested_range_holds_for_every_kind_of_value():
    values = RNG.integers(0, 5000, (8, 8)).astype(np.uint16)
    source = source_of([encoded(values)], pixel_range=(100, 2000))
    np.testing.assert_array_equal(grey(source), scaled(values, 100, 2000))
    assert source.pixels.describe().endswith("scaled from 100–2000 as requested, what is beyond is clipped")
    assert source.pixels.settings() == {"pixel_range": "100–2000"}
    small = RNG.integers(0, 16, (8, 8)).astype(np.uint8)
    np.testing.assert_array_equal(grey(source_of([encoded(small, "PNG")], pixel_range=(0, 15))), scaled(small, 0, 15))


def test_values_beyond_the_range_are_clipped_and_said_once(caplog):
    files = [encoded(np.full((4, 4), value, np.uint16), "PNG") for value in [4000] * 64 + [9000, 9001]]
    source = source_of([files[0], *files])
    source.pixels = PixelRule.of(files[:64])
    data = ImageDataset(source)
    assert int(data[65]["pixel_values"].max()) == int(data[66]["pixel_values"].max()) == 255
    assert len(caplog.messages) == 1
    assert caplog.messages[0] == (
        "65.img has values up to 9000, beyond the range 0–4095 of its data set, and is clipped: "
        "pass --pixel_range 0 9000"
    )


def test_all_splits_have_the_rule_of_the_training_split():
    bright, dark = (np.full((4, 4), value, np.uint16) for value in (4000, 250))
    rows = {
        name: datasets.Dataset.from_dict({"image": [encoded(array, "PNG")]}).cast_column("image", datasets.Image())
        for name, array in (("test", dark), ("train", bright))
    }
    sources = [load_source(datasets.DatasetDict(rows), split=split) for split in ("train", "test", "test[:1]")]
    assert len({source.pixels.high for source in sources}) == 1
    assert grey(sources[1]).max() == round(250 / 4095 * 255)
    alone = load_source(rows["test"])
    assert alone.pixels.high == 255
    assert alone.as_in(sources[0]).pixels == sources[0].pixels


def test_8_and_16_bits_beside_each_other_and_what_cannot_be_mixed():
    eight, twelve = RNG.integers(0, 256, (8, 8)).astype(np.uint8), RNG.integers(0, 4096, (8, 8)).astype(np.uint16)
    source = source_of([encoded(eight, "PNG"), encoded(twelve, "PNG")])
    np.testing.assert_array_equal(grey(source, 0), eight)
    np.testing.assert_array_equal(grey(source, 1), scaled(twelve, 0, 4095))
    assert source.pixels.describe().startswith("8-bit grey as it is, and 16-bit grey, values")
    with pytest.raises(ValueError, match=r"floating-point values \(1\.img\) and integers above 8 bits \(0\.img\)"):
        source_of([encoded(twelve), encoded(twelve.astype(np.float32))]).pixels  # noqa: B018
    # A wide image among sampled ones of 8 bits has no known range.
    with pytest.raises(UnreadableImage, match="16 bits in a data set whose sampled images have 8: pass --pixel_range"):
        decode_image(encoded(twelve), PixelRule.of([encoded(eight, "PNG")]))


# --- channels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "tags"),
    [
        (RNG.integers(0, 256, (6, 5, 4), np.uint8), {"extra": [2]}),  # near infrared marked as alpha
        (RNG.integers(0, 256, (6, 5, 4), np.uint8), {"extra": [0]}),
        (RNG.integers(0, 256, (6, 5, 2), np.uint8), {"extra": [2], "photometric": 1}),
        (RNG.integers(0, 256, (6, 5, 6), np.uint8), {"extra": [0, 0, 0]}),
        (RNG.integers(0, 65536, (6, 5, 4), np.uint16), {"extra": [0]}),
        (RNG.integers(0, 65536, (6, 5, 8), np.uint16), {"photometric": 1}),  # unknown to Pillow
        (RNG.random((6, 5, 4), np.float32), {"photometric": 1}),
    ],
)
def test_bands_are_never_composited_or_dropped(array, tags):
    bands = array.shape[2]
    with pytest.raises(ValueError, match=rf"given: 0\.img is a TIFF of {bands} bands.*convert the images") as caught:
        ImageDataset(source_of([tiff(array, **tags)]))
    assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableImage, match=f"{bands} bands"):
        decode_image(tiff(array, **tags))


def test_cmyk_is_a_colour_and_not_four_bands():
    inks = RNG.integers(0, 256, (6, 5, 4), np.uint8)
    expected = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode_image(tiff(inks, photometric=5))), expected)


@pytest.mark.parametrize("shape", [(5, 6, 4), (4, 5, 6), (5, 6, 2), (7, 8, 9)])
def test_arrays_of_other_channels_are_refused_with_their_shape(shape):
    with pytest.raises(
        UnreadableImage, match=rf"an array of shape \({', '.join(map(str, shape))}\) has [2479] channels"
    ):
        decode_image(np.zeros(shape, np.uint8))


# --- pages ---------------------------------------------------------------------------------------------------------


def stack(count, kind="TIFF", mode="L"):
    pages = [Image.new(mode, (6, 4), 10 * (page + 1)) for page in range(count)]
    return encoded(pages[0], kind, save_all=True, append_images=pages[1:])


def test_pages_are_said_and_the_first_is_used():
    source = source_of([stack(4), stack(1), stack(3)])
    assert source.num_rows == 3
    assert grey(source).max() == 10
    assert source.pixels.describe() == (
        "8-bit grey; 2 of 3 sampled files have 3–4 pages: the first is used; pass --pages images or channels for the "
        "others"
    )


def test_pages_as_images():
    source = source_of([stack(4), stack(1), stack(2)], labels=[5, 6, 7], pages="images")
    data = ImageDataset(source)
    items = data.__getitems__(range(len(data)))
    assert [int(item["pixel_values"].max()) for item in items] == [10, 20, 30, 40, 10, 10, 20]
    assert [item["labels"] for item in items] == [5, 5, 5, 5, 6, 7, 7]
    with pytest.raises(ValueError, match="pages is images, but the data set given is a stream"):
        source_of([stack(2)], streaming=True, pages="images")


def test_pages_as_channels():
    source = source_of([stack(3), stack(1), encoded(np.full((4, 6), 9, np.uint8))], pages="channels")
    colours = [np.asarray(decode_image(row["image"], source.pixels))[0, 0].tolist() for row in source.dataset]
    assert colours == [[10, 20, 30], [10, 10, 10], [9, 9, 9]]
    with pytest.raises(ValueError, match=r"0\.img is a file of 4 pages, and 1 or 3 of them can be channels"):
        source_of([stack(4)], pages="channels").pixels  # noqa: B018
    with pytest.raises(ValueError, match=r"page 0 is in colour \(RGB\)"):
        source_of([stack(3, mode="RGB")], pages="channels").pixels  # noqa: B018


def test_a_preview_and_smaller_copies_are_no_pages():
    photograph = Image.new("RGB", (32, 24), "red")
    data = encoded(photograph, "MPO", save_all=True, append_images=[photograph.resize((8, 6))])
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    pyramid, copy = io.BytesIO(), photograph.resize((16, 12))
    copy.encoderinfo = {"tiffinfo": tags}
    photograph.save(pyramid, "TIFF", save_all=True, append_images=[copy])
    assert Image.open(io.BytesIO(pyramid.getvalue())).n_frames == 2
    source = source_of([data, pyramid.getvalue()], pages="images")
    assert source.num_rows == 2
    assert source.pixels.describe() == "8-bit RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_frames_of_animations_are_pages(kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    source = source_of([data], pages="images")
    found = [
        np.asarray(decode_image(source.dataset[row]["image"], source.pixels, page=source.page(row))) for row in range(3)
    ]
    assert [image[0, 0].tolist() for image in found] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize("kind", ["png", "webp", "jp2"])
def test_a_band_marked_as_transparency_is_refused_and_transparency_is_not(kind, tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    shape = np.zeros((16, 16, 1), np.uint8)
    shape[4:12, 4:12] = 255
    shape[3] = 128
    for name, last in (("cut out", shape), ("infrared", rng.integers(0, 256, (16, 16, 1), dtype=np.uint8))):
        (tmp_path / name).mkdir()
        Image.fromarray(np.dstack([colours, last])).save(tmp_path / name / f"0.{kind}", lossless=True)
    assert "transparency is shown on white (1 of 1 sampled)" in load_source(tmp_path / "cut out").describe()
    with pytest.raises(ValueError, match=f"0.{kind} is an image of 4 channels, of which the last is marked as transp"):
        load_source(tmp_path / "infrared").describe()
