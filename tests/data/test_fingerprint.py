import os
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_orthossl.data import load_source
from hf_orthossl.data.fingerprint import difference


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        path = tmp_path / "images" / ("a" if number < 3 else "b") / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    return tmp_path / "images"


def test_a_copy_has_the_same_fingerprint(folder):
    shutil.copytree(folder, folder.parent / "elsewhere")
    assert load_source(folder).fingerprint == load_source(folder.parent / "elsewhere").fingerprint


def test_what_changed_is_named(folder):
    before = load_source(folder).fingerprint
    # A bitmap of the same size.
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(folder / "a" / "1.bmp")
    replaced = load_source(folder).fingerprint
    assert difference(before, replaced) == "their contents differ"
    key = load_source(folder).cache_key
    os.utime(folder / "a" / "2.bmp", (1, 1))
    touched = load_source(folder)
    assert (touched.fingerprint, touched.cache_key == key) == (replaced, False)
    (folder / "a" / "1.bmp").rename(folder / "a" / "9.bmp")
    assert "names" in difference(replaced, load_source(folder).fingerprint)
    (folder / "a" / "9.bmp").unlink()
    assert difference(before, load_source(folder).fingerprint) == "6 images before, 5 now"
    assert difference(before, before) is None


def test_a_folder_renamed_is_noticed_because_its_classes_are(folder):
    before = load_source(folder).fingerprint
    (folder / "a").rename(folder / "c")
    assert load_source(folder).fingerprint != before


def test_rows_in_memory_and_in_parquet(folder, tmp_path):
    pixels = [Image.fromarray(np.full((8, 8, 3), number, np.uint8)) for number in range(5)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": pixels, "label": [0, 1, 0, 1, 0]}, features=features)
    again = datasets.Dataset.from_dict({"image": pixels, "label": [0, 1, 0, 1, 0]}, features=features)
    relabelled = datasets.Dataset.from_dict({"image": pixels, "label": [0, 1, 0, 1, 1]}, features=features)
    reordered = data.select([1, 0, 2, 3, 4])
    prints = [load_source(one).fingerprint for one in (data, again, relabelled, reordered)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    (tmp_path / "shards").mkdir()
    data.to_parquet(tmp_path / "shards" / "train.parquet")
    assert load_source(tmp_path / "shards").fingerprint == prints[0]
