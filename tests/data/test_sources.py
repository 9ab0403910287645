import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_orthossl.data import ImageDataset, available_splits, load_source

CIFAR10 = Path(__file__).parents[2] / "../shared/data/cifar10"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(number: int, size: int = 8) -> Image.Image:
    return Image.fromarray(np.full((size, size, 3), number % 256, np.uint8))


def save(path: Path, number: int = 0, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, size).save(path)


def table(count: int = 6, label: object = None, **columns) -> datasets.Dataset:
    labels = {} if label is None else {"label": label}
    return datasets.Dataset.from_dict(
        {"image": [picture(number) for number in range(count)], **labels, **columns}
    ).cast_column("image", datasets.Image())


def seen(source) -> list[tuple[int, int]]:
    """Gray value and label of every image."""
    return [
        (int(item["pixel_values"][0, 0, 0]), item["labels"])
        for item in map(ImageDataset(source).__getitem__, range(source.num_rows))
    ]


# --- folders -------------------------------------------------------------------------------------------------------


def test_class_folders_become_labels(tmp_path):
    for number, name in enumerate(("dog/a.png", "cat/b.PNG", "dog/deep/c.bmp")):
        save(tmp_path / name, number)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "dog" / ".hidden.png").write_text("not an image either")
    source = load_source(str(tmp_path))
    assert (source.class_names, source.label_column, source.num_rows, source.split) == (
        ["cat", "dog"],
        "label",
        3,
        "train",
    )
    assert sorted(seen(source)) == [(0, 1), (1, 0), (2, 1)]


def test_flat_folder_is_one_unlabelled_set_whatever_its_files_are_called(tmp_path):
    for number, name in enumerate(("train_1.png", "test_2.png", "validation.png")):
        save(tmp_path / name, number)
    source = load_source(str(tmp_path))
    assert (source.num_rows, source.label_column, source.class_names) == (3, None, None)
    assert {label for _, label in seen(source)} == {-1}
    assert available_splits(str(tmp_path)) == ["train"]


@pytest.mark.parametrize("files", [("images/a.png", "images/b.png"), ("a.png", "x/b.png", "y/c.png")])
def test_one_folder_or_stray_images_make_no_classes(tmp_path, files):
    for name in files:
        save(tmp_path / name)
    source = load_source(str(tmp_path))
    assert (source.num_rows, source.label_column) == (len(files), None)


def test_split_folders_share_their_classes(tmp_path):
    for number, name in enumerate(("train/b/1.png", "train/a/2.png", "val/b/3.png", "Testing/c/4.png")):
        save(tmp_path / name, number)
    assert sorted(available_splits(str(tmp_path))) == ["test", "train", "validation"]
    assert load_source(str(tmp_path)).split == "train"
    assert sorted(seen(load_source(str(tmp_path)))) == [(0, 1), (1, 0)]
    assert seen(load_source(str(tmp_path), split="test")) == [(3, 2)]
    assert load_source(str(tmp_path), split="validation").class_names == ["a", "b", "c"]


def test_unlabelled_split_folders(tmp_path):
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "test" / "2.png")
    assert load_source(str(tmp_path)).label_column is None
    assert load_source(str(tmp_path), split="train+test").num_rows == 2


def test_a_class_called_train_stays_a_class(tmp_path):
    for name in ("train/1.png", "car/2.png"):
        save(tmp_path / name)
    assert load_source(str(tmp_path)).class_names == ["car", "train"]


def test_folder_with_odd_characters_and_a_link_to_itself(tmp_path):
    folder = tmp_path / "my [1] images *"
    save(folder / "é 1.png")
    os.symlink(folder, folder / "loop")
    assert load_source(str(folder)).num_rows == 1


def test_annotations_beside_images_do_not_replace_them(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "annotations.csv").write_text("file,box\na.png,1\n")
    assert load_source(str(tmp_path)).num_rows == 1


def test_metadata_file_gives_the_labels(tmp_path):
    save(tmp_path / "a.png", 3)
    save(tmp_path / "b.png", 4)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,7\nb.png,5\n")
    assert seen(load_source(str(tmp_path))) == [(3, 7), (4, 5)]


def test_folder_of_parquet_files_with_splits_by_name(tmp_path):
    table(6, [0, 1, 2, 0, 1, 2]).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    table(2, [2, 1]).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    save(tmp_path / "logo.png")
    assert available_splits(str(tmp_path)) == ["train", "test"]
    assert seen(load_source(str(tmp_path), split="test")) == [(0, 2), (1, 1)]
    assert load_source(str(tmp_path), split="train[2:5]").num_rows == 3


def test_save_to_disk_folder(tmp_path):
    table(4, [3, 2, 1, 0]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table(4), test=table(2)).save_to_disk(tmp_path / "two")
    assert seen(load_source(str(tmp_path / "one"))) == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert load_source(str(tmp_path / "two"), split="test").num_rows == 2


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="../shared/data/cifar10 is missing")
def test_real_cifar10():
    source = load_source(str(CIFAR10), split="test[:64]", image_column=None)
    assert (source.image_column, source.label_column, source.image_size) == ("img", "label", (32, 32))
    assert source.class_names[3] == "cat"
    assert available_splits(str(CIFAR10)) == ["train", "test"]


# --- other kinds ---------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all_in_proportion():
    train, test = load_source("digits"), load_source("digits", split="test")
    assert (train.num_rows, test.num_rows, train.image_size, train.name) == (1437, 360, (32, 32), "digits")
    labels = np.array(test.dataset["label"])
    assert (np.bincount(labels, minlength=10) >= 34).all()
    names = [{row["image"]["path"] for row in source.dataset} for source in (train, test)]
    assert len(names[0] | names[1]) == 1797
    item = ImageDataset(train)[0]["pixel_values"]
    assert item.shape == (3, 32, 32)
    assert item.max() > 200
    assert item.min() == 0


def test_loaded_data_sets_are_taken_as_they_are():
    given = table(4, [0, 1, 0, 1]).with_format("torch")
    assert seen(load_source(given)) == [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert load_source(datasets.DatasetDict(test=given)).split == "test"


def test_columns_are_guessed():
    rows = table(3, [0, 1, 2], fine_label=[5, 6, 7], id=[1, 2, 3], score=[0.1, 0.2, 0.3])
    extra = rows.rename_column("image", "scan").add_column("other", [1, 2, 3])
    assert load_source(extra).image_column == "scan"
    assert load_source(rows.rename_column("label", "kind")).label_column == "fine_label"
    kind = rows.remove_columns("fine_label").rename_column("label", "kind")
    assert load_source(kind).label_column is None
    classes = kind.cast_column("kind", datasets.ClassLabel(names=["x", "y", "z"]))
    assert (load_source(classes).label_column, load_source(classes).class_names) == ("kind", ["x", "y", "z"])
    both = datasets.concatenate_datasets([rows, table(3).rename_column("image", "mask")], axis=1)
    assert load_source(both.select_columns(["mask", "image"])).image_column == "image"
    assert load_source(both, image_column="mask").image_column == "mask"


def test_text_labels_have_the_same_index_in_every_split():
    splits = datasets.DatasetDict(train=table(3, ["b", "a", None]), test=table(2, ["c", "b"]))
    source = load_source(splits, split="test", label_column="label")
    assert source.class_names == ["a", "b", "c"]
    assert seen(source) == [(0, 2), (1, 1)]
    assert seen(load_source(splits, label_column="label"))[2] == (2, -1)


def test_missing_labels_are_minus_one():
    assert [label for _, label in seen(load_source(table(3, [1, None, 0])))] == [1, -1, 0]


@pytest.mark.parametrize("kind", ["binary", "path"])
def test_image_columns_without_image_type(tmp_path, kind):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        save(path, number)
    values = [path.read_bytes() if kind == "binary" else str(path) for path in paths]
    assert [gray for gray, _ in seen(load_source(datasets.Dataset.from_dict({"x": values}), image_column="x"))] == [
        0,
        1,
        2,
    ]


# --- streams -------------------------------------------------------------------------------------------------------


def test_streams_of_every_kind(tmp_path):
    table(6, [0, 1, 2, 0, 1, 2]).to_parquet(tmp_path / "train.parquet")
    save(tmp_path / "images" / "a.png")
    for given in (str(tmp_path), str(tmp_path / "images"), "digits", table(3).to_iterable_dataset()):
        source = load_source(given, streaming=True)
        assert source.num_rows is None
        assert source.image_size is not None
        assert isinstance(next(iter(source.dataset))["image"], dict)
    assert load_source(str(tmp_path), streaming=True).label_column == "label"


def test_slices_of_streams_are_refused():
    with pytest.raises(ValueError, match="slices a stream"):
        load_source("digits", split="train[:10]", streaming=True)


# --- errors --------------------------------------------------------------------------------------------------------


def test_unknown_split_and_columns_name_what_there_is():
    with pytest.raises(ValueError, match="split 'tset' is not in data set digits: did you mean 'test'"):
        load_source("digits", split="tset")
    with pytest.raises(ValueError, match="choose from train, test"):
        load_source("digits", split="holdout")
    with pytest.raises(ValueError, match="did you mean 'image'"):
        load_source("digits", image_column="imag")
    with pytest.raises(ValueError, match="label_column 'fine' is not in data set digits: choose from image, label"):
        load_source("digits", label_column="fine")
    with pytest.raises(ValueError, match="pass a column of integers or text"):
        load_source("digits", label_column="image")
    with pytest.raises(ValueError, match=r"train\[:5000\]"):
        load_source("digits", split="train[:99999999%]")
    with pytest.raises(ValueError, match=r"no column of type Image.*text"):
        load_source(datasets.Dataset.from_dict({"text": ["a"]}))


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        load_source(str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="no images"):
        load_source(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_source(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="names no file that exists"):
        load_source(str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="no images"):
        load_source(table(2).select([]))
    (tmp_path / "broken.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
        load_source(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "None"),
        (5, "5"),
        ([b"png"], r"\[b'png'\]"),
        ({"train": [1, 2]}, r"\{'train': \[1, 2\]\}"),
        (object, "class"),
    ],
)
def test_something_that_is_no_data_set_is_one_clear_line(given, shown):
    for call in (load_source, available_splits):
        with pytest.raises(
            TypeError,
            match=f"^dataset must be 'digits', 'shapes', a folder, a list or table of paths, .* got .*{shown}",
        ) as caught:
            call(given)
        assert "\n" not in str(caught.value)


def test_a_split_must_be_text():
    with pytest.raises(TypeError, match=r"^split must be a string such as 'train\[:5000\]', got 5$"):
        load_source("digits", split=5)


def test_a_path_is_a_folder_and_nothing_else(tmp_path, monkeypatch):
    save(tmp_path / "images" / "a.png", 3)
    assert seen(load_source(tmp_path / "images")) == [(3, -1)]
    assert load_source(tmp_path / "images").name == str(tmp_path / "images")
    assert available_splits(tmp_path / "images") == ["train"]
    monkeypatch.chdir(tmp_path)
    for missing in (Path("digits"), Path("owner/name")):
        with pytest.raises(FileNotFoundError, match=f"dataset {missing}: there is no such file or folder"):
            load_source(missing)


def test_nothing_readable_is_said_at_once():
    source = load_source(datasets.Dataset.from_dict({"x": [b"junk"] * 3}), image_column="x")
    with pytest.raises(ValueError, match=r"no image sampled from column 'x'.*can be read"):
        ImageDataset(source)


def test_hub_failures_are_one_line():
    """No test reaches the Hub: conftest.py sets HF_HUB_OFFLINE."""
    lines = []
    for call, name in ((load_source, "nobody/nothing"), (load_source, "digit"), (available_splits, "nobody/nothing")):
        with pytest.raises((ValueError, OSError), match="cannot be loaded from the Hub") as caught:
            call(name)
        lines.append(str(caught.value))
    assert not any("\n" in line for line in lines)
    assert "did you mean 'digits'?" in lines[1]


@pytest.mark.parametrize("call", [load_source, available_splits])
def test_a_card_on_the_hub_that_names_another_server_is_refused_before_anything_is_asked(call, tmp_path, monkeypatch):
    card = tmp_path / "README.md"
    card.write_text("---\nconfigs:\n- config_name: default\n  data_files: http://127.0.0.1:1/x.parquet\n---\n")
    monkeypatch.setattr("hf_orthossl.data.cards.hf_hub_download", lambda *args, **options: str(card))
    for name in ("load_dataset", "get_dataset_split_names"):
        monkeypatch.setattr(datasets, name, lambda *args, **options: pytest.fail("was asked"))
    with pytest.raises(ValueError, match="not inside of the data set"):
        call("somebody/images")
