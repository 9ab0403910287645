"""`cache_images`: what is decoded once stays, and nobody notices but by the time."""

import io
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, collate, get_recipe, image_cache, load_source
from hf_orthossl.data import dataset as dataset_module
from hf_orthossl.training import OrthoSSLTrainingArguments, TrainingData, pretrain_loop

RECIPE = get_recipe("cifar-asym")
BROKEN = 5


def source_of(count=24, size=(8, 10)):
    """Noise images with the names of their classes as labels; row 5 holds junk."""
    rng = np.random.default_rng(0)
    images = []
    for row in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "PNG")
        images.append({"bytes": b"junk" if row == BROKEN else file.getvalue(), "path": f"{row}.png"})
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
    columns = {"image": images, "label": [f"class {row % 7}" for row in range(count)]}
    return load_source(datasets.Dataset.from_dict(columns, features=features))


def dataset(cache, **changes):
    return ImageDataset(source_of(), **{"views": RECIPE, "image_size": 8, "cache_images": cache} | changes)


def batches(data, workers):
    generator = torch.Generator().manual_seed(3)
    return list(DataLoader(data, 5, shuffle=True, collate_fn=collate, num_workers=workers, generator=generator))


def assert_equal(one, two):
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert a["unreadable"] == b["unreadable"]
        assert all(torch.equal(a[key], b[key]) for key in ("pixel_values", "labels", "index"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_and_nothing_is_decoded_twice(workers, monkeypatch):
    """With workers, the second epoch's are other processes than those that decoded in the first."""
    expected, kept = batches(dataset("never"), workers), dataset("always")
    assert_equal(batches(kept, workers), expected)
    decode_image = dataset_module.decode_channels

    def decode(value, *rest, **page):
        # The junk is tried again, and the next image takes its place.
        assert value["path"] in (f"{BROKEN}.png", f"{BROKEN + 1}.png"), "decoded again"
        return decode_image(value, *rest, **page)

    monkeypatch.setattr(dataset_module, "decode_channels", decode)
    assert_equal(batches(kept, workers), expected)
    with pytest.raises(AssertionError, match="decoded again"):
        batches(dataset("never"), 0)


def test_what_is_done_to_an_item_stays_with_it():
    kept, plain = dataset("always", indices=[3, 1, 3]), dataset("never", indices=[3, 1, 3])
    for _ in range(2):
        for item, expected in zip(kept.__getitems__([0, 1, 2]), plain.__getitems__([0, 1, 2]), strict=True):
            assert torch.equal(item["pixel_values"], expected["pixel_values"])
            item["pixel_values"].zero_()


def test_a_copy_for_a_spawned_worker_keeps_nothing():
    kept, plain = dataset("always"), dataset("never")
    batches(kept, 0)
    sent = pickle.dumps(kept)
    assert len(sent) < len(pickle.dumps(plain)) + 1000
    copied = pickle.loads(sent)
    for _ in range(2):
        assert_equal(batches(copied, 0), batches(plain, 0))


@pytest.mark.parametrize(
    ("size", "free", "keeps"),
    [((8, 10), 4 * 24 * 240, True), ((8, 10), 4 * 24 * 240 - 1, False), ((96, 96), 1e9, True), ((97, 8), 1e9, False)],
)
def test_auto_keeps_small_images_that_fill_a_quarter_of_the_free_memory(size, free, keeps, monkeypatch):
    monkeypatch.setattr(image_cache, "_free_memory", lambda: free)
    assert (ImageDataset(source_of(size=size), cache_images="auto")._cache is not None) == keeps


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "_CGROUP", tmp_path)
    unlimited = image_cache._free_memory()
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 2500\ninactive_file 1500\nactive_file 0\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert image_cache._free_memory() == pytest.approx(unlimited, rel=0.5)
    (tmp_path / "memory.max").write_text("10000\n")
    assert image_cache._free_memory() == 7500  # files that were read may go again


def test_crops_made_at_decode_are_not_kept():
    source = source_of(size=(40, 48))
    crops = {"views": RECIPE, "image_size": 8}
    assert ImageDataset(source, **crops, cache_images="auto")._cache is None
    with pytest.raises(ValueError, match=r"cache_images is always, but the images of .* use auto"):
        ImageDataset(source, **crops, cache_images="always")


def test_a_wrong_choice_is_refused():
    with pytest.raises(ValueError, match="cache_images 'yes' is unknown: choose from auto, always, never"):
        dataset("yes")


def test_training_is_the_same_and_takes_the_option(tmp_path):
    """Two epochs, so that the second one's images come from memory."""
    source, losses = load_source("digits", split="train[:32]"), []
    for cache in ("never", "always"):
        torch.manual_seed(0)
        model = SSLModel(SSLConfig(backbone="resnet10t", image_size=32, method="simclr"))
        args = OrthoSSLTrainingArguments(
            str(tmp_path / cache),
            cache_images=cache,
            per_device_train_batch_size=16,
            num_train_epochs=2,
            logging_steps=1,
            spectra_steps=0,
            save_strategy="no",
            use_cpu=True,
        )
        data = TrainingData(source, model, args.with_recipe(model.method.recipe))
        assert (data.dataset._cache is not None) == (cache == "always")
        pretrain_loop(model, data)
        losses.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*losses, rtol=0, atol=0)
