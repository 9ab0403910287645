"""`scripts/sweep_backbones.py`: what it tries, finds wrong, leaves out the second time, and writes."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import sweep_backbones
from backbone_sweep import checks, running
from backbone_sweep.subjects import Subject, all_subjects, smallest_architecture
from backbone_sweep.table import table

from hf_orthossl.encoders import load_encoder


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The command on a model of each library and one that is refused: its rows and its table."""
    folder = tmp_path_factory.mktemp("sweep")
    output, markdown = folder / "rows.jsonl", folder / "backbones.md"
    only = ["timm:mambaout", "transformers:vit", "transformers:detr"]
    assert sweep_backbones.main(["--only", *only, "--output", str(output), "--markdown", str(markdown)]) == 0
    return output, markdown


def test_each_backbone_has_a_row(swept):
    rows = {f"{row['library']}:{row['name']}": row for row in map(json.loads, swept[0].read_text().splitlines())}
    assert [rows[name]["status"] for name in ("timm:mambaout", "transformers:vit")] == ["supported"] * 2
    assert rows["transformers:detr"]["status"] == "refused"
    vit, timm_row = rows["transformers:vit"], rows["timm:mambaout"]
    assert set(vit["checks"]) == set(checks.CHECKS)
    assert set(timm_row["checks"]) == set(checks.CHECKS) - {"pretrained"}
    assert vit["architecture"] == "ViTModel"
    # Class token and position embeddings.
    assert vit["unpenalized"] == {
        "vector, which has no other to be orthogonal to": 1,
        "parameter of ViTEmbeddings itself, no weight of a linear or convolution layer": 1,
    }
    assert vit["versions"]["torch"] == torch.__version__.partition("+")[0]
    markdown = swept[1].read_text()
    assert "transformers, types of `AutoModel`: 1 of 2 supported (1 refused)" in markdown
    assert "| `detr` | refused | load: " in markdown
    assert f"timm {timm.__version__}" in markdown


def test_what_is_there_is_not_tried_again(swept, monkeypatch):
    tried = []

    def examine(subject, *limits):
        tried.append(str(subject))
        return {**row, "status": "supported"}

    lines = swept[0].read_text().splitlines()
    row = json.loads(next(line for line in lines if '"detr"' in line))
    monkeypatch.setattr(sweep_backbones, "examine", examine)
    subjects = [Subject("transformers", "vit"), Subject("transformers", "detr")]
    path = swept[0].with_name("copy.jsonl")
    path.write_text("\n".join([*lines, '{"library": "timm", "na']) + "\n")  # the last line was cut by a power failure
    assert len(sweep_backbones.sweep(subjects, path, 1, 1)) == 2
    assert tried == []
    rows = sweep_backbones.sweep(subjects, path, 1, 1, again=True)
    assert tried == ["transformers:detr"]
    assert [row["status"] for row in rows] == ["supported", "supported"]
    assert sweep_backbones.sweep(subjects, path, 1, 1)[1]["status"] == "supported"  # the newest row counts


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda *_: time.sleep(60), "it took more than 1 s"),
        (lambda *_: os.kill(os.getpid(), signal.SIGKILL), "its process ended by SIGKILL"),
        (lambda *_: bytearray(10**11), "it needs more than 4 GiB"),
    ],
    ids=["time", "crash", "memory"],
)
def test_harm_ends_one_backbone_only(harm, reason, monkeypatch):
    monkeypatch.setattr(running, "_check", harm)
    row = running.examine(Subject("timm", "resnet"), seconds=1, gigabytes=4)
    assert row["status"] == "failed"
    assert list(row["checks"].values()) == [reason]


def _found(monkeypatch, tmp_path, forward=None, stages=None):
    """What the checks find of a network whose forward pass or stages are changed once it is loaded."""

    def load(*args, **kwargs):
        encoder = load_encoder("resnet10t", image_size=32)
        kind = type(encoder)
        changed = {"forward": forward, "stages": stages}
        encoder.__class__ = type("Changed", (kind,), {k: v(kind) for k, v in changed.items() if v})
        return encoder

    monkeypatch.setattr(checks, "load_encoder", load)
    return checks.check_backbone("resnet10t", "timm", tmp_path)["checks"]


def test_checks_find_what_is_wrong(monkeypatch, tmp_path):
    def fused(kind):
        return lambda self, images: kind.forward(self, images).cumsum(0).flip(0)

    def constant(kind):
        return lambda self, images: torch.ones(len(images), self.num_features)

    def transposed(kind):
        return lambda self, images: {
            key: output.transpose(1, 2) if output.ndim == 4 else output
            for key, output in kind.stages(self, images).items()
        }

    assert "depends on the others" in _found(monkeypatch, tmp_path / "a", forward=fused)["representation"]
    found = _found(monkeypatch, tmp_path / "b", forward=constant)
    assert found["representation"] == "two images have the same representation"
    assert "parameters have no gradient" in found["training"] or "does not require grad" in found["training"]
    assert "the library states [64, 128, 256, 512]" in _found(monkeypatch, tmp_path / "c", stages=transposed)["stages"]


def test_smallest_architecture_is_the_one_of_fewest_parameters():
    count = {
        name: sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())
        for name in timm.list_models(module="starnet")
    }
    assert smallest_architecture("starnet") == min(count, key=count.get)


def test_subjects_are_all_modules_and_types():
    names = {str(subject) for subject in all_subjects()}
    assert sum(name.startswith("timm:") for name in names) == len(
        [module for module in timm.list_modules() if hasattr(timm.models, module)]
    )
    assert {"timm:resnet", "transformers:vit", "transformers:clip", "transformers:siglip_vision_model"} <= names
    assert not {"timm:small_images", "transformers:bert", "transformers:llava"} & names


def test_a_pattern_that_matches_nothing_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        sweep_backbones.main(["--only", "timm:resnett"])
    assert ended.value.code == 2
    assert "matches no backbone" in capsys.readouterr().err


def test_reasons_do_not_break_the_table():
    row = {"library": "timm", "name": "a", "status": "failed", "checks": {"load": "ok", "stages": "x | y\nz"}}
    assert "| `a` | failed | stages: x \\| y z |" in table([row])


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_all_backbones(tmp_path):
    rows = sweep_backbones.sweep(all_subjects(), tmp_path / "rows.jsonl", 300, 8)
    supported = {str(Subject(row["library"], row["name"])) for row in rows if row["status"] == "supported"}
    assert {str(subject) for subject in all_subjects() if subject.library == "timm"} <= supported, table(rows)
    assert sum(name.startswith("transformers:") for name in supported) >= 80, table(rows)
