"""Begin a comparison, or go on with the one in a folder: its plan, and the checks before anything is run."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.fingerprint import difference
from ..files import replace_file
from ..messages import describe
from ..methods import get_method
from ..options import default_of
from ..training.choices import ADAM_SCALE, MUONS, rate_scale
from ..training.options import OPTION_CLASSES, ModelArguments
from ..training.settings import MOVABLE, PER_PROCESS, as_json
from .arms import Arm, parse_arms
from .images import ComparedImages
from .options import NOT_COMPARED, ComparisonOptions
from .plan import Plan
from .runs import Run

# What a folder says of its comparison, and the folder of an arm of that arm; any other is refused.
SETTINGS, ARM = "settings.json", "arm.json"
# Options that change no number: how each process reads images, and where the data set is.
FREE = {*PER_PROCESS, MOVABLE, *NOT_COMPARED}
FINGERPRINT = "fingerprint"


def make_plan(
    options: ComparisonOptions, given: Mapping[str, Any], images: ComparedImages, arms: Sequence[Arm] | None = None
) -> Plan:
    """Return the plan of a comparison.

    Args:
        options ([`ComparisonOptions`]): What is compared, and how.
        given (`dict`): The options that all runs share.
        images ([`ComparedImages`]): The images of the comparison.
        arms (sequence of [`Arm`], *optional*): What is compared; by default what the names in `options` say.

    Raises:
        ValueError: The options of the runs cannot be used, or strengths are to be chosen by labels that are not there.
    """
    root = Path(options.output_dir)
    shared = {name: value for name, value in given.items() if name != "output_dir"}
    if arms is None:
        first = parse_arms(options.arms, 1, options.strengths or {})[0]
        steps = Run(first, None, 0, shared, root / "runs").check(images)
        arms = parse_arms(options.arms, steps, options.strengths or {})
    else:
        steps = Run(arms[0], None, 0, shared, root / "runs").check(images)
    for given_option, part in (("regularizer_config", "regularizer"), ("embedding_config", "embedding_regularizer")):
        if shared.get(given_option) and not any(arm.options.get(part, "none") != "none" for arm in arms):
            raise ValueError(f"{given_option} is given, but no arm has a {part.replace('_', ' ')}: leave it out")
    check_learning_rate(arms, shared)
    labels = images.held_out is not None and images.held_out.label_column is not None
    choose_by = options.choose_by or ("knn" if labels else "effective_rank")
    if images.held_out is not None and choose_by == "knn" and not labels:
        raise ValueError("choose_by is knn, but the images have no labels: pass --choose_by effective_rank, or another")
    share = options.tuning_steps
    tuning = max(round(share * steps), 1) if share <= 1 else int(share)
    return Plan(arms, options.seeds, shared, {"max_steps": tuning} if share else {}, choose_by, root)


def check_learning_rate(arms: Sequence[Arm], shared: Mapping[str, Any]) -> None:
    """Refuse a learning rate of LARS or SGD for an arm whose optimizer has one on the scale of AdamW's.

    Raises:
        ValueError: With the arm, and what to pass.
    """
    rate = shared.get("learning_rate")
    optim = shared.get("optim") or get_method(shared.get("method", ModelArguments.method)).recipe.optim
    if rate is None or rate_scale(optim) == ADAM_SCALE:
        return
    for arm in arms:
        if arm.options.get("optim") in MUONS and arm.strength != "learning_rate":
            raise ValueError(
                f"arm {arm.name}: learning_rate is {rate:g}, which is for {optim}, and that of Muon is on the scale of "
                "AdamW's: leave it out, pass --optim adamw_torch for the other arms, or --strengths muon=1e-3"
            )


def begin(plan: Plan, images: ComparedImages) -> None:
    """Check the folder of a comparison and every arm that is new in it, and write down what is compared.

    Args:
        plan ([`Plan`]): The runs.
        images ([`ComparedImages`]): The images of the comparison.

    Raises:
        ValueError: The folder holds another comparison, or method, backbone or data do not allow an arm. Nothing has
            been written.
        OSError: The folder cannot be written.
    """
    held = plan.root / SETTINGS
    settings = _settings(plan, images)
    if held.is_file():
        _check_same(plan.root, json.loads(held.read_text(encoding="utf-8")), settings)
    elif plan.root.is_dir() and any(path.name != ".running" for path in plan.root.iterdir()):
        raise ValueError(
            f"output_dir {plan.root} holds files that are of no comparison: pass another --output_dir, or an empty one"
        )
    new = []
    for arm in plan.arms:
        path, about = plan.root / "runs" / arm.folder / ARM, _arm(plan, arm)
        if not path.is_file():
            new.append(arm)
        elif (before := json.loads(path.read_text(encoding="utf-8"))) != about:
            name = next(name for name in about if before.get(name) != about[name])
            raise ValueError(
                f"arm {arm.name} has {name} {describe(about[name])}, and the comparison in {plan.root} was started "
                f"with {describe(before.get(name))}: pass the same, or another --output_dir"
            )
    for arm in new:
        runs = plan.candidates(arm)[:1] or [Run(arm, None, 0, plan.options, plan.root / "runs")]
        for run in runs:
            run.check(images)
    _create(held, settings)
    # Another process may have begun another comparison in the same moment.
    _check_same(plan.root, json.loads(held.read_text(encoding="utf-8")), settings)
    for arm in new:
        _create(plan.root / "runs" / arm.folder / ARM, _arm(plan, arm))


def _arm(plan: Plan, arm: Arm) -> dict[str, Any]:
    return as_json({"name": arm.name, "options": arm.options, "strengths": list(arm.strengths)})


def _settings(plan: Plan, images: ComparedImages) -> dict[str, Any]:
    """Return what makes two comparisons the same, as JSON values."""
    own = {
        "images": images.train.num_rows,
        "test_split": None if images.test is None else images.test.split,
        "tuning_steps": plan.tuning.get("max_steps", 0),
        "choose_by": plan.choose_by if plan.choosing else None,
        FINGERPRINT: images.train.fingerprint,
    }
    return as_json({name: value for name, value in plan.options.items() if name not in FREE} | own)


def _check_same(root: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first difference between two comparisons, if there is one."""
    defaults = as_json({spec.name: default_of(spec) for kind in OPTION_CLASSES for spec in dataclasses.fields(kind)})
    for name in [*now, *before]:
        old, new = (one.get(name, defaults.get(name)) for one in (before, now))
        # Whether strengths are chosen depends on the arms too, which may be more than before.
        if old == new or (name == "choose_by" and None in (old, new)):
            continue
        if name == FINGERPRINT:
            raise ValueError(
                f"output_dir {root} holds a comparison of other images ({difference(old, new)}): pass the same data "
                "set, or another --output_dir"
            )
        raise ValueError(
            f"{name} is {describe(new)}, and the comparison in {root} was started with {describe(old)}: pass the same, "
            "or another --output_dir"
        )


def _create(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file unless it exists, even if another process writes it in the same moment."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    own = replace_file(path.with_name(f"{path.name}.{os.getpid()}"), json.dumps(content, indent=2) + "\n")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
    finally:
        own.unlink()
