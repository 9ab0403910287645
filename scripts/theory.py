"""Compare predictions of the linear theory (`hf_orthossl.landscape`) with training runs of this package.

    python scripts/theory.py training --output_dir theory      # linear encoders: eigenvalues, predicted and measured
    python scripts/theory.py ranking --dataset ../shared/data/cifar10 --output_dir theory    # small nonlinear encoders

Each sub-command is a module of `scripts/landscape_checks` with `add_arguments(parser)` and `run(args)`, which returns
rows and their table.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from landscape_checks import ranking, training

from hf_orthossl.files import replace_file
from hf_orthossl.terminal import keep_printing

CHECKS = {"training": training, "ranking": ranking}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, with a sub-command for each check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="check", required=True)
    for name, module in CHECKS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("--output_dir", type=Path, default=Path("runs/theory"), help="folder for the results")
        command.add_argument("--seed", type=int, default=0, help="seed of weights, batches and views")
        module.add_arguments(command)
    return parser


def main() -> None:
    """Run a check and write its rows as JSON and its table as Markdown."""
    args = make_parser().parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        rows, table = CHECKS[args.check].run(args)
        replace_file(args.output_dir / f"{args.check}.json", json.dumps(rows, indent=2) + "\n")
        replace_file(args.output_dir / f"{args.check}.md", table + "\n")
    except (ValueError, OSError, ArithmeticError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"\n{table}\n\nwritten to {args.output_dir}")


if __name__ == "__main__":
    keep_printing()
    main()
