"""Average precision: by hand, by a plain loop, and by pycocotools called directly."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_orthossl.evaluation.detection import coco_average_precision, detection_scores, voc_average_precision


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def found(rows, scores, labels=None):
    return {
        "boxes": boxes(*rows),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels or [0] * len(rows), dtype=torch.long),
    }


def true(rows, labels=None, **marks):
    marks = {name: torch.tensor(values, dtype=torch.bool) for name, values in marks.items()}
    return {"boxes": boxes(*rows), "labels": torch.tensor(labels or [0] * len(rows), dtype=torch.long), **marks}


PLACES = [[20 * i, 0, 20 * i + 10, 10] for i in range(12)]
NOWHERE = [0, 500, 10, 510]


@pytest.mark.parametrize(
    ("verdicts", "total", "voc07", "voc12"),
    [
        # Right at recalls 1/2 and 2/2 with precisions 1 and 2/3: six of eleven points see 1, five see 2/3.
        ("+-+", 2, (6 * 1 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
        # Precisions 1/2 and 2/3: the second lifts the first.
        ("-++", 2, 2 / 3, 2 / 3),
        # One of two found: recalls from 0.6 on see nothing.
        ("+", 2, 6 / 11, 1 / 2),
        # Three of ten reach a recall of exactly 0.3: points 0, 0.1, 0.2 and 0.3.
        ("+++", 10, 4 / 11, 3 / 10),
        ("--", 1, 0.0, 0.0),
        ("", 3, 0.0, 0.0),
    ],
)
def test_voc_by_hand(verdicts, total, voc07, voc12):
    fresh = iter(PLACES)
    rows = [next(fresh) if verdict == "+" else NOWHERE for verdict in verdicts]
    predictions = [found(rows, [1 - 0.1 * rank for rank in range(len(rows))])]
    truths = [true(PLACES[:total])]
    assert voc_average_precision(predictions, truths, 1, 2007)[0] == pytest.approx(voc07)
    assert voc_average_precision(predictions, truths, 1, 2012)[0] == pytest.approx(voc12)


def test_voc_ignores_what_is_difficult():
    # In order of score: on a difficult box, twice (ignored), wrong, right, the same again (wrong).
    predictions = [found([PLACES[0], PLACES[0], NOWHERE, PLACES[1], PLACES[1]], [0.9, 0.8, 0.7, 0.6, 0.5])]
    truths = [true(PLACES[:3], difficult=[True, False, False])]
    # One of two found, at precision 1/2.
    assert voc_average_precision(predictions, truths, 1, 2012)[0] == pytest.approx(1 / 4)
    assert voc_average_precision(predictions, truths, 1, 2007)[0] == pytest.approx(6 / 11 / 2)
    # Were it an ordinary box, it would have to be found: right, again, wrong, right, again.
    plain = [true(PLACES[:3])]
    assert voc_average_precision(predictions, plain, 1, 2012)[0] == pytest.approx((1 + 2 / 4) / 3)
    with pytest.raises(ValueError, match="all true boxes are difficult"):
        voc_average_precision(predictions, [true(PLACES[:1], difficult=[True])], 1)


def test_voc_asks_for_half_of_the_union_and_for_the_class():
    # 10 × 10 against 10 × 20: exactly one half, which is enough; a third is not.
    truth = [true([[0, 0, 10, 20], [100, 0, 110, 30]], labels=[0, 2])]
    predictions = [found([[0, 0, 10, 10], [100, 0, 110, 10], [0, 0, 10, 20]], [0.9, 0.8, 0.7], labels=[0, 2, 1])]
    mean, per_class = voc_average_precision(predictions, truth, 3)
    assert per_class == {0: 1.0, 2: 0.0}  # class 1 has no true box, and no average precision
    assert mean == 0.5


def looped(predictions, truths, label, year):
    """The devkit's procedure with NumPy, one detection after the other."""
    ranked = []
    for image, part in enumerate(predictions):
        for box, score, own in zip(part["boxes"].tolist(), part["scores"].tolist(), part["labels"], strict=True):
            if own == label:
                ranked.append((-score, image, box))
    ranked.sort(key=lambda entry: entry[0])
    taken, hits, misses = set(), [], []
    total = sum(int(((part["labels"] == label) & ~part["difficult"]).sum()) for part in truths)
    for _, image, (x1, y1, x2, y2) in ranked:
        best, which = 0.0, None
        for number, (a1, b1, a2, b2) in enumerate(truths[image]["boxes"].tolist()):
            if truths[image]["labels"][number] != label:
                continue
            shared = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
            overlap = shared / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared)
            if overlap > best:
                best, which = overlap, number
        if best >= 0.5 and truths[image]["difficult"][which]:
            continue
        right = best >= 0.5 and (image, which) not in taken
        hits.append(right)
        misses.append(not right)
        if right:
            taken.add((image, which))
    recall, precision = np.cumsum(hits) / total, np.cumsum(hits) / (np.cumsum(hits) + np.cumsum(misses))
    if year == 2007:
        reached = [precision[recall >= point - 1e-9] for point in np.linspace(0, 1, 11)]
        return np.mean([part.max() if len(part) else 0.0 for part in reached])
    recall, precision = np.r_[0, recall, 1], np.r_[0, precision, 0]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(((recall[1:] - recall[:-1]) * precision[1:]).sum())


def scene(seed, difficult=0.2, crowd=0.0, images=6, classes=3):
    """Random true boxes, some of them found, displaced, doubled or named wrongly, among false ones."""
    rng = np.random.default_rng(seed)
    predictions, truths = [], []
    for _ in range(images):
        count = rng.integers(1, 8)
        corners = rng.uniform(0, 80, (count, 2))
        rows = np.concatenate([corners, corners + rng.uniform(8, 40, (count, 2))], 1)
        labels = rng.integers(0, classes, count)
        shown = rng.permutation(np.repeat(np.arange(count), 2))[: rng.integers(0, 2 * count + 1)]
        guesses = np.concatenate([rows[shown] + rng.normal(0, 2, (len(shown), 4)), [[200, 200, 230, 230]]])
        guessed = np.where(rng.random(len(shown)) < 0.8, labels[shown], rng.integers(0, classes, len(shown)))
        predictions.append(
            {
                "boxes": torch.tensor(guesses).float(),
                "scores": torch.tensor(rng.random(len(guesses))).float(),
                "labels": torch.tensor(np.r_[guessed, 0]),
            }
        )
        truths.append(
            {
                "boxes": torch.tensor(rows).float(),
                "labels": torch.tensor(labels),
                "difficult": torch.tensor(rng.random(count) < difficult),
                "crowd": torch.tensor(rng.random(count) < crowd),
            }
        )
    return predictions, truths


@pytest.mark.parametrize("seed", range(8))
def test_voc_against_a_loop(seed):
    predictions, truths = scene(seed)
    for year in (2007, 2012):
        _, per_class = voc_average_precision(predictions, truths, 3, year)
        assert per_class == pytest.approx({label: looped(predictions, truths, label, year) for label in per_class})
        assert len(per_class) > 1


def pycocotools_directly(predictions, truths, classes):
    def box(row):
        x1, y1, x2, y2 = row.tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    annotations = [
        {
            "image_id": image,
            "bbox": box(row),
            "area": float((row[2] - row[0]) * (row[3] - row[1])),
            "category_id": int(label),
            "iscrowd": int(crowd),
        }
        for image, part in enumerate(truths)
        for row, label, crowd in zip(part["boxes"], part["labels"], part["crowd"], strict=True)
    ]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(truths))],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": [{"id": number + 1, **annotation} for number, annotation in enumerate(annotations)],
    }
    given = [
        {"image_id": image, "bbox": box(row), "score": float(score), "category_id": int(label)}
        for image, part in enumerate(predictions)
        for row, score, label in zip(part["boxes"], part["scores"], part["labels"], strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(given), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("AP", "AP50", "AP75"), evaluation.stats[:3], strict=True))


@pytest.mark.parametrize("crowd", [0.0, 0.3])
def test_coco_against_pycocotools(crowd):
    predictions, truths = scene(3, difficult=0, crowd=crowd, images=12)
    expected = pycocotools_directly(predictions, truths, 3)
    assert coco_average_precision(predictions, truths) == pytest.approx(expected, abs=1e-5)
    assert 0.05 < expected["AP"] < expected["AP50"] < 0.95


def test_voc12_and_coco_see_the_same_curve():
    # With 100 true boxes that do not touch, COCO's 101 points of recall are 0 and the 100 steps of VOC's area, but for
    # the few, such as 0.35, that NumPy's steps of 0.01 place a hair higher.
    rng = np.random.default_rng(0)
    grid = [[20 * (i % 10), 20 * (i // 10), 20 * (i % 10) + 10, 20 * (i // 10) + 10] for i in range(100)]
    shown = rng.permutation(100)[:64]
    rows = [grid[i] for i in shown] + [[300 + 20 * i, 0, 310 + 20 * i, 10] for i in range(30)]
    scores = np.r_[rng.uniform(0.3, 1, 64), rng.uniform(0, 0.9, 30)].tolist()
    predictions, truths = [found(rows, scores)], [true(grid)]
    area = voc_average_precision(predictions, truths, 1, 2012)[0]
    at_zero_recall = 1.0  # the best score is a right one
    assert max(scores[:64]) > max(scores[64:])
    points = coco_average_precision(predictions, truths)["AP50"]
    assert points == pytest.approx((at_zero_recall + 100 * area) / 101, abs=2e-3)
    assert 0.5 < area < 0.63


def test_perfect_detections_and_none():
    truths = [true(PLACES[:3], labels=[0, 1, 1]), true([])]
    perfect = [found(PLACES[:3], [0.9, 0.8, 0.7], labels=[0, 1, 1]), found([], [])]
    assert set(detection_scores(perfect, truths, 2).values()) == {1.0}
    nothing = [found([], []), found([], [])]
    assert set(detection_scores(nothing, truths, 2).values()) == {0.0}


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="1 images and truths 2"):
        detection_scores([found([], [])], [true(PLACES[:1])] * 2, 1)
    with pytest.raises(ValueError, match="no boxes"):
        detection_scores([found(PLACES[:1], [0.5])], [true([])], 1)
    with pytest.raises(ValueError, match="year is 2010"):
        voc_average_precision([found([], [])], [true(PLACES[:1])], 1, 2010)


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(
        "hf_orthossl.evaluation.detection.metrics.find_spec", lambda name: None if name == "pycocotools" else object()
    )
    with pytest.raises(ValueError, match=r"needs pycocotools, .*pip install 'hf-orthossl\[detection\]'"):
        coco_average_precision([found([], [])], [true(PLACES[:1])])
