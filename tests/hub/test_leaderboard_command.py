"""`orthossl leaderboard`: what it prints, what it leaves, and one clear line for what goes wrong."""

import dataclasses
import json
import sys

import pytest
from leaderboard_command import refused, run
from leaderboard_repos import SPLITS, change, files_of

from hf_orthossl.cli import main
from hf_orthossl.evaluation import Result, read_results
from hf_orthossl.hub.leaderboard.board.snapshot import read_snapshot


def test_build_prints_and_leaves_a_board(hub, capsys, tmp_path):
    out = run(capsys, "build")
    assert "3 encoders, rejected 1, from" in out
    assert f"and {len(hub.requests)} requests" in out, hub.requests
    assert "rejected  tester/liar: model.safetensors: is missing" in out
    board = read_snapshot(tmp_path / "runs" / "leaderboard")
    assert len(board.entries) == 3
    hub.requests.clear()
    assert "1 requests" in run(capsys, "build")
    assert len(hub.requests) == 1


def test_build_publishes_a_data_set_in_one_commit(hub, capsys):
    assert f"published  {hub.url}/datasets/tester/board" in run(capsys, "build", "--push_to_hub", "tester/board")
    tip = hub.repo("tester/board", "dataset").head["main"]
    assert set(tip.files) == {".gitattributes", "board.json", "board.parquet", "README.md"}
    assert tip.parent.parent is None
    assert "tester/board" in hub.store.read(tip.files["README.md"]).decode()
    assert len(read_snapshot("tester/board").entries) == 3


def test_a_failed_build_leaves_the_board(hub, capsys, tmp_path):
    run(capsys, "build")
    kept = (tmp_path / "runs" / "leaderboard" / "board.json").read_bytes()
    hub.fail("GET /api/models", 500, times=100)
    assert "repeatedly answered 500" in refused(capsys, "build")
    assert (tmp_path / "runs" / "leaderboard" / "board.json").read_bytes() == kept


def test_a_commit_made_meanwhile_is_not_undone(hub, capsys, monkeypatch):
    run(capsys, "build", "--push_to_hub", "tester/board")
    change(hub, "tester/encoder-0000", 0.5)
    # As a verification would, after the build has looked and before it commits.
    dataset, served = hub.repo("tester/board", "dataset"), hub.fault

    def commit_first(line, late):
        if line.startswith("POST /api/datasets/tester/board/preupload") and not late:
            hub.change(dataset, {"verified.json": "theirs"})
        return served(line, late)

    monkeypatch.setattr(hub, "fault", commit_first)
    assert "changed while publishing" in refused(capsys, "build", "--push_to_hub", "tester/board")
    assert hub.store.read(dataset.head["main"].files["verified.json"]) == b"theirs"


def test_verify_says_in_words_what_agrees(hub, capsys, board_encoders, tmp_path):
    claims = read_results(board_encoders[0] / "results.json")
    hub.add_repo("tester/sound", files_of(board_encoders[0], "tester/sound", claims))
    splits = ["--train_split", SPLITS["train_split"]]
    out = run(capsys, "verify", "tester/sound", *splits, "--device", "cpu", "--push_to_hub", "tester/board")
    lines = [line for line in out.splitlines() if line.startswith("knn")]
    assert len(lines) == 2
    for line, result in zip(lines, claims, strict=True):
        assert line.count(f"{result.value:.4f}") >= 2
        assert line.endswith("+0.0000     agrees")
    assert "spectra    agree with the published weights" in out
    local = (tmp_path / "runs" / "leaderboard" / "verified.json").read_bytes()
    published = hub.repo("tester/board", "dataset").head["main"].files["verified.json"]
    assert json.loads(local) == json.loads(hub.store.read(published))
    run(capsys, "build")
    (entry,) = (e for e in read_snapshot("runs/leaderboard").entries if e.repo_id == "tester/sound")
    assert {result.source for result in entry.results} == {"verified", "board"}


def test_verify_says_in_words_what_differs(hub, capsys, board_encoders):
    claims = read_results(board_encoders[1] / "results.json")
    # Without the interval that would give the lie away.
    honest = [{name: value for name, value in claim.protocol.items() if name != "interval"} for claim in claims]
    claims = [
        dataclasses.replace(claim, value=0.99, protocol=protocol)
        for claim, protocol in zip(claims, honest, strict=True)
    ]
    claims.append(Result("finetune", "digits", "test", "top1", 0.95, {"protocol": "full", "epochs": 50}))
    hub.add_repo("tester/boaster", files_of(board_encoders[1], "tester/boaster", claims))
    out = run(capsys, "verify", "tester/boaster", "--train_split", SPLITS["train_split"])
    assert out.count("DIFFERS: beyond the interval") == 2
    assert "claims     2 of 3 measured again" in out
    (line,) = (line for line in out.splitlines() if line.startswith("finetune"))
    assert line.endswith("not measured again")
    (note,) = (line for line in out.splitlines() if line.startswith("note"))
    assert "finetune top1 on digits: not measured again, only kNN and linear probes are" in note
    assert "orthossl evaluate --task finetune" in note


def test_verify_fetches_nothing_that_a_stranger_names(hub, capsys, board_encoders, monkeypatch):
    asked = []

    def away(location, **options):
        asked.append(location)
        raise OSError("away")

    monkeypatch.setattr("hf_orthossl.hub.leaderboard.claims.remeasure.labelled_splits", away)
    settings = {"k": 5, "temperature": 0.07, "train_images": 300, "test_images": 100}
    claims = [Result("knn", name, "test", "top1", 0.9, settings) for name in ("evil/data", "uoft-cs/cifar10")]
    hub.add_repo("tester/luring", files_of(board_encoders[0], "tester/luring", claims))
    out = run(capsys, "verify", "tester/luring")
    assert "knn top1 on evil/data: pass --dataset evil/data to measure it again" in out
    assert asked == ["uoft-cs/cifar10"]


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["biuld"], "unknown action 'biuld'"),
        (["build", "--push_to_hub", "board"], "has no owner"),
        (["build", "--outptu_dir", "x"], "--output_dir"),
        (["serve", "--port", "0"], "port must be 1–65535, got 0"),
        (["deploy", "--board", "a/b"], "--space is missing"),
        (["deploy", "--space", "a/b"], "--board is missing"),
        (["deploy", "--space", "../x", "--board", "a/b"], "../x"),
        (["verify"], "MODEL"),
        (["verify", "resnet18"], "owner/name"),
        (["verify", "tester/nobody"], "no such repository"),
    ],
)
def test_one_clear_line(argv, match, hub, capsys):
    assert match in refused(capsys, *argv)


def test_without_a_token_nothing_is_measured(hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "access token" in refused(capsys, "verify", "tester/encoder-0000", "--push_to_hub", "tester/board")
    assert "access token" in refused(capsys, "build", "--push_to_hub", "tester/board")
    assert hub.requests == []


def test_without_gradio_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_orthossl.hub.leaderboard.page.app", raising=False)
    assert "pip install 'hf_orthossl[leaderboard]'" in refused(capsys, "serve")


def test_no_board_yet(hub, capsys):
    pytest.importorskip("gradio", reason="the page needs the extra [leaderboard]")
    hub.add_repo("runs/leaderboard", {"board.json": "{}"}, kind="dataset")
    assert "runs/leaderboard has no board.json" in refused(capsys, "serve")
    assert hub.requests == [], "a missing folder is not looked for on the Hub"


def test_serve_says_what_is_missing_and_where(hub, capsys, tmp_path):
    pytest.importorskip("gradio", reason="the page needs the extra [leaderboard]")
    said = refused(capsys, "serve", "--board", "runs/board")
    assert "there is no folder runs/board, and no data set of this name" in said
    hub.add_repo("tester/empty", {"README.md": "x"}, kind="dataset")
    assert "the data set tester/empty has no board.json" in refused(capsys, "serve", "--board", "tester/empty")
    hub.fail("GET /datasets/runs/board", 500, times=100)
    assert "there is no folder runs/board" in refused(capsys, "serve", "--board", "runs/board")
    (tmp_path / "bad").mkdir()
    for content in ('{"format":2,"entries":3}', "[]", "{"):
        (tmp_path / "bad" / "board.json").write_text(content)
        said = refused(capsys, "serve", "--board", str(tmp_path / "bad"))
        assert f"board.json of {tmp_path / 'bad'}" in said
        assert "build it anew" in said


def test_help_lists_the_actions(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["leaderboard"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for action in ("build", "serve", "deploy", "verify"):
        assert action in out
