"""Starting is cheap: the package and its help import nothing heavy."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import hf_orthossl
from hf_orthossl.cli import COMMANDS, main
from hf_orthossl.training.options import OPTION_CLASSES


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_importing_the_package_imports_no_library():
    loaded = run("import sys, hf_orthossl; print(*[m for m in ('torch', 'timm', 'transformers') if m in sys.modules])")
    assert loaded.strip() == ""


ANSWERED_AT_ONCE = [
    *([command, "--help"] for command in COMMANDS),
    *([command, "--bacbone", "x"] for command in COMMANDS if command != "leaderboard"),
    ["--help"],
    ["pretrain", "--help_all"],
    ["pretrain", "--max_steps", "many"],
    ["pretrain", "--optim", "larss"],
    ["pretrain", "--label_smoothing_factor", "0.1"],
    ["evaluate", "--task", "knm", "resnet18"],
    ["evaluate"],
    ["leaderboard", "verify", "--help"],
    ["leaderboard", "biuld"],
    ["publish", "runs/a"],
]


def test_help_and_typos_import_no_library():
    code = (
        "import sys; from hf_orthossl.cli import main\n"
        f"for argv in {ANSWERED_AT_ONCE!r}:\n"
        "    try: main(argv)\n"
        "    except SystemExit as stop: assert stop.code in (0, 2), argv\n"
        "    loaded = {'torch', 'timm', 'transformers', 'datasets', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "    assert not loaded, (argv, loaded)\n"
    )
    assert "--backbone NAME" in run(code)


def test_the_help_of_the_loop_imports_no_library():
    script = Path(__file__).parents[2] / "scripts" / "pretrain.py"
    code = (
        f"import runpy, sys; sys.argv = ['pretrain.py', '--help']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    assert run(code).startswith("usage: scripts/pretrain.py [options]")


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["pretrain --help", "pretrain --help_all", "evaluate --help", "forecast --help"])
def test_help_is_aligned_and_fits(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main(command.split())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not any(line.endswith(" ") for line in lines)
    # Descriptions begin in one column, also where they are wrapped or have a line of their own.
    rows = lines[lines.index("options") + 1 : -2]
    beside = {re.match(r"  \S.*?  +", row).end() for row in rows if re.match(r"  \S.*?  +\S", row)}
    below = {len(row) - len(row.lstrip()) for row in rows if row.startswith("    ")}
    assert len(beside | below) == 1


def test_help_of_pretrain_is_short(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    short = capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit):
        main(["pretrain", "--help_all"])
    everything = capsys.readouterr().out
    assert len(short) < 90
    names = [spec.name for kind in OPTION_CLASSES for spec in fields(kind)]
    assert all(f"  --{name}" in everything for name in names)
    headings = [line for line in short if line and not line.startswith(" ")]
    assert headings[-7:-1] == ["options", "data", "model", "training", "measuring and saving", "hub"]


def test_every_public_name_exists():
    assert all(getattr(hf_orthossl, name) is not None for name in hf_orthossl.__all__)
