"""`orthossl pretrain`: train an encoder on images, and save it in a folder that anyone can load."""

from typing import Any

from ..pretraining import Front, run_pretraining
from ..training import OrthoSSLTrainingArguments
from ..training.building import check_resumed, settled_model
from ..training.options import DataArguments, ModelArguments, TrainingOptions
from .publish import published

# The exit code of a run that stopped on collapse; its folder is complete.
STOPPED = 3


def main(
    data_args: DataArguments,
    model_args: ModelArguments,
    options: TrainingOptions,
    given: dict[str, Any],
    front: Front = "trainer",
) -> None:
    """Train, measure, and write the run folder, as [`~hf_orthossl.pretrain`] does.

    Args:
        data_args ([`DataArguments`]): What to train on.
        model_args ([`ModelArguments`]): What to train.
        options ([`TrainingOptions`]): How to train.
        given (`dict`): The options that the user set.
        front (`str`, defaults to "trainer"): "trainer", or "loop" for the accelerate loop of `scripts/pretrain.py`.

    Raises:
        SystemExit: With code 3, after everything is written, if `stop_on_collapse` ended the run.
    """
    args = OrthoSSLTrainingArguments(**vars(options))
    # The file of --config may set output_dir, so the run to resume is known only now.
    model_args = settled_model(model_args, args)
    check_resumed(data_args, model_args, args)
    run = run_pretraining(data_args, model_args, args, given, front=front)
    if run.publication is not None:
        print(published(run.publication))
    if run.stopped is not None:
        raise SystemExit(STOPPED)
