"""Text: every file is UTF-8, and printing never fails, whatever the terminal can show and whether anybody reads."""

import ast
import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_orthossl.cli import main
from hf_orthossl.files import replace_file
from hf_orthossl.options import read_config
from hf_orthossl.pretraining import pretrain as _  # noqa: F401  # its loggers must not be born in a test below
from hf_orthossl.terminal import progress_bar

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("hf_orthossl", "scripts") for path in (ROOT / folder).rglob("*.py"))
TERMINALS = [
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""},
    {"LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1"},
]
SMALL = "--backbone_config channels=[8,8,16,16] --per_device_train_batch_size 32 --use_cpu"
# `open` of these reads no text.
OTHER_OPEN = {"Image", "os", "entry", "archive"}


def without_encoding(tree):
    """Lines that read or write text, or the text of a process, without saying in which encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if name == "open" and owner not in OTHER_OPEN:
            constants = (one.value for one in (*call.args, *given.values()) if isinstance(one, ast.Constant))
            text = not any(isinstance(one, str) and set("b") < set(one) <= set("rwaxb+") for one in constants)
        else:
            text = name in ("read_text", "write_text") or {"text", "universal_newlines"} & set(given)
        if text and "encoding" not in given:
            yield call.lineno


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_every_text_has_an_encoding(path):
    assert list(without_encoding(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_the_rule_finds_what_it_should():
    bad = 'open("a")\nPath().open("w")\np.read_text()\np.write_text("x")\nrun(["git"], text=True)\n'
    assert list(without_encoding(ast.parse(bad))) == [1, 2, 3, 4, 5]
    good = 'open("a", "rb")\np.open("wb")\nImage.open("a")\np.write_text("x", encoding="utf-8")\n'
    assert list(without_encoding(ast.parse(good))) == []


def test_a_config_is_utf8_on_every_machine(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("\ufeffdataset: Bäume\n".encode())
    assert read_config(path) == {"dataset": "Bäume"}
    path.write_bytes("dataset: Bäume\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"recipe.yaml is not UTF-8 text: invalid continuation byte at byte 10"):
        read_config(path)


def test_names_of_files_that_are_not_text_can_be_written(tmp_path):
    written = replace_file(tmp_path / "a.md", os.fsdecode(b"photo\xff.png") + " γ")
    assert written.read_text(encoding="utf-8") == "photo\\udcff.png γ"


def command(argv, environment):
    code = f"from hf_orthossl.cli import main; main({argv!a})"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, timeout=60, cwd=ROOT
    )


@pytest.mark.parametrize("environment", TERMINALS, ids=["cp1252", "ascii", "C", "unbuffered"])
def test_every_terminal_can_show_help_and_errors(environment):
    done = command(["pretrain", "--help_all"], environment)
    assert done.returncode == 0
    assert b"--adam_beta1" in done.stdout
    assert done.stderr == b""
    done = command(["pretrain", "--gamma", "γ…×\udcff"], environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert b"Traceback" not in done.stderr


def test_characters_that_cannot_be_shown_become_plain_ones():
    code = "from hf_orthossl.terminal import keep_printing; keep_printing(); print('γ = 1 × 2…', '\\udcff', '画')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, cwd=ROOT)
    assert shown.stdout.split(b"\n")[0].strip() == b"gamma = 1 x 2... \\xff ?"


@pytest.fixture
def unread(monkeypatch):
    """Standard output and error are pipes that nobody reads."""
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, name, io.TextIOWrapper(os.fdopen(writer, "wb"), encoding="utf-8", line_buffering=True))


def test_a_closed_pipe_ends_nothing(unread, tmp_path):
    """A training goes on to its end: its lines are lost, its work is not."""
    main(
        [
            "pretrain",
            *SMALL.split(),
            "--max_steps",
            "2",
            "--knn_images",
            "0",
            "--logging_steps",
            "1",
            "--output_dir",
            str(tmp_path),
        ]
    )
    assert (tmp_path / "encoder" / "README.md").exists()
    assert (tmp_path / "checkpoint-2").is_dir()


@pytest.mark.parametrize("argv", [[], ["pretrain", "--help"], ["methods", "--json"], ["leaderboard"]])
def test_a_closed_pipe_ends_quietly(argv, unread):
    with contextlib.suppress(SystemExit):
        main(argv)
    sys.stdout.flush()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_run_on_a_terminal_without_greek(encoding, tmp_path, monkeypatch):
    with (tmp_path / "screen").open("wb") as screen:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding=encoding))
        main(
            [
                "pretrain",
                *SMALL.split(),
                "--max_steps",
                "1",
                "--knn_images",
                "100",
                "--output_dir",
                str(tmp_path / "run"),
            ]
        )
        sys.stdout.flush()
    assert "so, gamma = 1e-06" in (tmp_path / "screen").read_text(encoding=encoding)


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_shown_where_somebody_sees_them_move(terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    for shown in (True, False):
        assert list(progress_bar(range(3), "counting", shown)) == [0, 1, 2]
        assert ("counting" in capsys.readouterr().err) == (terminal and shown)
