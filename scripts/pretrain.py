"""The accelerate loop: `accelerate launch scripts/pretrain.py …`, with the options of `orthossl pretrain`."""

import sys

from hf_orthossl.cli import run


def main(argv: list[str]) -> None:
    """Run the accelerate loop with these options."""
    from hf_orthossl.cli.pretrain import main as pretrain

    pretrain(argv, front="loop", prog="scripts/pretrain.py")


if __name__ == "__main__":
    run("scripts/pretrain.py", main, sys.argv[1:])
