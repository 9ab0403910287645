"""Options of `orthossl pretrain` and of `scripts/pretrain.py`."""

from pathlib import Path
from typing import Any

from ...training.inherited import refusal
from ...training.options import OPTION_CLASSES, DataArguments, ModelArguments, TrainingOptions, check_given
from ..parsing import parse, scan

DESCRIPTION = (
    "Train an encoder on unlabelled images with any self-supervised method and an orthogonality penalty. "
    "Without options it trains on scikit-learn's digits in a few minutes."
)


def read(
    argv: list[str], prog: str = "orthossl pretrain"
) -> tuple[DataArguments, ModelArguments, TrainingOptions, dict[str, Any]]:
    """Return the options and those that the user set; with `--resume`, the settings of the run are the defaults.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    quick = scan(argv)
    saved = Path(quick.output_dir or TrainingOptions.output_dir) / "config.yaml"
    base = saved if quick.resume and saved.is_file() else None
    (data, model, training), given = parse(prog, DESCRIPTION, list(OPTION_CLASSES), argv, base=base, refusal=refusal)
    check_given(given)
    flags = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    if training.max_steps > 0 and {"max_steps", "num_train_epochs"} <= flags:
        raise ValueError("max_steps and num_train_epochs exclude each other: pass one of them")
    return data, model, training, given
