"""Runs `orthossl leaderboard` in a test: what it prints, or the one line of its refusal."""

import pytest

from hf_orthossl.cli import main


def run(capsys, *argv: str) -> str:
    main(["leaderboard", *argv])
    return capsys.readouterr().out


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["leaderboard", *argv])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("orthossl leaderboard: error: ")
    return error
