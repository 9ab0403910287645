"""Run `orthossl compare` on tiny runs."""

import pytest
from tiny_comparison import TINY

from hf_orthossl.cli import main


@pytest.fixture
def run(capsys):
    """Run `orthossl compare` on tiny runs, and return what it printed."""

    def call(*arguments):
        main(["compare", *TINY, *map(str, arguments)])
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(capsys):
    """Run `orthossl compare` with bad input, and return the one line that it prints."""

    def call(*arguments):
        with pytest.raises(SystemExit) as raised:
            main(["compare", *TINY, *map(str, arguments)])
        assert raised.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("orthossl compare: error: ")
        return line

    return call
