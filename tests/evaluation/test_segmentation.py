"""Segmentation: masks are read as they are, and the probe's score is what a loop over pixels gives."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hf_orthossl import ModuleEncoder
from hf_orthossl.cli import main
from hf_orthossl.data.shapes import shapes
from hf_orthossl.evaluation.segmentation import (
    intersection_over_union,
    probe,
    segmentation_results,
    segmentation_splits,
)

SIDE, PATCH = 32, 8
COLOURS = np.array([[230, 40, 40], [40, 230, 40], [40, 40, 230]], np.uint8)


def encoder(seed=0):
    torch.manual_seed(seed)
    return ModuleEncoder(nn.Conv2d(3, 8, PATCH, stride=PATCH), image_size=SIDE)


def blocks(count, seed, values=(0, 1, 2)):
    """Images of blocks as large as a patch, each in the colour of its class, and their masks."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, (count, SIDE // PATCH, SIDE // PATCH))
    full = classes.repeat(PATCH, 1).repeat(PATCH, 2)
    return [Image.fromarray(each) for each in COLOURS[full]], [
        Image.fromarray(each.astype(np.uint8)) for each in np.array(values)[full]
    ]


def columns(images, masks, name="mask"):
    features = datasets.Features({"image": datasets.Image(), name: datasets.Image()})
    return datasets.Dataset.from_dict({"image": images, name: masks}, features)


def splits(name="mask", **values):
    return datasets.DatasetDict(
        {"train": columns(*blocks(12, 0, **values), name), "test": columns(*blocks(6, 1, **values), name)}
    )


def test_classes_that_a_linear_map_separates_are_found():
    train, test = segmentation_splits(splits("annotation", values=(3, 7, 40)))
    assert (train.values, train.class_names) == ([3, 7, 40], ["3", "7", "40"])
    network = encoder().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    results = segmentation_results(network, train, test, steps=200, learning_rate=0.05)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    by_metric = {result.metric: result for result in results}
    # Between two blocks the interpolated scores pass through a third class for a pixel or two.
    assert by_metric["mIoU"].value > 0.8
    assert by_metric["pixel_accuracy"].value > 0.9
    assert set(by_metric["mIoU"].protocol["per_class"]) == {"3", "7", "40"}


def test_score_is_that_of_a_loop_over_pixels(monkeypatch):
    train, test = segmentation_splits(splits())
    network = encoder()
    trained, _ = probe.train_probe(network, train, steps=5)
    value = probe.intersection_over_union(probe.confusion_matrix(trained, network, test))
    counts = {name: np.zeros(3) for name in ("both", "true", "predicted")}
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    for image, mask in (test[index] for index in range(len(test))):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        with torch.no_grad():
            scores = trained(network.backbone(((pixels - mean) / std)[None]))
        upsampled = nn.functional.interpolate(scores, (SIDE, SIDE), mode="bilinear")[0]
        for row in range(SIDE):
            for column in range(SIDE):
                true, predicted = int(mask[row, column]), int(upsampled[:, row, column].argmax())
                counts["true"][true] += 1
                counts["predicted"][predicted] += 1
                counts["both"][true] += true == predicted
    expected = counts["both"] / (counts["true"] + counts["predicted"] - counts["both"])
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    # A part of the classes at a time gives the same classes.
    monkeypatch.setattr(probe, "MOST_SCORES", SIDE * SIDE)
    parts = probe.intersection_over_union(probe.confusion_matrix(trained, network, test))
    np.testing.assert_array_equal(parts, value)


def test_a_class_that_is_neither_there_nor_predicted_does_not_count():
    found = intersection_over_union(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    np.testing.assert_allclose(found, [3 / 4, 4 / 5, np.nan])


def test_features_that_are_not_kept_give_the_same(monkeypatch):
    train, _ = segmentation_splits(splits())
    network = encoder()
    kept, _ = probe.train_probe(network, train, steps=6, batch_size=4)
    monkeypatch.setattr(probe, "KEPT_SHARE", 0)
    again, _ = probe.train_probe(network, train, steps=6, batch_size=4)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), again.parameters(), strict=True))


def test_a_collapsed_encoder_gets_the_commonest_class():
    network = encoder()
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    train, test = segmentation_splits(splits())
    (miou, accuracy) = segmentation_results(network, train, test, steps=50, learning_rate=0.05)
    shares = torch.cat([test[index][1].flatten() for index in range(len(test))]).bincount() / (6 * SIDE**2)
    assert any(accuracy.value == pytest.approx(float(share)) for share in shares)
    assert miou.value == pytest.approx(accuracy.value / 3)


def test_masks_of_the_built_in_shapes_fill_their_boxes():
    for row in shapes()["test"].select(range(10)):
        mask = np.array(row["mask"])
        inside = np.zeros_like(mask)
        for (x, y, width, height), category in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
            box = (slice(int(y), int(y + height)), slice(int(x), int(x + width)))
            assert set(np.unique(mask[box])) <= {0, category + 1}
            # The box touches the shape on all four sides.
            assert all(edge.any() for edge in (mask[box][0], mask[box][-1], mask[box][:, 0], mask[box][:, -1]))
            inside[box] = 1
        assert not mask[inside == 0].any()


def test_values_that_do_not_count_and_values_that_training_lacks():
    data = splits(values=(0, 1, 255))
    images, masks = blocks(2, 5, values=(0, 1, 9))
    data["test"] = columns(images, masks)
    train, test = segmentation_splits(data)
    assert train.values == [0, 1]
    strange = sum(int((np.array(mask) == 9).sum()) for mask in masks)
    assert int((test[0][1] < 0).sum() + (test[1][1] < 0).sum()) == strange
    assert f"{strange:,} pixels of test have values that no training mask has (9)" in test.notes[0]
    assert not train.notes


def test_palettes_are_indices_and_colours_are_refused():
    images, masks = blocks(4, 0)
    palettes = []
    for mask in masks:
        palette = mask.convert("P")
        palette.putpalette([value for colour in COLOURS[::-1] for value in colour])
        palettes.append(palette)
    data = datasets.DatasetDict({"train": columns(images, palettes), "test": columns(images, palettes)})
    assert segmentation_splits(data)[0].values == [0, 1, 2]
    data["train"] = columns(images, [palette.convert("RGB") for palette in palettes])
    with pytest.raises(ValueError, match="holds colours, where each pixel must be the index of a class"):
        segmentation_splits(data)


def test_pairs_of_folders(tmp_path):
    for split, count in (("training", 4), ("validation", 2)):
        for place, images in zip(("images", "annotations"), blocks(count, count), strict=True):
            folder = tmp_path / place / split
            folder.mkdir(parents=True)
            for number, image in enumerate(images):
                image.save(folder / f"{number}.{'bmp' if place == 'images' else 'png'}")
    train, test = segmentation_splits(str(tmp_path))
    assert (len(train), len(test), train.split, test.split) == (4, 2, "train", "validation")
    image, mask = train[3]
    np.testing.assert_array_equal(np.array(image), COLOURS[mask.numpy()])
    (tmp_path / "annotations" / "training" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"1 files of split training have no partner .*such as '2'"):
        segmentation_splits(str(tmp_path))


def test_what_cannot_be_read_is_named():
    data = splits()
    with pytest.raises(ValueError, match=r"mask_column 'maks' .*did you mean .*mask"):
        segmentation_splits(data, mask_column="maks")
    with pytest.raises(ValueError, match="has no column of masks besides its images"):
        segmentation_splits(data.remove_columns("mask"))
    with pytest.raises(ValueError, match="have 0 classes besides the ignored values 0, 1, 2"):
        segmentation_splits(data, ignore_values=(0, 1, 2))
    images, masks = blocks(8, 0)
    masks[3] = masks[3].resize((SIDE, SIDE // 2))
    data["test"] = columns(images, masks)
    _, test = segmentation_splits(data)
    train, _ = segmentation_splits(splits())
    for result in segmentation_results(encoder(), train, test, steps=2, batch_size=4):
        counted = {name: result.protocol[name] for name in ("test_images", "unreadable_test_images", "ignored_values")}
        assert counted == {"test_images": 7, "unreadable_test_images": 1, "ignored_values": "255"}
    assert test[3] is None
    assert "7 of 8 images of test were used: 1 cannot be read" in test.notes[0]


def test_the_command_scores_draws_and_records(tmp_path, capsys):
    command = ["evaluate", "resnet10t", "--untrained", "--image_size", "64", "--task", "segmentation", "--dataset"]
    command += ["shapes", "--train_split", "train[:8]", "--test_split", "test[:4]", "--device", "cpu"]
    command += ["--segmentation_steps", "2", "--drawn_images", "2", "--output_dir", str(tmp_path)]
    main(command)
    said = capsys.readouterr().out
    assert "8 images of train[:8] and 4 of test[:4], 4 classes of pixels: background, circle, square, triangle" in said
    results = {entry["metric"]: entry for entry in json.loads((tmp_path / "results.json").read_text())}
    assert set(results) == {"mIoU", "pixel_accuracy"}
    assert (results["mIoU"]["steps"], results["mIoU"]["image_size"]) == (2, 64)
    assert len(list((tmp_path / "segmentations" / "resnet10t").glob("*.png"))) == 2
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--segmentation_steps", "0"])
    assert "steps is 0" in capsys.readouterr().err
