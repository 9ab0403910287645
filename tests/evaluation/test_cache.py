"""Cached features: the same as extracted ones, and never stale or broken ones."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_orthossl import load_encoder
from hf_orthossl.data import ImageDataset, load_source
from hf_orthossl.evaluation import features as features_module
from hf_orthossl.evaluation.features import FeatureCache, features_key


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return load_encoder("resnet10t", image_size=32, channels=[4, 4, 8, 8]).eval()


@pytest.fixture
def dataset():
    return ImageDataset(load_source("digits", split="train[:20]"), image_size=32)


@pytest.fixture
def extractions(monkeypatch):
    """Counts how often features are extracted."""
    counted = []
    extract = features_module.extract_features
    monkeypatch.setattr(
        features_module, "extract_features", lambda *args, **kwargs: counted.append(1) or extract(*args, **kwargs)
    )
    return counted


def test_a_second_call_reads_what_the_first_wrote(encoder, dataset, tmp_path, extractions):
    first, second = (FeatureCache(tmp_path).features(encoder, dataset) for _ in range(2))
    assert len(extractions) == 1
    torch.testing.assert_close(first.representations, second.representations, rtol=0, atol=0)
    assert first.labels.tolist() == second.labels.tolist()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flip", "swap"])
def test_a_damaged_entry_is_made_anew(encoder, dataset, tmp_path, extractions, damage):
    cache = FeatureCache(tmp_path)
    expected = cache.features(encoder, dataset)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-5]
    elif damage == "flip":
        content[-1] ^= 1
    else:
        content = b"not safetensors"
    path.write_bytes(content)
    found = cache.features(encoder, dataset)
    assert len(extractions) == 2
    torch.testing.assert_close(found.representations, expected.representations, rtol=0, atol=0)
    assert load_file(path)["representations"].shape == expected.representations.shape


def test_the_key_knows_weights_images_rows_and_transform(encoder, dataset):
    keys = {features_key(encoder, dataset)}
    source = dataset.source
    keys.add(features_key(encoder, ImageDataset(source, image_size=32, indices=range(5))))
    keys.add(features_key(encoder, ImageDataset(load_source("digits", split="train[:21]"), image_size=32)))
    other = copy.copy(encoder)
    other.mean = (0.0, 0.0, 0.0)
    keys.add(features_key(other, dataset))
    weight = next(encoder.parameters())
    before = weight.data.clone()
    weight.data.view(-1)[0] += 1e-3
    keys.add(features_key(encoder, dataset))
    weight.data.copy_(before)
    assert len(keys) == 5
    assert features_key(encoder, dataset) in keys


def test_another_process_finds_the_same_key(encoder, dataset, tmp_path):
    """A key that depends on hash seeds or addresses would make the cache useless."""
    code = (
        "import torch, json; from hf_orthossl import load_encoder; from hf_orthossl.data import *;"
        "from hf_orthossl.evaluation.features import features_key; torch.manual_seed(0);"
        "e = load_encoder('resnet10t', image_size=32, channels=[4, 4, 8, 8]).eval();"
        "print(json.dumps(features_key(e, ImageDataset(load_source('digits', split='train[:20]'), image_size=32))))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == features_key(encoder, dataset)


def test_another_pooling_of_the_same_weights_is_another_encoder():
    """Nothing in the weights tells average from maximum pooling."""
    dataset = ImageDataset(load_source("digits", split="train[:8]"), image_size=96)
    keys = set()
    for pool in ("avg", "max"):
        torch.manual_seed(0)
        encoder = load_encoder("resnet10t", image_size=96, channels=[8, 8, 16, 16], global_pool=pool)
        keys |= {features_key(encoder, dataset), features_key(encoder.eval(), dataset)}
    assert len(keys) == 2


def test_a_changed_image_of_a_folder_is_another_data_set(encoder, tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("RGB", (32, 32), "white").save(tmp_path / label / "0.png")

    def key():
        return features_key(encoder, ImageDataset(load_source(str(tmp_path)), image_size=32))

    before = key()
    assert key() == before
    Image.new("RGB", (32, 32), "black").resize((40, 40)).save(tmp_path / "a" / "0.png")
    assert key() != before
