from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hf_orthossl.data import ImageDataset, load_source


@pytest.fixture
def folder(tmp_path):
    """Four gray images of values 0 to 3, in a folder beside which the tables lie."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def seen(source) -> list[tuple[int, int]]:
    rows = map(ImageDataset(source).__getitem__, range(source.num_rows))
    return [(int(item["pixel_values"][0, 0, 0]), item["labels"]) for item in rows]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos/2.png\n\n# no\nphotos/0.png\n", [(2, -1), (0, -1)]),
        ("\ufeffphotos/1.png\r\nphotos/3.png\r\n", [(1, -1), (3, -1)]),
        ("photos/2.png 7\nphotos/0.png 5\n", [(2, 7), (0, 5)]),
        ("photos/2.png\tdog\nphotos/0.png\tcat\n", [(2, 1), (0, 0)]),
    ],
)
def test_a_list_of_paths(folder, text, expected):
    assert seen(load_source(write(folder / "list.txt", text))) == expected


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_paths_is_relative_to_itself(folder, separator):
    rows = [("id", "path", "kind"), ("1", "photos/2.png", "dog"), ("2", "photos/0.png", "cat")]
    table = write(folder / "t.csv", "\n".join(separator.join(row) for row in rows))
    assert seen(load_source(table)) == [(2, -1), (0, -1)]
    labelled = load_source(str(table), label_column="kind")
    assert (seen(labelled), labelled.class_names) == ([(2, 1), (0, 0)], ["cat", "dog"])
    assert "2 of 2 files" in labelled.describe()
    assert "2 classes from column 'kind' of t.csv" in labelled.describe()


def test_paths_without_extension_splits_and_missing_files(folder):
    text = (
        "image_id,label,split\nphotos/0,4,train\nphotos/1,6,val\nphotos/2,4,train\nphotos/9,6,train\nphotos/0,4,train\n"
    )
    source = load_source(write(folder / "train.csv", text))
    assert (seen(source), source.splits) == ([(0, 4), (2, 4)], ["train", "validation"])
    assert seen(source.with_split("validation")) == [(1, 6)]
    assert "1 missing: photos/9" in source.describe()
    assert "1 named more than once: photos/0" in source.describe()


def test_a_parquet_table_of_paths_and_one_of_images(folder):
    pd.DataFrame({"file": ["photos/3.png", "photos/1.png"], "label": [1, 0]}).to_parquet(folder / "paths.parquet")
    assert seen(load_source(folder / "paths.parquet")) == [(3, 1), (1, 0)]
    images = {"image": [str(folder / "photos" / "2.png")], "label": [5]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(images, features=features).to_parquet(folder / "images.parquet")
    assert seen(load_source(folder / "images.parquet")) == [(2, 5)]


@pytest.mark.parametrize("labels", [["4611686018427387904", "1"], ["1", "x"], ["", "2"], ["nan", "None"]])
def test_labels_of_any_kind(folder, labels):
    rows = [f"photos/{number}.png,{label}" for number, label in enumerate(labels)]
    source = load_source(write(folder / "t.csv", "\n".join(["path,label", *rows])))
    assert source.num_rows == 2
    found = [label for _, label in seen(source)]
    assert [label == -1 for label in found] == [label.lower() in ("", "nan", "none") for label in labels]


def test_patterns_and_shards(folder):
    assert seen(load_source(str(folder / "photos" / "[01].png"))) == [(0, -1), (1, -1)]
    for name, number in (("train-000", 0), ("train-001", 1), ("test-000", 2)):
        rows = {"image": [str(folder / "photos" / f"{number}.png")]}
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")
    source = load_source(str(folder / "train-{000..001}.parquet"))
    assert seen(source) == [(0, -1), (1, -1)]
    everything = load_source(str(folder / "*.parquet"))
    assert (everything.num_rows, everything.splits) == (2, ["train", "test"])
    stream = load_source(str(folder / "*.parquet"), streaming=True)
    assert (stream.num_rows, stream.split) == (None, "train")
    assert stream.fingerprint is not None


def test_tar_shards(folder):
    import tarfile

    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard:03d}.tar", "w") as archive:
            for number in (2 * shard, 2 * shard + 1):
                write(folder / "cls", str(number))
                archive.add(folder / "photos" / f"{number}.png", f"{number}.png")
                archive.add(folder / "cls", f"{number}.cls")
    pattern = str(folder / "shard-{000..001}.tar")
    assert seen(load_source(pattern)) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert load_source(pattern, streaming=True).num_rows is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "gone.png\n", "names no file that exists"),
        ("a.csv", "x,y\n1,2\n", "has no column of paths of existing files"),
        ("a.csv", "path\n", "has no rows"),
        ("a.csv", "path,label\nphotos/1.png\n", "row 2 has 1 values, but there are 2 columns"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.xyz", "", "pass a folder, a list of paths"),
    ],
)
def test_bad_tables_are_one_line(folder, name, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_source(write(folder / name, text))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="pass several of one kind"):
        load_source([folder / "photos", write(folder / "b.txt", "photos/1.png")])


def test_a_latin_1_file_is_refused(folder):
    (folder / "a.txt").write_bytes("café.png".encode("latin-1"))
    with pytest.raises(ValueError, match="save it as UTF-8"):
        load_source(folder / "a.txt")


def test_a_missing_column_is_suggested(folder):
    table = write(folder / "t.csv", "path,kind\nphotos/1.png,a\n")
    with pytest.raises(ValueError, match=r"label_column 'knd' is not in .*kind"):
        load_source(table, label_column="knd")


def test_many_missing_files_are_refused_like_unreadable_ones(folder):
    table = write(folder / "t.csv", "\n".join(["path", "photos/1.png", *(f"gone/{n}.png" for n in range(6))]))
    with pytest.raises(
        ValueError, match=r"6 of 7 images cannot be read, more than the 5 allowed: .* gone/0.png \(no such"
    ):
        load_source(table)
    assert load_source(table, max_unreadable=6).num_rows == 1


def test_names_of_columns_are_refused_where_there_are_none(folder):
    for given in (folder / "photos", write(folder / "l.txt", "photos/1.png"), str(folder / "photos" / "*.png")):
        with pytest.raises(ValueError, match=r"label_column is 'kind', but the images of .* are files without columns"):
            load_source(given, label_column="kind")
