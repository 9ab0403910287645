"""Benchmarks that run a peer: both sides compute the same, and `all` puts everything into one table."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hf_orthossl import SSLConfig, SSLModel

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def benchmark(monkeypatch):
    def run(arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments.split()])
        runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")

    monkeypatch.syspath_prepend(str(SCRIPTS))
    return run


@pytest.mark.parametrize("backbone", ["resnet18", "resnet18_cifar"])
def test_both_sides_of_the_step_compute_the_same(backbone, monkeypatch):
    """Our loss is 4 + 4 of lightly's, and so are the gradients; a step of either moves its target as the other's."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks.step import MOMENTUM, lightly_twin

    torch.manual_seed(0)
    config = {"hidden_dim": 64, "output_dim": 16}
    ours = SSLModel(
        SSLConfig(backbone=backbone, image_size=32, method="byol", method_config=config, regularizer=None)
    ).train()
    for parameter in ours.encoder.parameters():  # timm starts the last norm of every block at zero, which hides it
        torch.nn.init.normal_(parameter, std=0.1)
    twin = lightly_twin(ours, backbone).train()
    ours.method.target.follow(0.0, ours.encoder, ours.method.projector)
    twin.backbone_momentum.load_state_dict(twin.backbone.state_dict())
    ours, twin = ours.double(), twin.double()
    views = [torch.randn(6, 3, 16, 16, dtype=torch.double) for _ in range(2)]
    loss, theirs = ours(views).loss, twin.loss(views)
    torch.testing.assert_close(loss, 4 + 4 * theirs)
    loss.backward()
    theirs.backward()
    for found, expected in zip(ours.encoder.parameters(), twin.backbone.parameters(), strict=True):
        torch.testing.assert_close(found.grad, 4 * expected.grad)
    with torch.no_grad():
        for parameter in [*ours.encoder.parameters(), *twin.backbone.parameters()]:
            parameter.add_(1)
    ours.method.target.follow(MOMENTUM, ours.encoder, ours.method.projector)
    twin.step(views, torch.optim.SGD(twin.parameters(), lr=0.0), MOMENTUM)
    for found, expected in zip(
        ours.method.target.stack[0].parameters(), twin.backbone_momentum.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_step(benchmark, tmp_path, capsys):
    benchmark(f"step --backbone resnet18 --batch 2 --repeats 1 --shares no --json {tmp_path / 'out.json'}")
    (row,) = json.loads((tmp_path / "out.json").read_text())["step"]
    times = {name: time["median_ms"] for name, time in row["times"].items()}
    assert row["measured"] == row["speedup"] == pytest.approx(times["lightly"] / times["ours"])
    assert row["met"] is (row["measured"] >= row["target"] == 1.2)
    assert row["images_per_second"]["ours"] == pytest.approx(2e3 / times["ours"])
    assert row["arithmetic_share"] == pytest.approx((times["online"] + times["target"]) / times["ours"])
    assert "images/s, ours over lightly's" in capsys.readouterr().out


def test_pretrain(benchmark, tmp_path):
    benchmark(f"pretrain --batch 8 --untimed 1 --steps 2 --workers 1 --repeats 1 --json {tmp_path / 'out.json'}")
    (row,) = json.loads((tmp_path / "out.json").read_text())["pretrain"]
    speeds = row["images_per_second"]
    assert row["speedup"] == pytest.approx(speeds["ours"][0] / speeds["lightly"][0])
    assert "target" not in row, "the issue's target is one of CUDA"


@pytest.mark.parametrize("name", ["step", "pretrain"])
def test_without_lightly_it_says_how_to_get_it(name, benchmark, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightly", None)
    with pytest.raises(SystemExit) as stop:
        benchmark(name)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'hf_orthossl[bench]'" in line


def test_a_backbone_that_torchvision_lacks_is_one_line(benchmark, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark("step --backbone vit_tiny_patch16_224 --image_size 32 --batch 2")
    assert stop.value.code == 2
    assert "--backbone vit_tiny_patch16_224: lightly's example takes torchvision's ResNets" in capsys.readouterr().err


def test_all_goes_on_after_a_failure(benchmark, monkeypatch, tmp_path, capsys):
    from benchmarks import everything
    from benchmarks.measure import judged

    rows = {
        "penalty": [judged("SO", 0.5, "×", at_most=0.6), {"without": "target"}],
        "step": [judged("speed", 1.1, "×", at_least=1.2), judged("share", 0.0042, "%", at_most=0.005)],
    }
    monkeypatch.setattr(everything, "_start", lambda name, args: rows.get(name))
    with pytest.raises(SystemExit) as stop:
        benchmark(f"all --json {tmp_path / 'out.json'} --markdown {tmp_path / 'out.md'}")
    assert stop.value.code == 1
    report = json.loads((tmp_path / "out.json").read_text())
    assert {name: report[name] for name in rows} == rows
    assert "torch" in report["machine"]
    table = (tmp_path / "out.md").read_text().splitlines()
    assert table[2:5] == [
        "| SO | ≤ 0.6× | 0.5× | met |",
        "| speed | ≥ 1.2× | 1.1× | **MISSED** |",
        "| share | ≤ 0.5 % | 0.42 % | met |",
    ]
    assert "| pretrain | | | **FAILED** |" in table
    output = capsys.readouterr()
    assert "\n".join(table) in output.out
    assert output.err.startswith("failed: views, pretrain")


@pytest.mark.slow
def test_all_of_them_run(benchmark, tmp_path):
    benchmark(f"all --quick --json {tmp_path / 'out.json'}")
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report) == {"machine", "penalty", "views", "step", "pretrain", "spectra", "scaling"}
