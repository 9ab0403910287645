"""Does orthogonality help? The paper's comparison run again: arms × seeds, probes, spectra, one report.

    python scripts/reproduce.py --preset cpu --dataset path/to/cifar10      # hours on one core
    python scripts/reproduce.py --preset h200 --minutes 10                  # a piece of it; the same command goes on

A run that has ended is not repeated, one that was stopped continues from its checkpoint. The report goes to
`model_cards/reproduction/<preset>`.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch
from reproduction.plan import Plan
from reproduction.presets import PRESETS
from reproduction.report import write_report

from hf_orthossl.terminal import keep_printing

ROOT = Path(__file__).parents[1]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu", help="size of it all (default: cpu)")
    parser.add_argument("--experiments", nargs="+", metavar="NAME", help="byol, dino (default: both)")
    parser.add_argument(
        "--dataset", default="uoft-cs/cifar10", help="Hub id or folder of CIFAR-10 (default: the Hub's)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run of each arm (default: 0 1 2)")
    parser.add_argument("--epochs", type=float, help="of every run, instead of the preset's")
    parser.add_argument("--minutes", type=float, help="stop after so long, with a checkpoint (default: run to the end)")
    parser.add_argument("--report", action="store_true", help="only write the report, of the runs that have ended")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda for h200, else cpu")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/reproduction"), help="where runs go")
    parser.add_argument(
        "--report_dir",
        type=Path,
        help="where the report goes (default: model_cards/reproduction; with --epochs, output_dir)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Do the runs that are left, write the report, and return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    experiments = PRESETS[args.preset]
    names = [experiment.name for experiment in experiments]
    if unknown := sorted(set(args.experiments or ()) - set(names)):
        parser.error(f"--experiments: {args.preset} has no {unknown[0]!r}, choose from {', '.join(names)}")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds {' '.join(map(str, args.seeds))}: each may be given once")
    for name in ("epochs", "minutes"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f"--{name} is {getattr(args, name):g}: it must be more than 0")
    args.device = args.device or ("cuda" if args.preset == "h200" else "cpu")
    if args.device == "cuda" and not args.report and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available here; use --device cpu")
    plans = [
        Plan(e, args.dataset, args.output_dir / args.preset / e.name, args.seeds, args.epochs, args.device)
        for e in experiments
        if e.name in (args.experiments or names)
    ]
    try:
        if not args.report and not run_all(plans, args.minutes):
            print(f"stopped: {sum(plan.left() for plan in plans)} runs are left, the same command goes on with them")
            return 0
        # A trial leaves the published report alone.
        folder = args.report_dir or (args.output_dir if args.epochs else ROOT / "model_cards" / "reproduction")
        print(f"report   {write_report(plans, folder / args.preset)}")
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def run_all(plans: list[Plan], minutes: float | None) -> bool:
    """Train and measure the runs that are left, all arms of a seed before the next; return `False` if time ran out."""
    if minutes:
        # Training answers SIGTERM with a checkpoint; what is being measured is measured anew.
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
        # Again every second: an exception in a place that ignores exceptions, such as a finalizer, stops nothing.
        signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 1)
    try:
        for plan in plans:
            plan.tune()
            for run in plan.runs():
                run.train()
                run.measure()
    except SystemExit as error:
        if minutes and error.code == 128 + signal.SIGTERM:
            return False
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def _leave(number: int, frame) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    keep_printing()
    sys.exit(main())
