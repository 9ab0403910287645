"""From encoder to results and drawings; and the command that asks for them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_orthossl import export_encoder, load_encoder
from hf_orthossl.cli import main
from hf_orthossl.evaluation.detection import detection_results, detection_splits, draw_detections

METRICS = ["AP", "AP50", "AP75", "VOC07_AP50", "VOC12_AP50"]
SMALL = ["--train_split", "train[:6]", "--test_split", "test[:3]", "--steps", "2", "--detection_batch_size", "2"]
SMALL += ["--image_size", "64", "--roi_samples", "8", "--fpn_channels", "8", "--dataset", "shapes", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return export_encoder(load_encoder("test_resnet"), tmp_path_factory.mktemp("run") / "encoder")


def evaluate(tmp_path, capsys, *arguments):
    main(["evaluate", *arguments, "--output_dir", str(tmp_path), *SMALL])
    return capsys.readouterr().out, json.loads((tmp_path / "results.json").read_text())


def test_results_say_what_was_done(tmp_path):
    train, test = detection_splits("shapes", train_split="train[:6]", test_split="test[:3]", image_size=64)
    encoder = load_encoder("test_resnet")
    state = torch.get_rng_state()
    results = detection_results(
        encoder,
        train,
        test,
        head="c4",
        roi_samples=8,
        batch_norm="frozen",
        steps=1,
        batch_size=2,
        figures=tmp_path,
        num_figures=2,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert [result.metric for result in results] == METRICS
    assert {(result.task, result.dataset, result.split) for result in results} == {("detection", "shapes", "test[:3]")}
    assert all(0 <= result.value <= 1 for result in results)
    expected = {"detector": "c4", "batch_norm": "frozen", "steps": 1, "batch_size": 2, "roi_samples": 8, "seed": 0}
    expected |= {"optimizer": "adamw", "learning_rate": 5e-4, "train_images": 6, "test_images": 3}
    assert expected.items() <= results[0].protocol.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test-00000.png", "test-00002.png"]


def test_drawn_boxes_lie_where_they_should(tmp_path):
    _, test = detection_splits("shapes", train_split="train[:6]", test_split="test[:3]")
    truth = test.truth(0)
    scores = torch.full((len(truth["labels"]),), 0.9)
    scores[0] = 0.2  # not certain enough to be drawn

    def drawn(detections, name):
        return np.asarray(Image.open(draw_detections(test, 0, detections, tmp_path / name)).convert("RGB")).astype(int)

    nothing = drawn({key: part[:0] for key, part in truth.items()} | {"scores": scores[:0]}, "nothing.png")
    found = drawn({"boxes": truth["boxes"], "labels": truth["labels"], "scores": scores}, "found.png")
    assert nothing.shape == found.shape
    changed = np.abs(nothing - found).max(-1) > 40
    half = changed.shape[1] // 2
    assert not changed[40:, :half].any()  # the true boxes are the same
    assert changed[40:, half:].sum() > 200


def test_the_command_for_each_detector(folder, tmp_path, capsys):
    for detector in ("fpn", "c4", "detr"):
        shown, results = evaluate(
            tmp_path / detector, capsys, str(folder), "--task", "detection", "--detector", detector
        )
        assert [result["metric"] for result in results] == METRICS
        assert {result["detector"] for result in results} == {detector}
        assert results[0]["learning_rate"] == (2e-4 if detector == "detr" else 5e-4)
        assert "VOC07_AP50" in shown
        assert "3 classes" in shown
        assert len(list((tmp_path / detector / "detections").rglob("*.png"))) == 3
        assert str(tmp_path / detector / "detections") in shown


def test_seeds_give_one_line_with_a_deviation(folder, tmp_path, capsys):
    shown, results = evaluate(
        tmp_path, capsys, str(folder), "--task", "detection", "--seeds", "2", "--drawn_images", "0"
    )
    assert {result["seed"] for result in results} == {0, 1}
    assert "(2 seeds)" in shown
    assert not (tmp_path / "detections").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--detector", "fpm"], "did you mean 'fpn'"),
        (["--batch_norm", "frosen"], "did you mean 'frozen'"),
        (["--detection_optimizer", "sdg"], "did you mean 'sgd'"),
        (["--steps", "0"], "steps"),
        (["--dataset", "digits"], "--dataset shapes"),
    ],
)
def test_what_cannot_be_measured(folder, arguments, named, tmp_path, capsys):
    # A data set may have several folders, so a second --dataset adds to the first.
    small = [word for word in SMALL if "--dataset" not in arguments or word not in ("--dataset", "shapes")]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(folder), "--task", "detection", *small, *arguments, "--output_dir", str(tmp_path)])
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "results.json").exists()


def test_without_the_extra(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_orthossl.evaluation.detection.metrics.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), "--task", "detection", *SMALL, "--output_dir", str(tmp_path)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "pip install 'hf-orthossl[detection]'" in error
