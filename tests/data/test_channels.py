"""Images of any number of channels: how they are read, become 8 bits, are normalized and augmented."""

import io

import datasets
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from satellite import BANDS, image, write, write_folders

from hf_orthossl.data import ImageDataset, StreamingImageDataset, UnreadableImage, Views, load_source
from hf_orthossl.data.augment.crop import DRAWS as CROP_DRAWS
from hf_orthossl.data.augment.recipes import Recipe, ViewSpec, for_channels, get_recipe
from hf_orthossl.data.bands import Layout, WrongChannels, open_bands
from hf_orthossl.data.statistics import channel_statistics

VALUES = image(np.random.default_rng(0), 0, 24)
LAST = VALUES.transpose(1, 2, 0)


def read(value, channels=BANDS, **layout):
    bands = open_bands(value, Layout(channels, **layout))
    values = bands.read()
    assert values.shape == (bands.height, bands.width, channels)
    return values


# --- files and arrays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "separate"},
        {"planarconfig": "contig", "compression": "lzw", "predictor": True},
        {"planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
        {"planarconfig": "contig", "bigtiff": True, "byteorder": ">"},
    ],
)
def test_bands_of_a_tiff_are_its_channels(options, tmp_path):
    values = VALUES if options["planarconfig"] == "separate" else LAST
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", **options)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), LAST)
    np.testing.assert_array_equal(read((tmp_path / "a.tif").read_bytes()), LAST)


def test_pages_of_one_band_are_channels_unless_the_first_has_all(tmp_path):
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for page in VALUES:
            file.write(page, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read(tmp_path / "pages.tif"), LAST)
    with tifffile.TiffWriter(tmp_path / "several.tif") as file:
        for shift in (0, 7):
            file.write(VALUES + shift, photometric="minisblack", planarconfig="separate", metadata=None)
        file.write(VALUES[:, ::2, ::2], photometric="minisblack", planarconfig="separate", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read(tmp_path / "several.tif"), LAST)
    source = load_source(str(tmp_path / "several.tif"), channels=BANDS, pages="images")
    first, second = (item["pixel_values"].int() for item in ImageDataset(source))
    assert source.num_rows == 2
    assert (second >= first).all()
    assert (second > first).any()


def test_a_tiff_is_turned_upright_and_its_missing_value_known(tmp_path):
    tags = [(274, "H", 1, 6, True), (42113, "s", 0, "-1", True)]
    tifffile.imwrite(
        tmp_path / "a.tif", VALUES[:, :20], photometric="minisblack", planarconfig="separate", extratags=tags
    )
    bands = open_bands(tmp_path / "a.tif", Layout(BANDS))
    assert (bands.height, bands.width, bands.nodata) == (24, 20, -1)
    np.testing.assert_array_equal(bands.read(), np.rot90(LAST[:20], -1))


def test_arrays_have_their_channels_where_their_number_is(tmp_path):
    np.save(tmp_path / "first.npy", VALUES)
    np.save(tmp_path / "last.npy", LAST)
    for value in (tmp_path / "first.npy", tmp_path / "last.npy", VALUES, LAST, torch.from_numpy(VALUES.astype("i4"))):
        np.testing.assert_array_equal(read(value), LAST)
    listed = read(VALUES.tolist(), number_type="uint16")
    assert listed.dtype == np.uint16
    np.testing.assert_array_equal(listed, LAST)


def test_an_ambiguous_axis_is_asked_for():
    cube = np.arange(4 * 5 * 4).reshape(4, 5, 4).astype(np.uint8)
    with pytest.raises(UnreadableImage, match="pass --channel_axis first or last"):
        read(cube, channels=4)
    np.testing.assert_array_equal(read(cube, channels=4, axis="last"), cube)
    np.testing.assert_array_equal(read(cube, channels=4, axis="first"), cube.transpose(1, 2, 0))


def test_four_channels_of_a_png_are_kept_as_they_are(tmp_path):
    values = np.random.default_rng(0).integers(256, size=(8, 9, 4)).astype(np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png", channels=4), values)
    with pytest.raises(WrongChannels, match=r"4 channels .RGBA., where 5 channels are read"):
        read(tmp_path / "a.png", channels=5)


def test_sizes_that_a_file_cannot_hold_are_refused_before_anything_is_decoded(tmp_path):
    write(tmp_path / "a.tif", VALUES)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    huge = bytearray(whole)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        for name in ("ImageWidth", "ImageLength"):
            tag = tiff.pages[0].tags[name]
            size = tag.valuebytecount
            huge[tag.valueoffset : tag.valueoffset + size] = (2 ** (8 * size - 1) - 1).to_bytes(size, "little")
    (tmp_path / "huge.tif").write_bytes(huge)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    lying = (tmp_path / "lying.npy").open("wb")
    np.lib.format.write_array_header_1_0(
        lying, {"descr": "<u2", "fortran_order": False, "shape": (2**20, 2**20, BANDS)}
    )
    lying.close()
    for name in ("cut.tif", "huge.tif", "objects.npy", "lying.npy"):
        with pytest.raises(UnreadableImage):
            read(tmp_path / name)


def test_damaged_bytes_are_unreadable_and_nothing_else():
    rng, files = np.random.default_rng(0), []
    for options in ({}, {"compression": "zlib", "tile": (16, 16)}):
        file = io.BytesIO()
        tifffile.imwrite(file, VALUES, photometric="minisblack", planarconfig="separate", **options)
        files.append(file.getvalue())
    array = io.BytesIO()
    np.save(array, VALUES)
    files.append(array.getvalue())
    unreadable = 0
    for turn in range(150):
        damaged = bytearray(files[turn % 3])
        for place in rng.integers(0, 900, size=3):
            damaged[place] = rng.integers(256)
        try:
            assert read(bytes(damaged)).dtype.kind in "buif"
        except UnreadableImage:
            unreadable += 1
    assert 30 < unreadable < 150


def test_images_of_other_channels_are_left_out_and_named(tmp_path):
    folder = write_folders(tmp_path / "data")
    write(folder / "train" / "class0" / "odd.tif", VALUES[:12, :16, :16])
    source = load_source(str(folder), channels=BANDS)
    items = list(ImageDataset(source, unreadable="omit"))
    (odd,) = (item["unreadable"][0] for item in items if item["unreadable"])
    assert odd.name.endswith("odd.tif")
    assert "12 bands, where 13 channels are read" in odd.reason
    assert "1 of 17 sampled images are left out" in source.describe()
    with pytest.raises(ValueError, match=r"data set .* is a TIFF of 13 bands, where 4 channels are read"):
        _ = load_source(str(folder), channels=4).pixels
    with pytest.raises(ValueError, match="pass --channels to read as many bands"):
        _ = load_source(str(folder)).pixels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 0}, "channels is 0: it must be a whole number from 1 to 1024"),
        ({"channels": 2.5}, "channels is 2.5"),
        ({"channels": 4, "channel_axis": "middle"}, "channel_axis is 'middle': choose from first, last"),
        ({"channels": 3, "channel_axis": "first"}, "channel_axis is first, and channels is 3"),
    ],
)
def test_channels_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        load_source("digits", **options)


# --- one channel -----------------------------------------------------------------------------------------------------


def test_one_channel_is_that_of_the_three_and_colours_are_refused(tmp_path):
    grey = np.random.default_rng(0).integers(2**12, size=(6, 10, 12)).astype(np.uint16)
    for number, values in enumerate(grey):
        tifffile.imwrite(tmp_path / f"{number}.tif", values)
    one, three = (ImageDataset(load_source(str(tmp_path), channels=count))[2]["pixel_values"] for count in (1, 3))
    assert one.shape == (1, 10, 12)
    torch.testing.assert_close(one, three[:1])
    assert ImageDataset(load_source("digits", channels=1))[0]["pixel_values"].shape == (1, 32, 32)
    colours = datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4), (1, 2, 3))] * 3})
    with pytest.raises(ValueError, match="row 0 has 3 different channels, where 1 is read"):
        _ = load_source(colours.cast_column("image", datasets.Image()), channels=1).pixels


# --- values, statistics and views ------------------------------------------------------------------------------------


def test_every_form_gives_the_same_pixels_each_channel_scaled_by_itself(tmp_path):
    rng = np.random.default_rng(1)
    images = [image(rng, number % 2, 16) for number in range(6)]
    for number, values in enumerate(images):
        write(tmp_path / "tif" / f"{number}.tif", values)
        write(tmp_path / "npy" / f"{number}.npy", values)
    features = datasets.Features({"image": datasets.Array3D((BANDS, 16, 16), "uint16")})
    table = datasets.Dataset.from_dict({"image": images}, features=features)
    expected = np.empty((6, BANDS, 16, 16))
    for channel in range(BANDS):
        least = min(int(values[channel].min()) for values in images)
        most = max(int(values[channel].max()) for values in images)
        for number, values in enumerate(images):
            for place, value in np.ndenumerate(values[channel]):
                expected[number, channel][place] = round((int(value) - least) * (255 / (most - least)))
    forms = (str(tmp_path / "tif"), str(tmp_path / "npy"), table)
    for form in forms:
        source = load_source(form, channels=BANDS)
        pixels = torch.stack([item["pixel_values"] for item in ImageDataset(source)])
        np.testing.assert_array_equal(pixels.numpy(), expected)
        assert source.fingerprint
        stream = StreamingImageDataset(load_source(form, channels=BANDS, streaming=True))
        np.testing.assert_array_equal(torch.stack([item["pixel_values"] for item in stream]).numpy(), expected)
        statistics, streamed = channel_statistics(source), channel_statistics(stream.source)
        assert statistics == streamed
        np.testing.assert_allclose(statistics.mean, (expected / 255).mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(statistics.std, (expected / 255).std((0, 2, 3)), rtol=1e-12)
        assert statistics.images == 6


def test_a_constant_channel_is_said_and_missing_pixels_are_zero():
    values = np.stack([LAST.astype(np.float32)] * 3)
    values[..., 4] = 7
    values[0, 3, 5] = np.nan
    source = load_source(datasets.Dataset.from_dict({"image": list(values)}), channels=BANDS)
    assert not ImageDataset(source)[0]["pixel_values"][:, 3, 5].any()
    statistics = channel_statistics(source)
    assert statistics.images == 3
    constant = load_source(datasets.Dataset.from_dict({"image": list(values[1:])}), channels=BANDS)
    found = channel_statistics(constant)
    assert (found.std[4], found.constant) == (1.0, (5,))
    assert "constant channels are divided by 1: 5" in found.describe()


def test_large_images_are_cropped_while_decoding_and_small_ones_cached():
    images = [np.tile(VALUES, (1, 4, 4))] * 3
    source = load_source(datasets.Dataset.from_dict({"image": images}), channels=BANDS)
    crops = ImageDataset(source, views="cifar-asym", image_size=16)[0]["crops"]
    assert [crop.shape for crop in crops] == [(BANDS, 16, 16)] * 2
    kept = ImageDataset(source, image_size=16, cache_images="always")
    torch.testing.assert_close(kept[1]["pixel_values"], kept[1]["pixel_values"])
    assert kept[1]["pixel_values"].shape == (BANDS, 16, 16)


def test_jitter_of_channels_is_that_of_a_loop():
    spec = ViewSpec(scale=(1, 1), ratio=(1, 1), flip=0, jitter=0.8, brightness=0.4, contrast=0.6)
    views = Views(Recipe("test", (spec,)), 8, (0.0,) * 5, (1.0,) * 5)
    batch = torch.randint(256, (40, 5, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (made,) = views(batch, seed=3)
    generator = np.random.default_rng(3)
    draws = generator.random((40, CROP_DRAWS + 13 + 1), dtype=np.float32).astype(np.float64)[:, CROP_DRAWS:]
    amounts = generator.random((40, 2, 5), dtype=np.float32).astype(np.float64)
    changed = 0
    for number in range(40):
        expected = batch[number].double().numpy() / 255
        if draws[number, 0] < np.float32(0.8):
            changed += 1
            for operation in np.argsort(draws[number, 5:7]):
                strength = (spec.brightness, spec.contrast)[operation]
                for channel in range(5):
                    factor = 1 - strength + 2 * strength * amounts[number, operation, channel]
                    centre = 0 if operation == 0 else expected[channel].mean()
                    expected[channel] = np.clip(factor * expected[channel] + (1 - factor) * centre, 0, 1)
        np.testing.assert_allclose(made[number].numpy(), expected, atol=1e-6)
    assert 20 < changed < 40


def test_crop_flip_and_blur_are_those_of_three_channels():
    recipe = get_recipe("imagenet").with_(jitter=0, grayscale=0, solarize=0, blur=1.0)
    recipe = Recipe("test", recipe.views[:1])
    batch = torch.randint(256, (6, 6, 24, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (made,) = Views(recipe, 16, (0.0,) * 6, (1.0,) * 6)(batch, seed=1)
    for part in (slice(0, 3), slice(3, 6)):
        (expected,) = Views(recipe, 16, (0.0,) * 3, (1.0,) * 3)(batch[:, part], seed=1)
        torch.testing.assert_close(made[:, part], expected)


def test_what_a_recipe_becomes_is_said():
    recipe = get_recipe("cifar-asym")
    assert for_channels(recipe, 3) == (recipe, None)
    _, said = for_channels(recipe, 13)
    assert said == (
        "brightness and contrast of each channel by itself; without saturation, hue, grayscale, solarization"
    )
    changed, said = for_channels(recipe, 1)
    assert said == "without saturation, hue, grayscale"
    assert changed.views[1].solarize == recipe.views[1].solarize
    assert for_channels(get_recipe("digits"), 2)[1] == "brightness and contrast of each channel by itself"
    assert for_channels(Recipe("plain", (ViewSpec(jitter=0, grayscale=0),)), 13)[1] is None
