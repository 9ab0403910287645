"""Compare arms: open the data, check every arm, do the runs, and write what was found."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import load_source
from ..distributed.environment import is_multi_process
from ..distributed.progress import here
from ..files import require_writable
from ..options import convert, forms
from ..pretraining import IN_MEMORY
from ..training.options import OPTION_CLASSES, DataArguments
from .arms import SYMBOLS, Arm, parse_arms
from .beginning import begin, make_plan
from .figures import draw_figures
from .images import ComparedImages, open_images
from .options import ComparisonOptions, check_taken
from .plan import Plan
from .record import COMPARISON, comparison_record, write_record
from .report import REPORT, write_report
from .runs import Run, UntrainedRun
from .work import work


@dataclass(frozen=True)
class Comparison:
    """A comparison: its folder and what is in it.

    Args:
        output_dir (`Path`): The folder, as `orthossl compare` or [`compare`] leaves it.
    """

    output_dir: Path

    @property
    def report(self) -> Path:
        """Return the page with tables, verdicts and figures."""
        return self.output_dir / REPORT

    @property
    def record(self) -> dict[str, Any]:
        """Return `comparison.json`: every run with the settings that ran, the choice of strengths, and what is left."""
        return json.loads((self.output_dir / COMPARISON).read_text(encoding="utf-8"))


def compare(data: Any = "digits", arms: Sequence[str] = ("none", "so"), **options: Any) -> Comparison:
    """Compare ways to prevent collapse: the same runs with other penalties, optimizers or regularizers.

    Args:
        data (`str`, `PathLike`, a list of them, or a data set, defaults to "digits"): As for [`pretrain`].
        arms (sequence of `str`, defaults to ("none", "so")): What is compared: parts such as "so", "so:decoupled",
            "so:auto", "muon", "orthogonal", "sigreg" or "whitening", joined by "+". The others are compared with the
            first.
        options: The options of `orthossl compare`, by the same names: `seeds`, `strengths`, `max_minutes`, `backbone`,
            `method`, `max_steps`, `output_dir`, … Those that end in `_config`, and `strengths`, are dictionaries.

    Returns:
        [`Comparison`]: The folder, with its report.

    Raises:
        ValueError: An arm or option is unknown or cannot be used, or `output_dir` holds another comparison.
        OSError: The data cannot be read, or the folder cannot be written.

    Example:
        ```python
        from hf_orthossl import compare

        found = compare("digits", ["none", "so", "so:decoupled"], seeds=2, max_steps=60, output_dir="runs/c")
        found.report, found.record["runs"]
        ```
    """
    check_taken(options)
    known = {name: form for kind in (*OPTION_CLASSES, ComparisonOptions) for name, form in forms(kind).items()}
    given = {name: convert(name, value, known[name]) for name, value in options.items()}
    own = {spec.name for spec in dataclasses.fields(ComparisonOptions)}
    paths = [data] if isinstance(data, str | os.PathLike) else data
    in_memory = not (isinstance(paths, list | tuple) and all(isinstance(path, str | os.PathLike) for path in paths))
    given["dataset"] = [IN_MEMORY] if in_memory else [os.fspath(path) for path in paths]
    chosen = ComparisonOptions(
        arms=[arms] if isinstance(arms, str) else list(arms), **{k: v for k, v in given.items() if k in own}
    )
    return run_comparison(chosen, {k: v for k, v in given.items() if k not in own}, data=data if in_memory else None)


def run_comparison(
    options: ComparisonOptions,
    given: Mapping[str, Any],
    *,
    arms: Sequence[Arm] | None = None,
    data: Any = None,
) -> Comparison:
    """Do the runs of a comparison that are left, and write its report after each.

    Args:
        options ([`ComparisonOptions`]): What is compared, and how.
        given (`dict`): The options of `orthossl pretrain` that all runs share, as far as they are given.
        arms (sequence of [`Arm`], *optional*): What is compared; by default what the names in `options` say.
        data (`Any`, *optional*): A data set in memory, which replaces the one in `given`.

    Raises:
        ValueError: An arm or option cannot be used, or the folder holds another comparison. Nothing has been run.
        OSError: The data cannot be read, or a file cannot be written.
        Interrupted: A signal ended the run in progress, with a checkpoint.
    """
    if is_multi_process():
        raise ValueError(
            "a comparison trains each run in one process: start the same command several times instead of a launcher, "
            "and the processes share the runs out"
        )
    root = Path(options.output_dir)
    # Typing errors are told before the data are opened; only the candidates depend on the number of steps.
    named = parse_arms(options.arms, 1, options.strengths or {}) if arms is None else arms
    choosing = bool(options.tuning_steps) and any(len(arm.strengths) > 1 for arm in named)
    require_writable(root, [COMPARISON])
    data_args = DataArguments(**{name: value for name, value in given.items() if name in forms(DataArguments)})
    source = None if data is None else load_source(data, split=data_args.split, **data_args.reading())
    images = open_images(data_args, options.images, options.test_split, tuning=choosing, source=source)
    plan = make_plan(options, given, images, arms)
    begin(plan, images)
    print(describe_plan(plan, images), flush=True)

    def done(run: Run | UntrainedRun) -> None:
        print(describe_run(run), flush=True)
        write_all(plan, images)

    with _resumed_by_the_same_command():
        ended = work(plan, images, options.max_minutes, done)
    page = write_all(plan, images, figures=True)
    if not ended:
        print(
            f"stopped  {plan.left()} of {len(plan.arms) * plan.seeds} runs are left: the same command goes on with them"
        )
    if page is not None:
        print(f"report   {page}")
    return Comparison(root)


def write_all(plan: Plan, images: ComparedImages, *, figures: bool = False) -> Path | None:
    """Write `comparison.json` and the page of the runs that have ended; figures too if asked, or if a seed is complete.

    Returns:
        `Path`: The page; `None` if no run that counts has ended yet.
    """
    record = comparison_record(plan, images)
    write_record(plan.root, record)
    finals = plan.finals()
    if finals and (figures or len(finals) % len(plan.arms) == 0):
        draw_figures(record, {run.arm.name: run.spectra for run in reversed(finals)}, plan.root)
    return write_report(record, plan.root) if finals else None


@contextlib.contextmanager
def _resumed_by_the_same_command() -> Iterator[None]:
    """Say in the lines of a run that is stopped how a comparison goes on."""
    before, here.resumed = here.resumed, "with the same options"
    try:
        yield
    finally:
        here.resumed = before


def describe_plan(plan: Plan, images: ComparedImages) -> str:
    """Return lines that say what was taken of the data, and what will be run."""
    others = [] if images.test is None else [images.test]
    measures = "kNN, linear probe and label-free measures" if images.labelled else "label-free measures"
    lines = [
        f"data     {images.train.describe(*others, use=' to measure with')}",
        f"measured {measures} on split {images.measured.split} of {images.measured.num_rows:,} images",
    ]
    if plan.choosing:
        assert images.held_out is not None
        lines.append(
            f"choice   of strengths by {plan.choose_by} on {images.held_out.num_rows:,} held-out training images, "
            f"{len(plan.all_candidates())} runs of {plan.tuning['max_steps']} steps; the test split is not used"
        )
    names = ", ".join(arm.name for arm in plan.arms)
    lines.append(f"runs     {len(plan.arms)} arms ({names}) × {plan.seeds} seeds, {plan.left()} left")
    return "\n".join(lines)


def describe_run(run: Run | UntrainedRun) -> str:
    """Return a line that says what a run came to."""
    row = run.row
    strength = row.get("strength")
    symbol = SYMBOLS[run.arm.strength] if isinstance(run, Run) and run.arm.strength else ""
    name = row["arm"] if strength is None else f"{row['arm']} {symbol}={strength:g}"
    if isinstance(run, Run) and run.choose_by:
        measures = {run.choose_by: row.get("score")}
    else:
        measures = {"kNN": row.get("knn"), "linear": row.get("linear")}
        measures["effective rank"] = row.get("representation", {}).get("effective_rank")
    found = "  ".join(f"{measure} {value:.4g}" for measure, value in measures.items() if value is not None)
    turn = "tuning  " if isinstance(run, Run) and run.choose_by else f"seed {row['seed']:<3}"
    return f"{turn} {name:<24} {row.get('failed') or found}"
