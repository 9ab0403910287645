"""Compare remedies against collapse: four studies on CIFAR-10 with a small vision transformer, as one report.

    python scripts/remedies.py --dataset path/to/cifar10 --minutes 30       # a piece of it; the same command goes on
    python scripts/remedies.py --report                                     # only the report, of the rows there are

`methods`: 13 methods × {none, SO, SRIP, SO decoupled, Muon}; `transfer`: does the best strength stay the same when
width, learning rate or optimizer change; `measures`: how well measures without labels rank the runs of `methods`;
`fused`: DINO with a fused qkv read as three matrices or as one.

A run that has ended is not repeated, one that was stopped continues from its checkpoint, and several processes with the
same command share the runs out. Rows and report go to `model_cards/remedies`.
"""

import argparse
import sys
from pathlib import Path

from remedy_studies.plan import PIECES, STUDIES, Size
from remedy_studies.report import write_report
from remedy_studies.rows import collect, read_rows, write_rows
from remedy_studies.running import run_all

from hf_orthossl.terminal import keep_printing

ROOT = Path(__file__).parents[1]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", metavar="NAME", help=f"{', '.join(PIECES)} (default: all)")
    parser.add_argument("--pieces", nargs="+", metavar="NAME", help="only these, such as dino (default: all)")
    parser.add_argument(
        "--dataset", default="uoft-cs/cifar10", help="Hub id or folder of CIFAR-10 (default: the Hub's)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm, from the seeds 0, 1, … (default: 3)")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of a run (default: 400)")
    parser.add_argument("--images", type=int, default=10_000, help="images to train on (default: 10,000)")
    parser.add_argument("--minutes", type=float, help="stop after so long, with a checkpoint (default: run to the end)")
    parser.add_argument("--report", action="store_true", help="only write the report, of the rows that are there")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/remedies"), help="where runs go")
    parser.add_argument(
        "--report_dir", type=Path, default=ROOT / "model_cards" / "remedies", help="where rows and report go"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Do the runs that are left, write rows and report, and return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in ("seeds", "steps", "images", "minutes"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f"--{name} is {getattr(args, name):g}: it must be more than 0")
    for given, known, option in ((args.studies, PIECES, "--studies"), (args.pieces, _piece_names(), "--pieces")):
        if unknown := sorted(set(given or ()) - set(known)):
            parser.error(f"{option}: {unknown[0]!r} is unknown, choose from {', '.join(known)}")
    chosen = [
        piece
        for study in args.studies or PIECES
        for piece in PIECES[study]
        if not args.pieces or piece.name in args.pieces
    ]

    def keep() -> None:
        # What another machine has measured stays, in a folder of rows without its runs.
        write_rows(args.report_dir, collect(args.output_dir, read_rows(args.report_dir)))

    try:
        ended = True
        if not args.report:
            size = Size(args.dataset, args.steps, args.images)
            ended = run_all(chosen, size, args.seeds, args.minutes, args.output_dir, keep)
        keep()
        print(f"report   {write_report(read_rows(args.report_dir), args.report_dir)}")
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"remedies.py: error: {error}", file=sys.stderr)
        return 2
    if not ended:
        print("stopped  runs are left: the same command goes on with them")
    return 0


def _piece_names() -> list[str]:
    return sorted({piece.name for study in STUDIES for piece in PIECES.get(study, ())})


if __name__ == "__main__":
    keep_printing()
    sys.exit(main())
