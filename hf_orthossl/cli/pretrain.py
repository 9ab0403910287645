"""`orthossl pretrain`: train an encoder on images, and save it in a folder that anyone can load."""

from pathlib import Path
from typing import Any

from ..pretraining import (
    OPTION_CLASSES,
    DataArguments,
    Front,
    ModelArguments,
    check_resumed,
    run_pretraining,
)
from ..training import OrthoSSLTrainingArguments
from .parsing import parse, scan
from .publish import published

DESCRIPTION = (
    "Train an encoder on unlabelled images with any self-supervised method and an orthogonality penalty. "
    "Without options it trains on scikit-learn's digits in a few minutes."
)


def main(argv: list[str], front: Front = "trainer", prog: str = "orthossl pretrain") -> None:
    """Train, measure, and write the run folder, as [`~hf_orthossl.pretrain`] does.

    Args:
        argv (`list[str]`): Command-line arguments.
        front (`str`, defaults to "trainer"): "trainer", or "loop" for the accelerate loop of `scripts/pretrain.py`.
        prog (`str`, defaults to "orthossl pretrain"): Name of the command in help and messages.
    """
    data_args, model_args, args, given = read_options(argv, prog)
    run = run_pretraining(data_args, model_args, args, given, front=front)
    if run.publication is not None:
        print(published(run.publication))


def read_options(
    argv: list[str], prog: str
) -> tuple[DataArguments, ModelArguments, OrthoSSLTrainingArguments, dict[str, Any]]:
    """Return the options and those that the user set; with `--resume`, the settings of the run are the defaults.

    Raises:
        ValueError: An option is unknown or cannot be used, or differs from the run to resume.
    """
    quick = scan(argv)
    saved = Path(quick.output_dir or OrthoSSLTrainingArguments.output_dir) / "config.yaml"
    base = saved if quick.resume and saved.is_file() else None
    (data_args, model_args, args), given = parse(prog, DESCRIPTION, list(OPTION_CLASSES), argv, base=base)
    # The file of --config may set output_dir, so the run to resume is known only now.
    check_resumed(data_args, model_args, args)
    return data_args, model_args, args, given
