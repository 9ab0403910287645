"""`Encoder.embed`: images of any kind become vectors, as a plain forward pass of timm would, and errors are clear."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from hf_orthossl import load_encoder, load_source
from hf_orthossl.data import ImageDataset
from hf_orthossl.encoders import ModuleEncoder, export_encoder
from hf_orthossl.encoders.embedding import Embedded


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 24]).eval()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(2)
    return load_encoder("test_vit", image_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2, reg_tokens=1)


def picture(seed, size=(40, 36)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_vectors_are_those_of_plain_timm(encoder, tmp_path):
    """The same weights, loaded by timm alone, over pixels that are resized, cropped and normalized by hand."""
    export_encoder(encoder, tmp_path / "model")
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = [picture(0), picture(1, (32, 32)), picture(2, (70, 41))]
    mean, std = (torch.tensor(plain.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = []
    for image in images:
        scale = 32 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        left, top = ((side - 32) // 2 for side in image.size)
        values = np.array(image.crop((left, top, left + 32, top + 32)), dtype=np.float32) / 255
        pixels.append((torch.from_numpy(values).permute(2, 0, 1) - mean) / std)
    with torch.no_grad():
        expected = plain(torch.stack(pixels))
    found = encoder.embed(images, batch_size=2)
    assert (found.dtype, found.device.type, found.shape) == (torch.float32, "cpu", (3, 24))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_same_pixels_in_any_form_give_the_same_vector(encoder, tmp_path):
    image = picture(3)
    image.save(tmp_path / "a.png")
    pixels = np.array(image)
    forms = {
        "Pillow": image,
        "path": tmp_path / "a.png",
        "text": str(tmp_path / "a.png"),
        "bytes": (tmp_path / "a.png").read_bytes(),
        "array": pixels,
        "channels first": pixels.transpose(2, 0, 1),
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
        "floats": torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        "float64": pixels / 255,
    }
    expected = encoder.embed([image])
    for name, form in forms.items():
        assert torch.equal(encoder.embed([form]), expected), name
        assert torch.equal(encoder.embed(form), expected), name
    batch = encoder.embed(np.stack([pixels, pixels[::-1]]))
    torch.testing.assert_close(batch[:1], expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(batch[0], batch[1])


def test_modes_and_gradients_are_left_as_they_were(encoder):
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    vectors = encoder.embed([picture(0), picture(1)])
    assert encoder.training
    assert not vectors.requires_grad
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    encoder.eval()


def test_a_folder_says_which_row_is_which(encoder, tmp_path):
    for number, name in enumerate(("dog/b.png", "cat/a.png", "cat/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(number).save(tmp_path / name)
    (tmp_path / "cat" / "b.png").write_bytes(b"no image")
    found = encoder.embed(tmp_path)
    assert isinstance(found, Embedded)
    assert found.names == [str(tmp_path / name) for name in ("cat/a.png", "cat/c.png", "dog/b.png")]
    assert (found.rows, found.labels.tolist(), found.class_names) == ([0, 2, 3], [0, 0, 1], ["cat", "dog"])
    assert [image.name for image in found.unreadable] == [str(tmp_path / "cat" / "b.png")]
    torch.testing.assert_close(found.vectors, encoder.embed(found.names), atol=1e-6, rtol=1e-5)


def test_a_data_set_is_read_as_load_source_reads_it(encoder):
    source = load_source("digits", split="test[:5]")
    for found in (encoder.embed(source), encoder.embed("digits", split="test[:5]")):
        assert found.labels.tolist() == ImageDataset(source).source.dataset["label"]
        assert all(name.startswith("digit-") for name in found.names)
        assert found.vectors.shape == (5, 24)


def test_layers_and_positions(encoder, vit):
    images = [picture(0, (32, 32)), picture(1, (32, 32))]
    pixels = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() for i in images]) / 255
    for model, middle, positions in ((encoder, "layer3", (2, 2)), (vit, "blocks.0", (4, 4))):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
        model.eval()
        with torch.no_grad():
            stages = model.stages((pixels - mean) / std)
        output = stages[middle]
        pooled = output.mean((2, 3)) if output.ndim == 4 else output.mean(1)
        torch.testing.assert_close(model.embed(images, layer=middle), pooled, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.embed(images), stages["representation"], atol=1e-5, rtol=1e-4)
        places = model.embed(images, layer=middle, tokens="patch")
        # In raster order; the class token and the register of the transformer are left out.
        flat = output.flatten(2).mT if output.ndim == 4 else output[:, 2:]
        assert places.shape == (2, *positions, flat.shape[2])
        torch.testing.assert_close(places.flatten(1, 2), flat, atol=1e-5, rtol=1e-4)
    last = vit.embed(images, tokens="patch")
    assert last.shape == (2, 4, 4, 12)
    with torch.no_grad():
        tokens = vit.tokens((pixels - torch.tensor(vit.mean).view(3, 1, 1)) / torch.tensor(vit.std).view(3, 1, 1))
    torch.testing.assert_close(last.flatten(1, 2), tokens[:, 2:], atol=1e-5, rtol=1e-4)


def test_grey_images_and_many_channels():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(5, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    five = ModuleEncoder(network, image_size=8, channels=5, mean=(0.5,) * 5, std=(0.25,) * 5)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 5), dtype=np.uint8)
    with torch.no_grad():
        expected = five((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(five.embed(list(images)), expected)
    five.knows_normalization = False
    with pytest.raises(ValueError, match=r"does not know the mean and std of its 5 channels: call encoder.set_norm"):
        five.embed(list(images))


def bad_inputs(tmp_path):
    (tmp_path / "text.png").write_bytes(b"no image")
    wide = np.full((8, 8), 4000, dtype=np.uint16)
    return [
        ([], {}, "images is an empty list"),
        ([picture(0), 3], {}, r"images\[1\] is 3: pass Pillow images, paths"),
        ([(picture(0), 1)], {}, r"images\[0\] is .*: pass Pillow images"),
        (3, {}, "dataset must be .* got 3"),
        ([tmp_path], {}, r"images\[0\] is the folder .*: pass a folder by itself"),
        ([picture(0), tmp_path / "text.png"], {}, r"images\[1\] \(.*text.png\) cannot be read \(.*\): leave it out"),
        ([tmp_path / "gone.png"], {}, r"images\[0\] \(.*gone.png\) cannot be read \(no such file\)"),
        (tmp_path / "gone", {}, "there is no such file or folder"),
        ([torch.randn(3, 8, 8)], {}, r"images\[0\] has floats from -.*: they must be in \[0, 1\], before any norm"),
        ([np.zeros((2, 3))[0]], {}, "cannot be read .*an array of shape"),
        ([wide], {}, r"images have more than 8 bits .*: pass pixel_range=\(low, high\)"),
        ([picture(0)], {"split": "train"}, "split is given with a list of images"),
        ([picture(0)], {"layer": "layer33"}, "layer is 'layer33', which backbone 'resnet10t' does not have: did you"),
        ([picture(0)], {"tokens": "patches"}, "tokens is 'patches': choose from patch"),
        ([picture(0)], {"batch_size": 0}, "batch_size is 0: it must be 1 or more"),
    ]


def test_bad_input_is_named(encoder, tmp_path):
    for images, options, message in bad_inputs(tmp_path):
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as error:
            encoder.embed(images, **options)
        assert "\n" not in str(error.value)


def test_values_of_wide_images_are_those_that_are_given(encoder):
    wide = np.random.default_rng(0).integers(0, 4096, (32, 32, 3), dtype=np.uint16)
    as_bytes = np.rint(wide / 4095 * 255).astype(np.uint8)
    torch.testing.assert_close(encoder.embed([wide], pixel_range=(0, 4095)), encoder.embed([as_bytes]))


def test_an_encoder_without_positions_has_no_patches():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 4))
    flat = ModuleEncoder(network, image_size=8)
    with pytest.raises(ValueError, match="has neither patch tokens nor a feature map at its end"):
        flat.embed([picture(0)], tokens="patch")
