"""Benchmark hf_orthossl side by side with what a user would run instead.

    python scripts/benchmark.py penalty --json penalty.json

Each sub-command is a module of `scripts/benchmarks` with `add_arguments(parser)` and `run(args) -> list of rows`;
`all` runs those of the README and collects all results that have a target in one table.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from benchmarks import (
    approximations,
    costs,
    distillation,
    embed,
    everything,
    masking,
    methods,
    penalty,
    pretrain,
    scaling,
    spectra,
    step,
    updates,
    views,
)
from benchmarks.measure import machine

from hf_orthossl.files import replace_file
from hf_orthossl.terminal import keep_printing

BENCHMARKS = {
    "penalty": penalty,
    "updates": updates,
    "approximations": approximations,
    "views": views,
    "step": step,
    "masking": masking,
    "pretrain": pretrain,
    "methods": methods,
    "distillation": distillation,
    "costs": costs,
    "spectra": spectra,
    "embed": embed,
    "scaling": scaling,
    "all": everything,
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, with a sub-command for each benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
        command.add_argument("--repeats", type=int, default=15, help="timed rounds, one call of each per round")
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
        module.add_arguments(command)
    return parser


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = make_parser()
    args = parser.parse_args()
    if args.repeats is not None and args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available here; use --device cpu")
    try:
        print(machine(args.device), flush=True)
        failed = None
        try:
            rows = BENCHMARKS[args.benchmark].run(args)
        except everything.Failed as error:
            rows, failed = error.rows, error
        if args.json:
            # With `all`, one report that has the rows of each benchmark under its name.
            named = rows if isinstance(rows, dict) else {args.benchmark: rows}
            replace_file(args.json, json.dumps({"machine": machine(args.device), **named}, indent=2) + "\n")
            print(f"written to {args.json}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if failed:
        print(failed, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    keep_printing()
    main()
