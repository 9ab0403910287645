import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_orthossl.data import load_source
from hf_orthossl.data.listing import list_folders, split_kind


@pytest.fixture(scope="module")
def png() -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(root: Path, names: str, content: bytes) -> None:
    for name in names.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def files(folder: str, count: int = 4) -> str:
    return " ".join(f"{folder}/{number}.png" for number in range(count))


CLASSES = f"{files('cat')} {files('dog')}"
LAYOUTS = {
    "flat": ("a.png b.png", {"train": 2}, None),
    "class folders": (CLASSES, {"train": 8}, {"cat", "dog"}),
    "class folders with a stray": (f"{CLASSES} preview.jpg", {"train": 8}, {"cat", "dog"}),
    "class folders in folders": (
        " ".join(f"data/photos/{name}" for name in CLASSES.split()),
        {"train": 8},
        {"cat", "dog"},
    ),
    "nested without classes": (f"{files('2021/05')} {files('2022/06')}", {"train": 8}, None),
    "a camera's folders": (f"{files('100CANON')} {files('101CANON')}", {"train": 8}, None),
    "hash prefixes": (" ".join(files(f"{number:02x}", 2) for number in range(32)), {"train": 64}, None),
    "digits are classes": (
        " ".join(files(str(number), 2) for number in range(20)),
        {"train": 40},
        set(map(str, range(20))),
    ),
    "one folder per image": (" ".join(f"id{number}/x.png" for number in range(20)), {"train": 20}, None),
    "splits without classes": (
        f"{files('train')} {files('test', 3)} {files('unlabeled', 2)}",
        {"train": 4, "test": 3, "unlabeled": 2},
        None,
    ),
    "splits with classes, strays and folders beside": (
        f"{files('train/cat')} {files('train/dog')} {files('val/cat', 1)} {files('val/dog', 1)} a.jpg {files('plots')}",
        {"train": 8, "validation": 2},
        {"cat", "dog"},
    ),
    "a class missing in one split": (
        f"{files('train/a')} {files('train/b')} {files('test/b', 2)}",
        {"train": 8, "test": 2},
        {"a", "b"},
    ),
    "labelled training, flat test": (
        f"{files('train/a')} {files('train/b')} {files('test', 2)}",
        {"train": 8, "test": 2},
        {"a", "b"},
    ),
    "COCO": (
        f"{files('train2017')} {files('val2017', 2)} {files('test2017', 1)}",
        {"train": 4, "validation": 2, "test": 1},
        None,
    ),
    "YOLO": (
        f"{files('images/train')} {files('images/val', 2)} labels/train/0.txt",
        {"train": 4, "validation": 2},
        None,
    ),
    "ImageNet": (
        f"{files('ILSVRC2012_img_train/n01')} {files('ILSVRC2012_img_train/n02')} {files('ILSVRC2012_img_val', 2)}",
        {"train": 8, "validation": 2},
        {"n01", "n02"},
    ),
    "class before split": (
        f"{files('a/train/good')} {files('a/test/bent', 2)} {files('b/train/good')} {files('b/test/bent', 2)}",
        {"train": 8, "test": 4},
        {"a", "b"},
    ),
    "only a test folder beside images": (
        f"{files('test', 2)} {files('cat')} {files('dog')}",
        {"train": 8, "test": 2},
        {"cat", "dog"},
    ),
    "training images beside figures": (f"{files('train', 40)} {files('figures', 2)}", {"train": 40}, None),
    "a class of trains": (f"{files('train')} {files('bus')} {files('car')}", {"train": 12}, {"train", "bus", "car"}),
    "images beside masks": (f"{files('images')} {files('masks')}", {"train": 4}, None),
    "a class of masks": (f"{files('masks')} {files('faces')}", {"train": 8}, {"masks", "faces"}),
    "unlabelled beside classes": (f"{CLASSES} {files('unlabelled', 2)}", {"train": 8, "unlabeled": 2}, {"cat", "dog"}),
    "two domains": (f"{files('trainA')} {files('trainB')} {files('testA', 1)}", {"train": 8, "test": 1}, None),
    "hidden and system files": (f"{CLASSES} .cat/x.png cat/.y.png __MACOSX/cat/z.png", {"train": 8}, {"cat", "dog"}),
}


@pytest.mark.parametrize("names", LAYOUTS)
def test_layouts_give_their_splits_and_classes(names, tmp_path, png):
    given, splits, classes = LAYOUTS[names]
    write(tmp_path, given, png)
    listing = list_folders([tmp_path])
    assert {split: len(found) for split, found in listing.splits.items()} == splits
    labels = {file.label for found in listing.splits.values() for file in found} - {None}
    assert labels == (classes or set())
    used = sum(splits.values())
    assert used + sum(entry.count for entry in listing.left_out) == listing.seen
    assert all(os.path.isfile(file.path) for found in listing.splits.values() for file in found)


@pytest.mark.parametrize(
    "leftover", ["data.zip", "labels.csv", "metadata.csv", "features.parquet", "images.tar", "x.json"]
)
@pytest.mark.parametrize("layout", ["class folders", "splits without classes"])
def test_a_leftover_changes_nothing_and_is_named(leftover, layout, tmp_path, png):
    given, splits, _ = LAYOUTS[layout]
    write(tmp_path, " ".join([given, *files("train" if "train" in splits else "cat", 30).split()]), png)
    before = load_source(tmp_path)
    (tmp_path / leftover).write_text("id,score\n1,0.5\n", encoding="utf-8")
    source = load_source(tmp_path)
    assert (source.num_rows, source.class_names, source.splits) == (before.num_rows, before.class_names, before.splits)
    assert source.fingerprint == before.fingerprint
    assert f"1 {Path(leftover).suffix} not read" in source.describe()


def test_what_cannot_be_read_is_counted_with_its_remedy(tmp_path, png):
    write(tmp_path, " ".join(f"{n}.jpg" for n in range(8)), png)
    for number in range(200):
        (tmp_path / f"x{number}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "notes.txt").write_text("text", encoding="utf-8")
    text = load_source(tmp_path).describe()
    assert "train: 8 of 209 files" in text
    assert "200 .heic cannot be read: install pillow-heif" in text
    assert load_source(tmp_path).taken == (
        "train: 8 of 209 files; left out: 1 .txt not read, 200 .heic cannot be read: install pillow-heif; "
        "4×4 px, 8-bit RGB; no labels"
    )
    assert "1 .txt not read" in text


def test_files_of_any_name_are_recognized_by_their_content(tmp_path, png):
    write(tmp_path, "a b.photo c.1234 d.jpg~", png)
    write(tmp_path, "page readme.unknown", b"<html>")
    listing = list_folders([tmp_path])
    assert [file.name for file in listing.splits["train"]] == ["a", "b.photo", "c.1234", "d.jpg~"]
    assert {entry.count for entry in listing.left_out} == {1}


def test_only_regular_files_are_read(tmp_path, png):
    write(tmp_path, "a.png b.png", png)
    os.mkfifo(tmp_path / "x.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "y.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        listener.bind("z.png")
    finally:
        os.chdir(here)
        listener.close()
    os.symlink(tmp_path / "a.png", tmp_path / "link.png")
    listing = list_folders([tmp_path])
    assert [file.name for file in listing.splits["train"]] == ["a.png", "b.png", "link.png"]
    assert [(entry.count, "not regular" in entry.reason) for entry in listing.left_out] == [(4, True)]


def test_names_that_are_not_utf_8_are_named(tmp_path, png):
    write(tmp_path, "a.png", png)
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
            file.write(png)
    except OSError:
        pytest.skip("the file system accepts only UTF-8")
    source = load_source(tmp_path)
    assert source.num_rows == 1
    assert r"1 named in another encoding than UTF-8 (rename it): caf\udce9.png" in source.describe()


def test_the_outputs_of_this_package_are_no_images(tmp_path, png):
    write(tmp_path, f"{CLASSES} runs/a/encoder/spectra.png runs/a/config.yaml", png)
    (tmp_path / "runs" / "a" / "encoder" / "spectra.json").write_text("{}", encoding="utf-8")
    write(tmp_path, "out/figure.png", png)
    source = load_source(tmp_path, exclude=[tmp_path / "out"])
    assert source.class_names == ["cat", "dog"]
    assert "2 written by orthossl: out, runs/a" in source.describe()


def test_several_folders_are_united_by_the_names_of_splits_and_classes(tmp_path, png):
    write(tmp_path / "one", f"{files('train/cat')} {files('train/dog')}", png)
    write(tmp_path / "two", f"{files('train/dog')} {files('train/emu')} {files('test/emu', 2)}", png)
    source = load_source([tmp_path / "one", tmp_path / "two"])
    assert (source.num_rows, source.splits, source.class_names) == (16, ["train", "test"], ["cat", "dog", "emu"])
    assert "16 of 18 files" in source.describe()
    assert load_source([tmp_path, tmp_path / "two", tmp_path]).num_rows == 16
    write(tmp_path / "flat", "a.png b.png", png)
    mixed = load_source([tmp_path / "one", tmp_path / "flat"])
    assert (mixed.num_rows, mixed.class_names) == (10, ["cat", "dog"])
    assert sorted(mixed.dataset["label"], key=str) == [0] * 4 + [1] * 4 + [None] * 2


def test_held_out_images_are_not_taken_unless_requested(tmp_path, png):
    write(tmp_path, f"{files('test')} {files('val')}", png)
    with pytest.raises(ValueError, match=r"only the splits validation, test, .* pass --split validation"):
        load_source(tmp_path)
    assert load_source(tmp_path, split="test").num_rows == 4


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("train", "train"), ("Training", "train"), ("train2017", "train"), ("images_train", "train")],
        *[("Train_Images", "train"), ("test-set", "test"), ("VAL", "validation"), ("unlabelled", "unlabeled")],
        *[("trainer", None), ("latest", None), ("train_test", None), ("my_train", None), ("eval", "test")],
    ],
)
def test_split_names(name, kind):
    assert split_kind(name) == kind
