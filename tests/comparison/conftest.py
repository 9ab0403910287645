"""Comparisons small enough for a test: digits, a narrow network, a few steps."""

import pytest

from hf_orthossl.cli import main

TINY = [
    *("--dataset", "digits", "--split", "train[:256]", "--test_split", "test[:64]", "--backbone", "resnet18_cifar"),
    *("--backbone_config", "channels=[4,4,8,8]", "--method_config", "hidden_dim=16", "output_dim=8"),
    *("--per_device_train_batch_size", "32", "--use_cpu"),
]


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
