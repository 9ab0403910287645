"""What the four numbers of a box are: recognized from all boxes, named, converted, or refused; COCO's JSON files."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_orthossl.cli.evaluate_tasks import describe_boxes
from hf_orthossl.evaluation.detection import coco_average_precision, detection_splits
from hf_orthossl.evaluation.detection.boxes import BOX_FORMATS, recognize_format, to_corners

WIDTH, HEIGHT = 80, 60


def random_corners(count, seed=0):
    """Boxes everywhere in the image, as x1, y1, x2, y2 in pixels."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(0, [WIDTH - 10, HEIGHT - 10], (count, 2))
    second = first + rng.uniform(5, [WIDTH, HEIGHT] - first, (count, 2))
    return np.concatenate([first, second], axis=1)


def written(corners, box_format):
    """Corners in another format; the formulas of the formats' own documentation."""
    x1, y1, x2, y2 = corners.T
    layout, _, normalized = box_format.partition("_")
    numbers = {
        "coco": (x1, y1, x2 - x1, y2 - y1),
        "xyxy": (x1, y1, x2, y2),
        "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
    }[layout]
    return np.stack(numbers, axis=1) / (np.array([WIDTH, HEIGHT] * 2) if normalized else 1)


def table(boxes, areas=None, per_image=5):
    rows = []
    for start in range(0, len(boxes), per_image):
        part = boxes[start : start + per_image].tolist()
        objects = {"bbox": part, "category": ["cell"] * len(part)}
        objects |= {} if areas is None else {"area": areas[start : start + per_image].tolist()}
        rows.append({"image": Image.new("RGB", (WIDTH, HEIGHT)), "objects": objects})
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def opened(train, test=None, **settings):
    return detection_splits(datasets.DatasetDict(train=train, test=train if test is None else test), **settings)


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_each_format_is_recognized_and_gives_the_same_boxes(box_format):
    corners = random_corners(100)
    train, test = opened(table(written(corners, box_format)), table(written(corners[:40], box_format)))
    assert train.box_format.name == box_format
    read = torch.cat([train.truth(index)["boxes"] for index in range(len(train))])
    torch.testing.assert_close(read, torch.tensor(corners, dtype=torch.float32))
    assert BOX_FORMATS[box_format] in describe_boxes((train, test))
    assert train.notes == test.notes == []


def test_normalized_boxes_were_less_than_a_pixel_and_nothing_was_said():
    boxes = np.array([[0.2, 0.2, 0.4, 0.4]])
    train, test = opened(table(boxes, np.array([0.16])))
    assert train.truth(0)["boxes"].tolist() == [pytest.approx([16, 12, 48, 36])]
    line = describe_boxes((train, test))
    # Corners would not have this area, and centres would.
    assert "boxes: normalized x, y, width, height; they would fit as normalized centre x, y, width, height" in line
    assert "--box_format cxcywh_normalized" in line
    assert "xyxy" not in line
    train, _ = opened(table(boxes), box_format="cxcywh_normalized")
    assert train.truth(0)["boxes"].tolist() == [pytest.approx([0, 0, 32, 24])]


def test_areas_decide_between_formats_that_all_boxes_fit():
    # In the upper left quarter x + x2 never leaves the image.
    corners = random_corners(50) / 2
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    assert opened(table(corners))[0].box_format.name == "coco"
    train, test = opened(table(corners, areas), table(corners[:20]))
    assert train.box_format.name == "xyxy"
    assert test.truth(3)["boxes"].tolist() == [pytest.approx(box) for box in corners[15:20].tolist()]


def test_a_few_errors_change_nothing_and_many_are_refused():
    corners = random_corners(100)
    boxes = written(corners, "coco")
    boxes[:4] = [[70, 10, 40, 10], [5, 5, -3, 10], [float("nan"), 5, 3, 10], [200, 5, 10, 10]]
    train, _ = opened(table(boxes))
    assert train.box_format.name == "coco"
    assert train.notes == [
        "1 boxes of train extended beyond their image and were clipped.",
        "3 boxes of train have no area within their image and were dropped.",
    ]
    large = table(written(random_corners(100) * 4, "coco"))
    with pytest.raises(ValueError, match=r"most of the 100 boxes of .* split train extend beyond .*, or pass --box_"):
        opened(large)
    assert opened(large, box_format="coco")[0].num_boxes < 100
    with pytest.raises(ValueError, match="did you mean 'xyxy'"):
        opened(large, box_format="xyxz")


def test_splits_that_differ():
    corners = random_corners(100)
    with pytest.raises(ValueError, match=r"differ between its splits .*pixels in train, .*normalized.* in test"):
        opened(table(written(corners, "xyxy")), table(written(corners, "coco_normalized")))
    # A few boxes that fit several formats are those of the other split.
    few = np.array([[10.0, 10, 30, 30]])
    train, test = opened(table(corners), table(few))
    assert train.box_format.name == "xyxy"
    assert train.box_format.others == ()
    assert test.truth(0)["boxes"].tolist() == [[10, 10, 30, 30]]


def test_formats_against_torchvision():
    from torchvision.ops import box_convert

    boxes = torch.from_numpy(random_corners(20))
    sizes = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
    for ours, theirs in (("coco", "xywh"), ("xyxy", "xyxy"), ("cxcywh", "cxcywh")):
        given = box_convert(boxes, "xyxy", theirs)
        torch.testing.assert_close(to_corners(given, sizes, ours), boxes)
        torch.testing.assert_close(to_corners(given / sizes.repeat(2), sizes, f"{ours}_normalized"), boxes)
    assert recognize_format(torch.zeros(0, 4), torch.zeros(0, 2)).name == "coco"


# --- COCO's JSON files -----------------------------------------------------------------------------------------------


def coco_file(path, count, prefix="", first=0):
    """A JSON file of `count` images with a crowd, an image without boxes, and ids in no order."""
    rng = np.random.default_rng(first)
    images, annotations = [], []
    for number in range(count):
        key = 1000 - 7 * number
        images.append({"id": key, "file_name": f"{prefix}{number:03d}.jpg", "width": WIDTH, "height": HEIGHT})
        for corners in random_corners(0 if number == 2 else 3, seed=first + number):
            box = written(corners[None], "coco")[0].tolist()
            annotations.append(
                {
                    # pycocotools counts a box with the id 0 as not found.
                    "id": len(annotations) + 1,
                    "image_id": key,
                    "category_id": int(rng.choice([3, 90])),
                    "bbox": box,
                    "area": box[2] * box[3] * 0.7,  # that of a mask
                    "iscrowd": int(number == 1),
                }
            )
    content = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 5, "name": "unused"}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def save_images(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(folder / f"{number:03d}.jpg")


LAYOUTS = {
    "coco": ("annotations/instances_{}2017.json", "{}2017"),
    "images": ("annotations/instances_{}.json", "images/{}"),
    "roboflow": ("{}/_annotations.coco.json", "{}"),
    "plain": ("{}.json", "{}"),
    "beside": ("{}.json", "images/{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_coco_files(layout, tmp_path):
    file, images = LAYOUTS[layout]
    for split, count in (("train", 6), ("val", 4)):
        coco_file(tmp_path / file.format(split), count, first=count)
        save_images(tmp_path / images.format(split), count)
    coco_file(tmp_path / "annotations" / "captions_train2017.json", 6)
    train, test = detection_splits(str(tmp_path))
    assert (len(train), len(test), test.split) == (6, 4, "validation")
    assert train.class_names == ["car", "toothbrush"]
    # The images are those of the split, although names are the same in both.
    assert test.image(3).getpixel((0, 0))[0] == pytest.approx(3, abs=2)
    assert train.notes == ["1 images of train have no boxes and are used without."]


def test_counts_and_average_precision_are_those_of_pycocotools(tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = coco_file(tmp_path / "train.json", 12)
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        save_images(tmp_path / split, 12)
    train, test = detection_splits(str(tmp_path))
    reference = COCO(str(tmp_path / "train.json"))
    assert train.num_boxes == len(reference.getAnnIds())
    # Crowds are excluded from training, as there.
    trained = sum(len(train[index][1]["labels"]) for index in range(len(train)))
    assert trained == len(reference.getAnnIds(iscrowd=False)) < train.num_boxes
    rng = np.random.default_rng(0)
    predictions, detections = [], []
    categories = {reference.cats[key]["name"]: key for key in reference.cats}
    for index in range(len(test)):
        truth = test.truth(index)
        shifted = truth["boxes"] + torch.from_numpy(rng.normal(0, 2, truth["boxes"].shape).astype(np.float32))
        scores = torch.from_numpy(rng.uniform(size=len(shifted)).astype(np.float32))
        predictions.append({"boxes": shifted, "scores": scores, "labels": truth["labels"]})
        for (x1, y1, x2, y2), score, label in zip(shifted.tolist(), scores, truth["labels"], strict=True):
            detections.append(
                {
                    "image_id": content["images"][index]["id"],
                    "category_id": categories[test.class_names[label]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )
    evaluation = COCOeval(reference, reference.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    ours = coco_average_precision(predictions, [test.truth(index) for index in range(len(test))])
    assert [ours["AP"], ours["AP50"], ours["AP75"]] == pytest.approx(evaluation.stats[:3].tolist(), abs=1e-6)


def test_files_that_are_missing_or_elsewhere(tmp_path):
    content = coco_file(tmp_path / "train.json", 5)
    coco_file(tmp_path / "test.json", 3)
    save_images(tmp_path / "images" / "train", 3)
    save_images(tmp_path / "images" / "test", 3)
    secret = tmp_path.parent / "secret.jpg"
    Image.new("RGB", (8, 8)).save(secret)
    for key, name in enumerate(("../secret.jpg", str(secret), "http://127.0.0.1/x.jpg", "a\\..\\..\\secret.jpg")):
        content["images"].append({"id": key, "file_name": name})
    content["annotations"] += [
        {"id": 1, "image_id": 31337, "category_id": 3, "bbox": [1, 1, 5, 5]},
        {"id": 2, "image_id": 1000, "category_id": 4, "bbox": [1, 1, 5, 5]},
        {"id": 3, "image_id": 1000, "category_id": 3, "bbox": [1, 1, "5", 5]},
        {"id": 4, "image_id": 1000, "category_id": 3, "bbox": []},
    ]
    (tmp_path / "train.json").write_text(json.dumps(content))
    train, _ = detection_splits(str(tmp_path))
    assert len(train) == 3
    assert train.notes == [
        "2 images of train.json are missing (003.jpg, 004.jpg).",
        f"4 images of train.json have a name that leads out of the folder and were left out (../secret.jpg, {secret}, "
        "http://127.0.0.1/x.jpg, …).",
        "1 boxes of train.json are of no image and were left out.",
        "2 boxes of train.json are not four numbers and were left out.",
        "1 boxes of train have no class and were dropped.",
        "1 images of train have no boxes and are used without.",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / "train.json").write_text('{"images": [], "annotations": [], "categories": ['),
            "JSON",
        ),
        (lambda folder: coco_file(folder / "more" / "train.json", 2), "both describe the images of train"),
        (lambda folder: (folder / "images" / "train" / "000.jpg").rename(folder.parent / "gone.jpg"), "none of the 1 "),
    ],
)
def test_files_that_cannot_be_used(change, words, tmp_path):
    for split in ("train", "test"):
        coco_file(tmp_path / "set" / f"{split}.json", 1)
        save_images(tmp_path / "set" / "images" / split, 1)
    change(tmp_path / "set")
    with pytest.raises(ValueError, match=words) as refused:
        detection_splits(str(tmp_path / "set"))
    assert "\n" not in str(refused.value)
