"""Try every backbone: each module of timm, each type of transformers that has a network for images.

    python scripts/sweep_backbones.py                                      # all, an hour on one core
    python scripts/sweep_backbones.py --only timm:swin* transformers:vit   # some
    python scripts/sweep_backbones.py --markdown docs/backbones.md         # the table of what is there, and the rest

Of a timm module the architecture with the fewest parameters is tried, of a type a tiny model, which is saved to a
folder. Checked are: loading at random and with weights, the representation of two images, the stages' rows and the
channels that the library itself states, the penalty in float64, which weights have none and why, two steps of SimCLR,
spectra, and the export where this package is missing. Each backbone has processes of its own, and one line of JSON in
`--output`; those that are there already are not tried again.
"""

import argparse
import json
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is built here, nothing is downloaded

from backbone_sweep.running import examine, versions
from backbone_sweep.subjects import Subject, all_subjects
from backbone_sweep.table import table
from tqdm import tqdm


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help='such as "timm:swin*" or transformers:vit')
    parser.add_argument("--output", type=Path, default=Path("runs/backbones.jsonl"), help="rows (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="try those anew that are not supported by their row")
    parser.add_argument("--seconds", type=float, default=300, help="for one backbone (default: 300)")
    parser.add_argument("--gigabytes", type=float, default=8, help="of memory for one backbone (default: 8)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table of all rows to this file too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Try what is left, print the table, and return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in ("seconds", "gigabytes"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} is {getattr(args, name):g}: it must be more than 0")
    subjects = all_subjects()
    for pattern in args.only or ():
        if not any(fnmatchcase(str(subject), pattern) for subject in subjects):
            parser.error(f"--only {pattern}: matches no backbone, as in timm:resnet or transformers:vit")
    if args.only:
        subjects = [subject for subject in subjects if any(fnmatchcase(str(subject), p) for p in args.only)]
    try:
        rows = sweep(subjects, args.output, args.seconds, args.gigabytes, args.again)
        text = table(rows)
        if args.markdown:
            from hf_orthossl.files import replace_file

            replace_file(args.markdown, heading() + text)
    except OSError as error:
        print(f"sweep_backbones.py: error: {error}", file=sys.stderr)
        return 2
    print(f"\n{text}")
    return 0


def sweep(
    subjects: list[Subject], output: Path, seconds: float, gigabytes: float, again: bool = False
) -> list[dict[str, Any]]:
    """Try the backbones that have no row of these releases yet, and return the rows of all that were named.

    Args:
        subjects (list of [`Subject`]): The backbones.
        output (`Path`): The file of rows, to which one is added as soon as its backbone is done.
        seconds (`float`): The time for one backbone.
        gigabytes (`float`): The memory for one backbone, in GiB.
        again (`bool`, defaults to `False`): Try those anew whose row says that they are not supported.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = _read(output)
    done = {key for key, row in rows.items() if not (again and row["status"] != "supported")}
    left = [subject for subject in subjects if str(subject) not in done]
    with output.open("a", encoding="utf-8") as file, tqdm(left, disable=None, unit="backbone") as bar:
        for subject in bar:
            bar.set_postfix_str(str(subject))
            row = rows[str(subject)] = examine(subject, seconds, gigabytes)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            bar.write(f"{row['status']:<10}{subject} ({row['seconds']:g} s)")
    return [rows[str(subject)] for subject in subjects if str(subject) in rows]


def _read(output: Path) -> dict[str, dict[str, Any]]:
    """Return the newest row of each backbone that was tried with these releases; a cut line is left out."""
    rows: dict[str, dict[str, Any]] = {}
    for line in output.read_text(encoding="utf-8").splitlines() if output.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:  # the sweep was stopped while it wrote
            continue
        if row["versions"] == versions():
            rows[f"{row['library']}:{row['name']}"] = row
    return rows


def heading() -> str:
    """Return the beginning of the published table."""
    releases = ", ".join(f"{library} {release}" for library, release in versions().items())
    return (
        "# Backbones\n\nWritten by `python scripts/sweep_backbones.py --markdown docs/backbones.md`, whose `--help` "
        f"says what is checked. Releases: {releases}.\n\n"
    )


if __name__ == "__main__":
    sys.exit(main())
