"""The report of a run: one page without network or scripts, whose verdict tells a healthy run from a collapsed one."""

import contextlib
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from card_folders import record_of
from torch import nn

from hf_orthossl import pretrain, spectral_report, write_report
from hf_orthossl.cli import main
from hf_orthossl.reporting.run import Run
from hf_orthossl.reporting.verdict import judge
from hf_orthossl.training.run_folder import is_report

OPTIONS = {
    "backbone_config": {"channels": [8, 8, 16, 16]},
    "per_device_train_batch_size": 32,
    "max_steps": 4,
    "logging_steps": 1,
    "knn_images": 100,
    "spectra_images": 40,
    "spectra_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
}


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and what its command printed."""
    folder, printed = tmp_path_factory.mktemp("runs") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        pretrain("digits", **OPTIONS, output_dir=folder)
    return folder, printed.getvalue()


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_ends_with_a_page_that_needs_nothing_else(trained):
    folder, printed = trained
    assert f"\nreport   {folder / 'report.html'}\n" in printed
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.all("script")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    # Nothing that a browser would fetch, and nothing that it would run.
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)\w+:", html)
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    # Four images with two views each, six queries with six neighbours each.
    assert len(page.all("img")) == 4 * 3 + 6 * 7
    for heading in ("Over time", "Spectra of the features", "Spectra of the weights", "What it finds similar", "Map"):
        assert heading in page.text, heading
    assert "Effective rank of the representation" in page.text
    assert "layer4 = representation" in page.text
    for setting, value in (("max_steps", "4"), ("learning_rate", "0.015"), ("views", "digits")):
        assert re.search(rf"{setting}\s*{re.escape(value)}(?!\d)", page.text), setting


def test_the_command_writes_it_again_elsewhere_and_replaces_only_reports(trained, tmp_path, capsys):
    folder, _ = trained
    main(["report", str(folder), "-o", str(tmp_path / "new" / "page.html"), "--images", "20"])
    page = tmp_path / "new" / "page.html"
    assert capsys.readouterr().out == f"report   {page}\n"
    assert is_report(page)
    assert "20 images of digits, train" in page.read_text(encoding="utf-8")
    main(["report", str(folder), "--output", str(page), "--images", "0"])
    text = Page(page.read_text(encoding="utf-8")).text
    assert "No pictures were asked for." in text
    assert "What it finds similar" not in text
    page.write_text("mine")
    line = refused(capsys, folder, "-o", page)
    assert line == (
        f"orthossl report: error: output {page} exists and is no report of orthossl: pass another file, or remove it"
    )
    assert page.read_text() == "mine"


def test_folders_without_a_run_are_refused_in_one_line(trained, tmp_path, capsys):
    folder, _ = trained
    assert "no such folder" in refused(capsys, tmp_path / "none")
    assert "is no run folder: pass a run of orthossl pretrain" in refused(capsys, tmp_path)
    (tmp_path / "begun").mkdir()
    shutil.copy(folder / "config.yaml", tmp_path / "begun")
    assert "has not begun" in refused(capsys, tmp_path / "begun")
    assert "images is 1: it must be 2 or more" in refused(capsys, folder, "--images", "1")
    assert not (tmp_path / "begun" / "report.html").exists()


def test_a_run_under_way_is_shown_as_far_as_it_is(trained, tmp_path):
    folder, _ = trained
    for name in ("config.yaml", "history.jsonl"):
        shutil.copy(folder / name, tmp_path)
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert re.search(r"At step 4 the representation uses \d+\.\d of 39 directions", text)
    assert "The run has not ended, or was stopped; its last log entry is of step 4." in text
    assert "The views it learned from" in text


def test_names_of_strangers_are_text(trained, tmp_path):
    folder = tmp_path / "<script>alert(1)<"
    shutil.copytree(trained[0], folder)
    path = folder / "encoder" / "config.json"
    config = json.loads(path.read_text())
    config["orthossl"]["dataset"] = '"><img src=x onerror=alert(1)>'
    config["orthossl"]["training"]["<b>x</b>"] = "</td><script>alert(2)</script>"
    path.write_text(json.dumps(config))
    page = Page(write_report(folder, images=0).read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("img")
    assert "alert(2)" in page.text
    assert "onerror=alert(1)" in page.text


def test_a_report_that_cannot_be_drawn_or_written_does_not_fail_the_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "report.html").write_text("mine")
    pretrain("digits", **OPTIONS | {"max_steps": 1, "spectra_images": 0}, output_dir=tmp_path)
    said = capsys.readouterr().out.splitlines()[-2]
    assert said.startswith(f"report   not written (output {tmp_path / 'report.html'} exists and is no report")
    assert (tmp_path / "report.html").read_text() == "mine"

    def fail(*args, **kwargs):
        raise RuntimeError("no pictures today")

    monkeypatch.setattr("hf_orthossl.reporting.pictures.make_view_sheet", fail)
    text = Page(write_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "Some pictures cannot be drawn: no pictures today." in text


class Stages(nn.Module):
    """Two layers, of which the second can be made to use few directions, or none."""

    stage_names = ("layer1", "representation")

    def __init__(self, rank):
        super().__init__()
        torch.manual_seed(0)
        self.layer1, self.layer2 = nn.Linear(48, 40), nn.Linear(40, 40)
        left, values, right = torch.linalg.svd(self.layer2.weight.data)
        values[rank:] = 0
        self.layer2.weight.data = left * values @ right

    def stages(self, images):
        hidden = self.layer1(images.flatten(1))
        return {"layer1": hidden, "representation": self.layer2(hidden)}


def run_of(rank, tmp_path, images=None, history=(), results=(), **settings):
    images = torch.randn(200, 3, 4, 4, generator=torch.Generator().manual_seed(0)) if images is None else images
    report = spectral_report(Stages(rank), images)
    record = record_of(training={"learning_rate": 30.0, "weight_decay": 0.1})
    return Run(tmp_path, settings, list(history), list(results), record, report)


@pytest.mark.parametrize(("rank", "kind"), [(40, "good"), (2, "bad"), (0, "bad")])
def test_the_verdict_follows_the_rank_of_the_representation(rank, kind, tmp_path):
    verdict = judge(run_of(rank, tmp_path, regularizer="none"))
    assert verdict.kind == kind
    if kind == "good":
        assert re.fullmatch(r"Healthy: the representation uses \d+\.\d of 40 directions\.", verdict.headline)
        assert not verdict.advice
        return
    advice = " ".join(verdict.advice)
    assert "its peak was 30" in advice
    assert "--regularizer so" in advice
    if rank:
        assert re.fullmatch(r"Collapsed to [12]\.\d of 40 directions\.", verdict.headline)
        assert "All layers before the representation keep more: it is lost in the last step." in verdict.reasons
    else:
        assert verdict.headline == "Collapsed completely: all images get the same representation."
        assert "orthossl spectra resnet18 --untrained" in advice


def test_equal_images_are_named_as_the_cause_and_training_is_not(tmp_path):
    verdict = judge(run_of(40, tmp_path, images=torch.ones(20, 3, 4, 4)))
    assert verdict.kind == "bad"
    assert len(verdict.advice) == 1
    assert verdict.advice[0].startswith("Train on images that differ")


def test_a_log_alone_says_that_a_run_is_collapsing(tmp_path):
    key = "spectra/features/representation/effective_rank"
    history = [{"step": 10, key: 90.0}, {"step": 20, key: 3.0}]
    verdict = judge(Run(tmp_path, {"spectra_images": 128}, history))
    assert verdict.kind == "bad"
    assert verdict.headline == "At step 20 the representation uses 3.0 of 127 directions: it is collapsing."
    assert (
        "During training, its effective rank of 128 images was 90.0 at step 10 and 3.0 at step 20." in verdict.reasons
    )
    verdict = judge(Run(tmp_path, {}, [{"step": 10, "loss": 1.0}]))
    assert (verdict.kind, verdict.headline) == ("open", "No spectrum of the representation was measured.")
