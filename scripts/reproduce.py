"""Does orthogonality help? The paper's comparison run again, as presets of `orthossl compare`.

    python scripts/reproduce.py --preset cpu --dataset path/to/cifar10      # hours on one core
    python scripts/reproduce.py --preset h200 --minutes 10                  # a piece of it; the same command goes on

A run that has ended is not repeated, one that was stopped continues from its checkpoint, and several processes started
with the same command share the runs out. Each experiment has its report in `<output_dir>/<preset>/<experiment>`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from reproduction.presets import PRESETS, Experiment

from hf_orthossl.cli import run
from hf_orthossl.comparison import ComparisonOptions, run_comparison
from hf_orthossl.terminal import keep_printing


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu", help="size of it all (default: cpu)")
    parser.add_argument("--experiments", nargs="+", metavar="NAME", help="byol, dino (default: both)")
    parser.add_argument(
        "--dataset", default="uoft-cs/cifar10", help="Hub id or folder of CIFAR-10 (default: the Hub's)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default: 3)")
    parser.add_argument("--epochs", type=float, help="of every run, instead of the preset's")
    parser.add_argument("--minutes", type=float, help="stop after so long, with a checkpoint (default: run to the end)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda for h200, else cpu")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/reproduction"), help="where runs and reports go")
    return parser


def main(argv: list[str]) -> None:
    """Do the runs that are left, and write the reports.

    Args:
        argv (`list[str]`): Arguments of the command line.

    Raises:
        ValueError: An option cannot be used, or a folder holds another comparison.
        OSError: The data cannot be read, or a file cannot be written.
    """
    args = make_parser().parse_args(argv)
    experiments = {experiment.name: experiment for experiment in PRESETS[args.preset]}
    if unknown := sorted(set(args.experiments or ()) - set(experiments)):
        raise ValueError(f"--experiments: {args.preset} has no {unknown[0]!r}, choose from {', '.join(experiments)}")
    for name in ("epochs", "minutes"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise ValueError(f"--{name} is {getattr(args, name):g}: it must be more than 0")
    device = args.device or ("cuda" if args.preset == "h200" else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is available here; use --device cpu")
    begun = time.monotonic()
    for name in args.experiments or experiments:
        # One whose turn comes too late says what is left of it.
        left = None if args.minutes is None else max(args.minutes - (time.monotonic() - begun) / 60, 1e-9)
        experiment = experiments[name]
        options = comparison_options(experiment, args.seeds, args.output_dir / args.preset / name, minutes=left)
        given = shared_options(experiment, args.dataset, device=device, epochs=args.epochs)
        run_comparison(options, given, arms=experiment.arms)


def comparison_options(
    experiment: Experiment, seeds: int, folder: Path, *, minutes: float | None = None
) -> ComparisonOptions:
    """Return the options of `orthossl compare` for an experiment."""
    return ComparisonOptions(
        arms=[arm.name for arm in experiment.arms],
        seeds=seeds,
        tuning_steps=experiment.tuning_epochs / experiment.epochs,
        test_split=experiment.test,
        max_minutes=minutes,
        output_dir=str(folder),
    )


def shared_options(experiment: Experiment, dataset: str, *, device: str, epochs: float | None = None) -> dict[str, Any]:
    """Return the options of `orthossl pretrain` that the runs of an experiment share."""
    own = {"num_train_epochs": epochs or experiment.epochs, "use_cpu": device == "cpu", "logging_steps": 0.02}
    return {"dataset": [dataset], "split": experiment.train} | experiment.options | own


if __name__ == "__main__":
    keep_printing()
    run("reproduce.py", main, sys.argv[1:])
