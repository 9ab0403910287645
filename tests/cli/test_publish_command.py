"""`orthossl publish` and `--push_to_hub` of both fronts, against a Hub on loopback."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from hf_orthossl.cli import main
from hf_orthossl.pretraining import PretrainingRun, publish_run
from hf_orthossl.training import OrthoSSLTrainingArguments

ROOT = Path(__file__).parents[2]
SMALL = (
    "--backbone_config channels=[8,8,16,16] --per_device_train_batch_size 32 --max_steps 2 --knn_images 100 --use_cpu"
)
PUSH = "--push_to_hub --hub_model_id tester/run"


def refused(arguments, capsys):
    """The one line that a bad command prints."""
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    main(["pretrain", *SMALL.split(), "--output_dir", str(folder)])
    return folder


@pytest.mark.parametrize("part", ["", "encoder"])
def test_a_dry_run_prints_files_and_card_and_asks_nobody(part, run_folder, hub_here, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    main(["publish", "--dry_run", str(run_folder / part), "--repo_id", "tester/run"])
    said = capsys.readouterr().out
    for name in ("config.json", "model.safetensors", "spectra.png", "README.md"):
        assert f"  {name} " in said
    assert "hf-hub:tester/run" in said
    assert "Nothing was sent" in said
    assert hub_here.requests == []


def test_publish_says_where_it_is_and_how_to_load_it(run_folder, hub_here, capsys):
    main(["publish", str(run_folder), "--repo_id", "tester/run", "--private", "--license", "mit", "--revision", "v1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split() == ["published", f"{hub_here.url}/tester/run"]
    assert lines[-2:] == [
        "  import timm",
        '  encoder = timm.create_model("hf-hub:tester/run@v1", pretrained=True).eval()',
    ]
    assert hub_here.repo("tester/run").private
    assert "license: mit" in hub_here.files("tester/run", "v1")["README.md"].decode()
    results = json.loads(hub_here.files("tester/run", "v1")["results.json"])
    assert [result["step"] for result in results] == [0, 0, "end", "end"]


def test_bad_commands_are_one_line(run_folder, hub_here, capsys, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "RUN" in refused("publish --repo_id tester/run", capsys)
    assert "--repo_id is missing" in refused(f"publish {run_folder}", capsys)
    assert "did you mean '--repo_id'" in refused(f"publish {run_folder} --repoid a/b", capsys)
    assert "unexpected argument 'b': orthossl publish RUN" in refused("publish a b --repo_id a/b", capsys)
    assert "has no owner" in refused(f"publish {run_folder} --repo_id run", capsys)
    assert "no such folder" in refused(f"publish {tmp_path}/nowhere --repo_id tester/run", capsys)
    assert "has no encoder" in refused(f"publish {tmp_path}/empty --repo_id tester/run", capsys)
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(f"publish {run_folder} --repo_id tester/run", capsys)
    assert hub_here.requests == []


@pytest.mark.parametrize("front", ["trainer", "loop"])
def test_push_to_hub_ends_with_one_commit_that_has_the_results(front, hub_here, tmp_path, capsys, monkeypatch):
    argv = [*SMALL.split(), *PUSH.split(), "--hub_strategy", "end", "--hub_token", hub_here.token]
    argv += ["--output_dir", str(tmp_path / "run")]
    monkeypatch.delenv("HF_TOKEN")
    if front == "trainer":
        main(["pretrain", *argv])
    else:
        script = str(ROOT / "scripts" / "pretrain.py")
        monkeypatch.setattr(sys, "argv", [script, *argv])
        runpy.run_path(script, run_name="__main__")
    assert len(hub_here.commits("tester/run")) == 2
    files = hub_here.files("tester/run")
    assert "training_args.bin" not in files
    assert len(json.loads(files["results.json"])) == 4
    assert hub_here.token not in (tmp_path / "run" / "config.yaml").read_text()
    assert f"published  {hub_here.url}/tester/run" in capsys.readouterr().out


def test_push_to_hub_fails_before_training(hub_here, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    start = f"pretrain {SMALL} --output_dir {folder} --push_to_hub"
    assert "pass --hub_model_id user/name" in refused(start, capsys)
    hub_here.add_repo("tester/other", {"model.bin": b"theirs"})
    assert "did not publish" in refused(f"{start} --hub_model_id tester/other", capsys)
    assert "(401)" in refused(f"{start} --hub_model_id tester/run --hub_token wrong", capsys)
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(f"{start} --hub_model_id tester/run", capsys)
    assert not folder.exists()


def test_a_last_push_that_fails_leaves_the_run_and_says_what_to_do(run_folder, hub_here):
    hub_here.fail("POST .*commit/", 503, times=1000)
    args = OrthoSSLTrainingArguments(output_dir=str(run_folder), push_to_hub=True, hub_model_id="tester/run")
    with pytest.raises(OSError, match=f"publish it with orthossl publish {run_folder} --repo_id tester/run"):
        publish_run(PretrainingRun(run_folder), args)
    hub_here.faults.clear()
    main(["publish", str(run_folder), "--repo_id", "tester/run"])
    assert "model.safetensors" in hub_here.files("tester/run")
