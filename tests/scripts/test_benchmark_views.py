"""`scripts/benchmark.py views` at its smallest, and its peers: what they make is what ours makes, in distribution."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_orthossl.data import Views, get_recipe

SCRIPTS = Path(__file__).parents[2] / "scripts"


def benchmark(arguments, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments.split()])
    runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")


def test_views(monkeypatch, tmp_path, capsys):
    threads = torch.get_num_threads()
    benchmark(f"views --images 8 --repeats 1 --json {tmp_path / 'out.json'}", monkeypatch)
    rows = json.loads((tmp_path / "out.json").read_text())["views"]
    assert [(row["size"], row["decoding"], row["images"]) for row in rows] == [
        (32, None, 8),
        (32, "PNG", 8),
        (224, None, 1),
        (224, "JPEG", 1),
    ]
    for row in rows:
        assert set(row["times"]) == {"pil", "v2", "ours"}
        assert row["faster"] == pytest.approx(1 / row["times"]["ours"]["ratio"])
    assert [row.get("target") for row in rows] == [4.0, None, 2.5, None]
    assert all(row["met"] == (row["measured"] >= row["target"]) for row in rows if "target" in row)
    assert torch.get_num_threads() == threads
    assert "ours" in capsys.readouterr().out


def test_too_few_images_are_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark("views --images 7", monkeypatch)
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == "--images is 7: it must be at least 8"


@pytest.mark.parametrize("peer", ["pil_view", "tensor_view"])
def test_peers_make_the_views_that_the_recipe_names(peer, monkeypatch):
    """Mean and spread of the pixels of many views, which every operation changes, agree with ours."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks import torchvision_views

    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5), (32, 32), mode="bicubic").clamp(0, 1)
    image = (255 * smooth[0]).to(torch.uint8)
    recipe, count = get_recipe("imagenet").with_(blur_sigma=(0.5, 1.0)), 600
    ours = Views(recipe, 32, (0.4,) * 3, (0.2,) * 3)(image.expand(count, -1, -1, -1), 0)
    for spec, view in zip(recipe.views, ours, strict=True):
        make = getattr(torchvision_views, peer)(spec, 32, (0.4,) * 3, (0.2,) * 3)
        start = Image.fromarray(image.permute(1, 2, 0).numpy()) if peer == "pil_view" else image
        theirs = torch.stack([make(start) for _ in range(count)])
        # Two means over 600 views each: five standard errors.
        for of in (
            lambda x: x.mean((1, 2, 3)),
            lambda x: x.flatten(1).std(1),
            lambda x: (x.diff(dim=3) ** 2).mean((1, 2, 3)),
        ):
            one, other = of(view), of(theirs)
            error = ((one.var() + other.var()) / count).sqrt()
            assert (one.mean() - other.mean()).abs() < 5 * error
