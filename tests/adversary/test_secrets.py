"""Access tokens are looked for in every byte that runs of both fronts write and print, given in every way there is."""

import json
from pathlib import Path

import pytest
from attacks import command, ended, start

TOKENS = {"hf": "hf_adversaryAdversaryAdversary012345", "plain": "organizationsecret4242"}
LEAKED = TOKENS["hf"]
FRONTS = {"trainer": ["-m", "hf_orthossl", "pretrain"], "loop": ["scripts/pretrain.py"]}
SMALL = [
    *("--backbone_config", "channels=[8,8,16,16]", "--per_device_train_batch_size", "32", "--use_cpu"),
    *("--max_steps", "4", "--save_steps", "2", "--knn_images", "50", "--logging_steps", "1"),
    *("--report_to", "tensorboard"),
]


def written(*folders: Path) -> dict[str, bytes]:
    """Every byte below folders, and every name."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() + str(path).encode() for path in files}


def leaks(secret: str, texts: dict[str, bytes]) -> list[str]:
    return [name for name, text in texts.items() if secret.encode() in text]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("way", ["option", "equals", "variable", "file"])
def test_runs_that_push(front, kind, way, attacks, local_hub, tmp_path):
    secret, run, home = TOKENS[kind], tmp_path / "run", tmp_path / "home"
    local_hub.tokens[secret] = (local_hub.user, True)
    environment = local_hub.environment(home, token=secret if way == "variable" else None)
    given = {"option": ["--hub_token", secret], "equals": [f"--hub_token={secret}"], "variable": []}
    if way == "file":
        (tmp_path / "settings.yaml").write_text(f"hub_token: {secret}\n")
        given["file"] = ["--config", tmp_path / "settings.yaml"]
    argv = [*SMALL, "--output_dir", run, "--push_to_hub", "--hub_model_id", "tester/run", *given[way]]
    with attacks.attempt(f"{front}, {kind} token as {way}"):
        outcome = ended(start(*argv, program=FRONTS[front], **environment), 300)
        outcome.worked()
        said = {"output": (outcome.out + outcome.err).encode()}
        assert not leaks(secret, written(run, home) | local_hub.files("tester/run") | said)
    with attacks.attempt(f"{front}, {kind} token as {way}, a Hub that fails, and resumed"):
        local_hub.fail("POST .*/commit/", 500, times=50)
        more = [*argv, "--max_steps", "6", "--resume"]
        outcome = ended(start(*more, program=FRONTS[front], **environment), 300)
        local_hub.faults.clear()
        assert outcome.code in (0, 2), outcome.tail
        assert "Traceback" not in outcome.err, outcome.tail
        said = {"output": (outcome.out + outcome.err).encode()}
        assert not leaks(secret, written(run, home) | said)


def test_error_lines(attacks, tmp_path):
    address = f"https://user:{LEAKED}@127.0.0.1:1/images"
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps({"hub_token": [LEAKED]}))
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text(json.dumps({"hub_tokne": LEAKED}))
    for argv in (
        ["pretrain", "--hub_tokne", LEAKED],
        ["pretrain", f"--hub_tokne={LEAKED}"],
        ["pretrain", "--hub_token", LEAKED],
        ["pretrain", f"--hub_token={LEAKED}", "--max_steps", "none"],
        ["pretrain", LEAKED, "--use_cpu"],
        ["pretrain", "--config", settings],
        ["pretrain", "--config", unknown],
        ["pretrain", "--dataset", address],
        ["pretrain", "--dataset", f"hf://{LEAKED}@datasets/x"],
        ["pretrain", "--dataset", f"https://host/images.tar?token={LEAKED}"],
        ["pretrain", "--backbone", address],
        ["pretrain", "--push_to_hub", "--hub_token", LEAKED, "--hub_model_id", f"a/{LEAKED}"],
        ["evaluate", address],
        ["evaluate", "resnet10t", "--untrained", "--dataset", address],
        ["spectra", address],
        ["spectra", "resnet10t", "--untrained", "--dataset", address],
        ["forecast", "--dataset", address],
        ["forecast", "--token", LEAKED],
        ["publish", tmp_path, "--repo_id", "tester/x", "--token", LEAKED],
        ["publish", tmp_path, "--repo_id", LEAKED],
        ["publish", tmp_path, "--repo_id", address],
        ["leaderboard", "build", "--token", LEAKED],
        ["leaderboard", "build", f"--token={LEAKED}"],
        ["leaderboard", "serve", "--board", address],
        ["leaderboard", "verify", address],
        ["leaderboard", "deploy", "--token", LEAKED, "--space", "a/b", "--board", "a/c"],
    ):
        with attacks.attempt(" ".join(map(str, argv))):
            outcome = command(*argv)
            outcome.refused()
            assert LEAKED not in outcome.err + outcome.out, outcome.tail


@pytest.mark.parametrize("where", ["dead", "alive"])
def test_a_login_in_the_address_of_the_hub(where, attacks, local_hub, tmp_path):
    secret = "loginsecret4242"
    host = "127.0.0.1:1" if where == "dead" else local_hub.url.removeprefix("http://")
    environment = local_hub.environment(tmp_path / "home") | {"HF_ENDPOINT": f"http://user:{secret}@{host}"}
    board = tmp_path / "board"
    for argv in (
        ["leaderboard", "build", "--output_dir", board],
        ["leaderboard", "build", "--output_dir", board, "--push_to_hub", "tester/board"],
        ["leaderboard", "verify", "tester/none", "--output_dir", board],
        ["evaluate", "tester/none", "--task", "knn", "--output_dir", tmp_path / "results", "--push_to_hub"],
        ["pretrain", *SMALL, "--output_dir", tmp_path / "run", "--push_to_hub", "--hub_model_id", "tester/login"],
    ):
        with attacks.attempt(f"{where} Hub, {' '.join(map(str, argv[:2]))}"):
            outcome = ended(start(*argv, **environment), 300)
            assert outcome.code in (0, 2), outcome.tail
            assert "Traceback" not in outcome.err, outcome.tail
            said = {"output": (outcome.out + outcome.err).encode()}
            published = [local_hub.files(name) for kind, name in local_hub.store.repos if kind == "model"]
            assert not leaks(secret, written(tmp_path) | said)
            assert not any(leaks(secret, files) for files in published)


def test_files_with_a_token_are_not_published_and_the_token_is_not_shown(attacks, hub_here, tmp_path, monkeypatch):
    secret = TOKENS["plain"]
    hub_here.tokens[secret] = (hub_here.user, True)
    monkeypatch.setenv("HF_TOKEN", secret)
    run = tmp_path / "run"
    command("pretrain", *SMALL, "--output_dir", run, seconds=300).worked()
    encoder = run / "encoder"
    for name, change in {
        "README.md": lambda text: text + f"\nMy token is {secret}.\n",
        "config.json": lambda text: text.replace('"backbone":', f'"note": "{secret}", "backbone":', 1),
        "spectra.json": lambda text: text.replace('"notes": [', f'"notes": ["{secret}"', 1),
    }.items():
        before = (encoder / name).read_text()
        (encoder / name).write_text(change(before))
        with attacks.attempt(f"{name} with the token"):
            outcome = command("publish", run, "--repo_id", "tester/leak", "--license", "mit")
            if outcome.code == 2:
                outcome.refused(name, "token")
            assert secret not in outcome.err + outcome.out, outcome.tail
            assert hub_here.repo("tester/leak") is None or not leaks(secret, hub_here.files("tester/leak"))
        (encoder / name).write_text(before)
