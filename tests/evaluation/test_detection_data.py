"""Detection data sets: what is mended, dropped and counted; boxes that stay on their objects."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_orthossl.data import TooManyUnreadable
from hf_orthossl.data.shapes import shapes
from hf_orthossl.evaluation.detection import collate_detection, detection_splits


def png(width=40, height=20, spot=None):
    pixels = np.zeros((height, width, 3), np.uint8)
    if spot:
        x, y, w, h = spot
        pixels[y : y + h, x : x + w] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(rows, names=("cat", "dog"), **more):
    """A data set of `(image, boxes, categories)`, in the Hub's usual columns."""
    features = {
        "image": datasets.Image(),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
            "category": datasets.List(datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")),
            **{name: datasets.List(datasets.Value("bool")) for name in more},
        },
    }
    records = [
        {
            "image": image,
            "objects": {"bbox": boxes, "category": categories, **{name: more[name][i] for name in more}},
        }
        for i, (image, boxes, categories) in enumerate(rows)
    ]
    return datasets.Dataset.from_list(records, features=datasets.Features(features))


GOOD = (png(), [[1, 2, 10, 5]], [0])


def splits(train, test=None, **kwargs):
    test = table([GOOD]) if test is None else test
    return detection_splits(datasets.DatasetDict({"train": train, "test": test}), **kwargs)


def test_boxes_are_mended_dropped_and_counted():
    rows = [
        (
            png(),
            [
                [1, 2, 10, 5],  # good
                [-5, 10, 10, 30],  # reaches out at the left and below
                [50, 5, 10, 10],  # wholly outside
                [5, 5, 0, 10],  # no width
                [5, 5, -3, 10],  # negative width
                [float("nan"), 5, 3, 10],
            ],
            [0, 1, 0, 0, 1, 1],
        ),
        (png(), [], []),
        (png(), [[0, 0, 40, 20]], [1]),  # the whole image is not clipped
    ]
    train, _ = splits(table(rows))
    assert len(train) == 3
    assert train.truth(0)["boxes"].tolist() == [[1, 2, 11, 7], [0, 10, 5, 20]]
    assert train.truth(0)["labels"].tolist() == [0, 1]
    assert train.truth(1)["boxes"].shape == (0, 4)
    assert train.truth(2)["boxes"].tolist() == [[0, 0, 40, 20]]
    assert train.num_boxes == 3
    assert train.notes == [
        "1 boxes of train extended beyond their image and were clipped.",
        "4 boxes of train have no area within their image and were dropped.",
        "1 images of train have no boxes and are used without.",
    ]


def test_classes_are_matched_by_name():
    train = table([(png(), [[0, 0, 5, 5], [9, 9, 5, 5]], [2, 0])], names=("dog", "unused", "cat"))
    test = table([(png(), [[0, 0, 5, 5], [5, 5, 5, 5], [9, 9, 5, 5]], [0, 1, 2])], names=("bird", "cat", "dog"))
    train, test = splits(train, test)
    assert train.class_names == test.class_names == ["dog", "cat"]
    assert train.truth(0)["labels"].tolist() == [1, 0]
    assert test.truth(0)["labels"].tolist() == [1, 0]
    assert test.truth(0)["boxes"].tolist() == [[5, 5, 10, 10], [9, 9, 14, 14]]
    assert test.notes == ["1 boxes of test are of classes absent from training and were excluded."]


def test_numbers_and_a_list_of_mappings_do_as_well():
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": datasets.List(
                {"bbox": datasets.List(datasets.Value("float32")), "category_id": datasets.Value("int64")}
            ),
        }
    )
    items = [{"bbox": [1, 2, 3, 4], "category_id": 90}, {"bbox": [5, 6, 3, 4], "category_id": 7}]
    records = [{"image": png(), "objects": items}, {"image": png(), "objects": []}]
    data = datasets.Dataset.from_list(records, features=features)
    train, test = splits(data, data)
    assert train.class_names == ["7", "90"]
    assert test.truth(0)["labels"].tolist() == [1, 0]
    assert len(train) == 2


@pytest.mark.parametrize("size", [30, 60, 15])
def test_boxes_stay_on_their_objects(size):
    spot = [8, 4, 12, 10]
    data = table([(png(height=30, spot=spot), [spot], [0])])
    train, test = splits(data, data, image_size=size)
    corners = set()
    for _ in range(12):
        image, target = train[0]
        assert min(image.shape[1:]) == size
        bright = image[0] > 127
        seen = [bright.any(0).nonzero(), bright.any(1).nonzero()]
        measured = [float(seen[0][0]), float(seen[1][0]), float(seen[0][-1]) + 1, float(seen[1][-1]) + 1]
        assert target["boxes"][0].tolist() == pytest.approx(measured, abs=0.51)
        corners.add(round(float(target["boxes"][0, 0]), 3))
    assert len(corners) == 2  # with and without a flip
    image, target = test[0]
    assert (target["boxes"] * target["scale"])[0].tolist() == pytest.approx([8, 4, 20, 14])
    assert float(test[0][1]["boxes"][0, 0]) == float(target["boxes"][0, 0])  # tests are not flipped


def test_long_images_are_held_to_the_usual_ratio():
    train, _ = splits(table([(png(width=400, height=20), [[0, 0, 400, 20]], [0])]), image_size=24)
    image, target = train[0]
    assert image.shape == (3, 2, 40)
    assert target["boxes"].tolist() == [[0, 0, 40, 2]]


def test_crowds_are_not_trained_on_and_difficult_boxes_are():
    rows = [(png(), [[0, 0, 5, 5], [9, 9, 5, 5]], [0, 1])]
    data = table(rows, iscrowd=[[True, False]], difficult=[[False, True]])
    train, test = splits(data, data)
    assert train[0][1]["labels"].tolist() == [1]
    assert test[0][1]["labels"].tolist() == [0, 1]
    assert test.truth(0)["crowd"].tolist() == [True, False]
    assert test.truth(0)["difficult"].tolist() == [False, True]


def test_images_that_cannot_be_read():
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(noise, "JPEG")
    truncated = ({"bytes": noise.getvalue()[:-3000], "path": None}, [[0, 0, 5, 5]], [0])
    broken = ({"bytes": b"no image", "path": None}, [[0, 0, 5, 5]], [0])
    train, _ = splits(table([GOOD] * 150 + [broken, truncated]))
    assert len(train) == 151
    assert train.notes == ["1 images of train cannot be read and were excluded."]
    batch = collate_detection([train[149], train[150]])
    assert len(batch.images) == len(batch.targets) == 1
    train.note_unreadable(batch.unreadable)
    train.note_unreadable(batch.unreadable)
    assert train.notes[-1] == "1 images of train cannot be decoded and were excluded."
    with pytest.raises(TooManyUnreadable, match=r"6 of 12 .* more than the 5 allowed: repair or remove row 0 \("):
        splits(table([broken, GOOD] * 6))
    few, _ = splits(table([GOOD, truncated] * 6))
    with pytest.raises(TooManyUnreadable, match=r"row 1 \("):
        few.note_unreadable(collate_detection([few[place] for place in range(12)]).unreadable)


def test_what_is_no_detection_set():
    with pytest.raises(ValueError, match=r"digits has no column 'objects'.*shapes"):
        detection_splits("digits")
    with pytest.raises(ValueError, match="split test, has no usable box"):
        splits(table([GOOD]), table([(png(), [], [])]))
    with pytest.raises(ValueError, match="has classes bird, none of which"):
        splits(table([GOOD]), table([GOOD], names=("bird",)))
    with pytest.raises(ValueError, match="row 1: objects has 1 of bbox, 2 of category"):
        splits(table([GOOD, (png(), [[0, 0, 5, 5]], [0, 1])]))
    with pytest.raises(ValueError, match="--test_split"):
        detection_splits(datasets.DatasetDict({"train": table([GOOD])}))
    with pytest.raises(ValueError, match="image_size is 0"):
        splits(table([GOOD]), image_size=0)


def test_shapes_are_the_same_each_time_and_apart():
    first = shapes()
    shapes.cache_clear()
    assert first["test"][:5] == shapes()["test"][:5]
    train, test = detection_splits("shapes")
    assert (len(train), len(test), train.name) == (300, 100, "shapes")
    assert train.class_names == ["circle", "square", "triangle"]
    assert train.notes == test.notes == []
    for index in range(len(test)):
        truth = test.truth(index)
        pixels = torch.from_numpy(np.asarray(test.image(index)).astype(np.float32))
        ground = pixels.flatten(0, 1).median(0).values
        covered = torch.zeros(128, 128)
        for x1, y1, x2, y2 in truth["boxes"].int().tolist():
            covered[y1:y2, x1:x2] += 1
            y, x = (y1 + y2) // 2, (x1 + x2) // 2
            assert (pixels[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1)) - ground).abs().max() > 40
        assert 1 <= len(truth["labels"]) <= 7
        assert covered.max() == 1


def test_real_blood_cells(bccd):
    train, test = detection_splits(str(bccd), image_size=240)
    assert (len(train), len(test)) == (205, 72)
    assert (train.num_boxes, test.num_boxes) == (2804, 945)
    assert train.class_names == ["Platelets", "RBC", "WBC"]
    image, target = test[0]
    assert image.shape == (3, 240, 320)
    assert len(target["boxes"]) == len(test.truth(0)["boxes"])
