"""All benchmarks one after the other, and one table of their targets and results."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from hf_orthossl.files import replace_file

from .measure import in_unit

SCRIPT = Path(__file__).parents[1] / "benchmark.py"
# They run in this order, with their own defaults, or with `--quick`, which checks that all of them run, with these.
QUICK = {
    "penalty": ["--repeats", "2"],
    "views": ["--repeats", "2"],
    "step": ["--repeats", "1", "--batch", "16"],
    "pretrain": ["--repeats", "1", "--steps", "4"],
    "spectra": ["--repeats", "1", "--images", "256"],
    "scaling": ["--repeats", "2", "--methods", "byol"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--quick", action="store_true", help="minutes instead of a quarter of an hour, less exact")
    # Each benchmark has its own default.
    parser.set_defaults(repeats=None)
    parser.add_argument("--dataset", default="digits", help="what pretrain trains on; its target is of CIFAR-10")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to this file")


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Run all benchmarks, print the table, and return the rows by benchmark.

    Raises:
        Failed: A benchmark failed; raised after the others have run, with their rows.
    """
    found, failed = {}, []
    for name in QUICK:
        print(f"\n{name}", flush=True)
        rows = _start(name, args)
        if rows is None:
            failed.append(name)
        else:
            found[name] = rows
    text = table(found, failed)
    print(f"\n{text}")
    if args.markdown:
        replace_file(args.markdown, text + "\n")
        print(f"\nwritten to {args.markdown}")
    if failed:
        raise Failed(found, failed)
    return found


class Failed(Exception):
    """Raised if some benchmarks failed.

    Args:
        rows (`dict[str, list[dict]]`): Rows of the other benchmarks.
        names (`list[str]`): The benchmarks that failed.
    """

    def __init__(self, rows: dict[str, list[dict]], names: list[str]):
        super().__init__(f"failed: {', '.join(names)}; what they said is above")
        self.rows = rows


def table(found: dict[str, list[dict]], failed: list[str]) -> str:
    """Return a Markdown table of the rows that have a target (see [`judged`]) and of the failed benchmarks."""
    lines = ["| what | target | measured | |", "| --- | --- | --- | --- |"]
    for rows in found.values():
        for row in rows:
            if "target" in row:
                target, measured = (in_unit(row[key], row["unit"]) for key in ("target", "measured"))
                verdict = "met" if row["met"] else "**MISSED**"
                lines.append(f"| {row['what']} | {row['bound']} {target} | {measured} | {verdict} |")
    lines += [f"| {name} | | | **FAILED** |" for name in failed]
    return "\n".join(lines)


def _start(name: str, args: argparse.Namespace) -> list[dict] | None:
    """Run one benchmark in a process of its own, so that it leaves no memory behind; return its rows, or None."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        options = ["--device", args.device, "--json", str(answer), *(QUICK[name] if args.quick else [])]
        if name == "pretrain":
            options += ["--dataset", args.dataset]
        if args.repeats:
            options += ["--repeats", str(args.repeats)]
        with subprocess.Popen(
            [sys.executable, str(SCRIPT), name, *options], stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
        ) as process:
            for line in process.stdout:
                if str(answer) not in line:
                    print(line, end="", flush=True)
        return json.loads(answer.read_text(encoding="utf-8"))[name] if process.returncode == 0 else None
