"""The accelerate loop: `accelerate launch scripts/pretrain.py …`, with the options of `orthossl pretrain`."""

import sys

from hf_orthossl.cli import perform, run

NAME = "scripts/pretrain.py"

if __name__ == "__main__":
    run(NAME, lambda argv: perform("pretrain", argv, prog=NAME, front="loop"), sys.argv[1:])
