import contextlib
import io
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_orthossl.data import UnreadableImage, decode_image, opening
from hf_orthossl.data.decoding import image_size, to_tensor


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(value) -> np.ndarray:
    image = decode_image(value)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def test_rgb_comes_back_unchanged_from_bytes_path_image_array_and_mapping(rgb, tmp_path):
    image = Image.fromarray(rgb)
    data = encoded(image)
    path = tmp_path / "image.PNG"
    path.write_bytes(data)
    values = [
        data,
        path,
        str(path),
        image,
        rgb,
        rgb.transpose(2, 0, 1),
        torch.from_numpy(rgb),
        rgb.astype(np.float32) / 255,
        rgb.astype(np.uint16) * 257,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
    ]
    for value in values:
        np.testing.assert_array_equal(pixels(value), rgb)
        assert image_size(value) == (7, 5)


def test_tensor_is_channels_first(rgb):
    tensor = to_tensor(decode_image(rgb))
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(tensor.numpy(), rgb.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_look_like_the_original(mode, rgb):
    # A grayscale image, so that every mode can hold it; 1-bit holds black and white.
    gray = (rgb[..., 0] >= 128).astype(np.uint8) * 255 if mode == "1" else rgb[..., 0]
    image = Image.fromarray(np.repeat(gray[..., None], 3, 2)).convert(mode)
    assert image.mode == mode
    expected = np.repeat(gray[..., None], 3, 2).astype(int)
    assert np.abs(pixels(image).astype(int) - expected).max() <= (0 if mode in ("L", "1") else 2)


def test_colour_palette_and_cmyk_jpeg_keep_colours():
    red = Image.new("RGB", (8, 8), (200, 30, 10))
    palette = encoded(red.quantize(4), "GIF")
    jpeg = encoded(red.convert("CMYK"), "JPEG", quality=95)
    for data in (palette, jpeg):
        assert np.abs(pixels(data).astype(int) - [200, 30, 10]).max() <= 4


def test_lab_keeps_colours():
    # CIE L* = 53.2, a* = 80.1, b* = 67.2 is sRGB red; Pillow stores L on 255 and a, b as signed bytes.
    lab = Image.frombytes("LAB", (1, 1), bytes([round(53.2 * 2.55), 80, 67]))
    red, green, blue = pixels(lab)[0, 0].tolist()
    assert red >= 245
    assert max(green, blue) <= 30


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(mode, rgb):
    colour = rgb if mode == "RGBA" else np.repeat(rgb[..., :1], 3, 2)
    alpha = np.random.default_rng(1).integers(0, 256, rgb.shape[:2], dtype=np.uint8)
    image = Image.fromarray(rgb if mode == "RGBA" else rgb[..., 0]).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    weight = alpha[..., None] / 255.0
    expected = colour * weight + 255 * (1 - weight)
    for value in (image, encoded(image)):
        assert np.abs(pixels(value) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_transparent_colour_of_a_png_becomes_white(mode):
    image = Image.new("RGB", (4, 2), (10, 20, 30)).convert(mode if mode != "P" else "RGB")
    if mode == "P":
        image = image.quantize(2)
    transparent = image.getpixel((0, 0))
    kept = image.copy()
    image.putpixel((0, 0), (99, 99, 99) if mode == "RGB" else (99 if mode == "L" else 1))
    decoded = pixels(encoded(image, transparency=transparent))
    assert (decoded[0, 1] == 255).all()
    assert not (decoded[0, 0] == 255).all()
    assert not (pixels(kept)[0, 1] == 255).any()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_is_scaled_not_clipped(kind):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = pixels(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(decoded[..., 1], np.round(values / 257.0).astype(np.uint8))


def test_dark_16_bit_stays_dark():
    assert pixels(Image.fromarray(np.full((2, 2), 200, np.uint16))).max() == 1


def test_wide_integers_and_floats_use_the_range_they_have():
    ramp = np.arange(256).reshape(16, 16)
    expected = ramp.astype(np.uint8)
    for array in (
        ramp,
        ramp.astype(np.int32),
        (ramp * 257).astype(np.int32),
        ramp / 255.0,
        ramp.astype(np.float32),
        ramp * 1000.0,
        ramp - 128,
    ):
        np.testing.assert_array_equal(pixels(array)[..., 0], expected)
    np.testing.assert_array_equal(
        pixels(encoded(Image.fromarray((ramp / 255).astype(np.float32)), "TIFF"))[..., 2], expected
    )
    np.testing.assert_array_equal(pixels(ramp >= 128)[..., 0], (ramp >= 128) * np.uint8(255))
    assert pixels(np.array([[np.nan, 1.0]]))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, tmp_path):
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:12, :8] = (255, 0, 0)
    upright[:12, 8:] = (0, 255, 0)
    upright[12:, :8] = (0, 0, 255)
    # The EXIF standard: where row 0 and column 0 of the stored image are in the scene.
    store = {
        1: lambda scene: scene,
        2: lambda scene: scene[:, ::-1],
        3: lambda scene: scene[::-1, ::-1],
        4: lambda scene: scene[::-1],
        5: lambda scene: scene.transpose(1, 0, 2),
        6: lambda scene: np.rot90(scene, 1),
        7: lambda scene: scene.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda scene: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(store(upright))), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(data), upright)
    assert image_size(data) == (24, 16)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def test_damaged_images_are_unreadable(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    png, jpeg = encoded(noise), encoded(noise, "JPEG")
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    broken = [
        *(b"", b"no image at all", png[: len(png) // 2], jpeg[: len(jpeg) // 2], page, None),
        *({"bytes": None, "path": None}, str(tmp_path / "missing.png"), 3, np.zeros((2, 3, 4, 5)), np.zeros((0, 4))),
    ]
    for value in broken:
        with pytest.raises(UnreadableImage) as caught:
            decode_image(value)
        assert isinstance(caught.value, OSError)
        assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_never_raise_anything_else(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]))
    damaged = bytearray(encoded(Image.new("RGB", (9, 9), "red"), kind))
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=8)):
        damaged[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(UnreadableImage):
        assert decode_image(bytes(damaged)).mode == "RGB"


def test_decompression_bomb_is_refused_even_where_pillow_was_told_not_to(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(opening, "MAX_PIXELS", 10_000)
    with pytest.raises(UnreadableImage, match="200×100 pixels"):
        decode_image(encoded(Image.new("L", (200, 100))))


def test_only_regular_files_and_the_hub_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for value, words in (
        (tmp_path / "pipe.png", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "gone.png", "no such file"),
        ({"bytes": None, "path": "http://localhost:1/x.png"}, "a URL outside the Hub"),
        ({"bytes": None, "path": "zip://x.png::https://example.org/x.zip"}, "a URL outside the Hub"),
        ("file:///etc/hostname", "a URL outside the Hub"),
    ):
        with pytest.raises(UnreadableImage, match=words):
            decode_image(value)
