"""`orthossl leaderboard deploy` and `build`: nobody's work is replaced, and what stands in the way is named."""

import pytest
import yaml
from leaderboard_command import refused, run
from leaderboard_repos import files_of

from hf_orthossl.evaluation import read_results
from hf_orthossl.hub.leaderboard.board.build import build
from hf_orthossl.hub.leaderboard.claims.verify import Verification, verifications_json


def text_of(hub, repo_id, path, kind):
    return hub.store.read(hub.repo(repo_id, kind).head["main"].files[path]).decode()


def test_deploy_makes_a_space_and_updates_it(hub, capsys):
    for board in ("tester/board", "tester/other"):
        run(capsys, "build", "--push_to_hub", board)
    out = run(capsys, "deploy", "--space", "tester/page", "--board", "tester/board")
    assert "which shows tester/board" in out
    assert "secret" not in out
    assert '"tester/board"' in text_of(hub, "tester/page", "app.py", "space")
    assert text_of(hub, "tester/page", "requirements.txt", "space") == "hf-orthossl[leaderboard]\n"
    front = yaml.safe_load(text_of(hub, "tester/page", "README.md", "space").split("---")[1])
    # Unquoted, 3.10 would be 3.1.
    assert (front["sdk"], front["python_version"]) == ("gradio", "3.12")
    package = "hf-orthossl[leaderboard] @ git+https://example.org/orthossl@v1"
    run(capsys, "deploy", "--space", "tester/page", "--board", "tester/other", "--package", package)
    assert '"tester/other"' in text_of(hub, "tester/page", "app.py", "space")
    assert text_of(hub, "tester/page", "requirements.txt", "space") == f"{package}\n"


def test_deploy_needs_a_board_in_the_data_set(hub, capsys, tmp_path):
    hub.add_repo("tester/empty", {"README.md": "x"}, kind="dataset")
    run(capsys, "build", "--output_dir", "tester/local")
    for board in ("tester/nothing", "tester/empty", "tester/local"):
        said = refused(capsys, "deploy", "--space", "tester/page", "--board", board)
        assert f"run orthossl leaderboard build --push_to_hub {board} first" in said
    hub.add_repo("tester/broken", {"board.json": '{"format":2,"entries":3}'}, kind="dataset")
    assert "board.json of tester/broken" in refused(
        capsys, "deploy", "--space", "tester/page", "--board", "tester/broken"
    )
    assert hub.repo("tester/page", "space") is None


def test_deploy_says_that_a_private_board_needs_a_secret(hub, capsys):
    hub.add_repo("tester/board", {}, kind="dataset", private=True)
    run(capsys, "build", "--push_to_hub", "tester/board")
    out = run(capsys, "deploy", "--space", "tester/page", "--board", "tester/board")
    assert "tester/board is private: give the Space a secret HF_TOKEN" in out


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, True),
        ({"README.md": "---\nlicense: mit\n---\n"}, True),
        ({"README.md": "---\nlicense: mit\n---\nMy own words.\n"}, False),
        ({"app.py": "print('mine')"}, False),
        ({"README.md": "---\nlicense: mit\n---\n", "data.csv": "1"}, False),
    ],
)
def test_what_somebody_else_wrote_is_not_replaced(files, free, hub, capsys):
    run(capsys, "build", "--push_to_hub", "tester/board")
    there = {kind: hub.add_repo("tester/mine", files, kind=kind).head["main"] for kind in ("space", "dataset")}
    commands = {
        "space": ("deploy", "--space", "tester/mine", "--board", "tester/board"),
        "dataset": ("build", "--push_to_hub", "tester/mine"),
    }
    for kind, command in commands.items():
        if free:
            run(capsys, *command)
            run(capsys, *command)
        else:
            assert "choose another name" in refused(capsys, *command)
            assert hub.repo("tester/mine", kind).head["main"] is there[kind]


def test_a_rerun_withdrawn_from_the_data_set_is_gone(hub, board_encoders, tmp_path):
    claims = read_results(board_encoders[0] / "results.json")
    hub.add_repo("tester/sound", files_of(board_encoders[0], "tester/sound", claims))
    found = Verification(
        "tester/sound", hub.repo("tester/sound").head["main"].oid, None, "2026-01-02", "0.1", [], "bad"
    )
    hub.add_repo("tester/board", {"verified.json": verifications_json([found])}, kind="dataset")

    def spectra():
        # As a Space does every hour.
        board = build(tmp_path / "space", "tester/board").board
        return {entry.repo_id: entry.spectra for entry in board.entries}["tester/sound"]

    assert spectra() is None
    hub.change(hub.repo("tester/board", "dataset"), {"verified.json": verifications_json([])})
    assert spectra() is not None


@pytest.mark.parametrize("place", ["folder", "data set"])
def test_a_broken_list_of_reruns_is_named(place, hub, capsys, tmp_path):
    content = '{"format":2,"verified":[{}]}'
    if place == "folder":
        (tmp_path / "runs" / "leaderboard").mkdir(parents=True)
        (tmp_path / "runs" / "leaderboard" / "verified.json").write_text(content)
        said = refused(capsys, "build")
        assert "runs/leaderboard/verified.json is not a list" in said
    else:
        hub.add_repo("tester/board", {"verified.json": content}, kind="dataset")
        said = refused(capsys, "build", "--push_to_hub", "tester/board")
        assert "verified.json of the data set tester/board" in said
    assert "delete it, and verify those models anew" in said


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_in_the_way_is_named(folder, hub, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    hub.requests.clear()
    for command in (["build"], ["verify", "tester/encoder-0000"]):
        assert "file is a file: pass another --output_dir" in refused(capsys, *command, "--output_dir", folder)
    assert hub.requests == []
