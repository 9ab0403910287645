"""Tiny runs of both fronts, in this process or in one of their own that can be killed, and what they come to."""

import contextlib
import multiprocessing
import os
import shutil
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from hf_orthossl import OrthoSSLTrainer, OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.data import ImageDataset, get_recipe, load_source
from hf_orthossl.training import pretrain_loop
from hf_orthossl.training.callbacks.reporting import read_history

FRONTS = ("trainer", "loop")
KILLED = 137
# Target network, predictor and queue; stochastic depth, which draws from the global generator.
CONFIG = {
    "backbone": "resnet10t",
    "image_size": 32,
    "backbone_config": {"channels": [8, 8, 16, 16], "drop_path_rate": 0.2},
    "method": "nnbyol",
    "method_config": {"queue_size": 64, "hidden_dim": 32, "output_dim": 8},
    "regularizer": "srip",
    "gamma": 1e-3,
}


def tiny_model(**changes) -> SSLModel:
    torch.manual_seed(0)
    return SSLModel(SSLConfig(**CONFIG | changes))


def tiny_arguments(folder, **changes) -> OrthoSSLTrainingArguments:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,
        "logging_steps": 3,  # entries that span a checkpoint
        "save_steps": 2,
        "views": "digits",
        "use_cpu": True,
        "disable_tqdm": True,
        "spectra_steps": 0.5,
    }
    return OrthoSSLTrainingArguments(**settings | changes)


def digits(count: int = 84) -> ImageDataset:
    """With 84 digits and batches of 16 twice a step, an epoch is two whole steps and a shorter one."""
    return ImageDataset(load_source("digits"), views=get_recipe("digits"), image_size=32, indices=range(count))


def train(front: str, folder, model: SSLModel | None = None, **changes) -> SSLModel:
    """Trains a tiny model; `resume=True` goes on from the newest checkpoint."""
    model, args, dataset = model or tiny_model(), tiny_arguments(folder, **changes), digits()
    if front == "loop":
        return pretrain_loop(model, dataset, args)
    OrthoSSLTrainer(model=model, args=args, train_dataset=dataset).train()
    return model


def resume_from(step: int, front: str, source, folder, model: SSLModel, **changes) -> SSLModel:
    """Continues a run from a checkpoint of another folder, whose log goes on after it, as after a kill."""
    folder.mkdir()
    shutil.copytree(source / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(source / "history.jsonl", folder)
    torch.manual_seed(99)
    return train(front, folder, model, resume=True, **changes)


def history(folder) -> list[dict]:
    """The log entries of steps, without the summaries in which a Trainer tells its time."""
    lines = read_history(folder)
    return [line for line in lines if "learning_rate" in line]


def state(model: SSLModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


class Life:
    """A process that is forked, quickly, from one that has imported everything, and that may not live to the end."""

    def __init__(self, function, *args):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["survival_runs"])
        with pytest.MonkeyPatch.context() as patch:
            # Python 3.11's fork server does not pass its parent's path on to what it imports first.
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            forkserver.ensure_running()
        self.process = context.Process(target=_quietly, args=(function, *args), daemon=True)
        self.process.start()

    def end(self) -> int | None:
        self.process.join(timeout=240)
        return self.process.exitcode


def _quietly(function, *args) -> None:
    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        function(*args)


def train_until(front: str, folder: str, files: int | None, resume: bool) -> None:
    """Trains, and dies without a word before the `files`-th file of the run is opened, renamed or removed."""
    left = [files]

    def watch(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and folder in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os._exit(KILLED)

    if files is not None:
        sys.addaudithook(watch)
    train(front, folder, resume=resume)


def in_group(function, rank: int, processes: int, *args, **keywords):
    """Calls a function as accelerate has it in one of several processes on the CPU, which form a group already."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in own.items()} | {"OMP_NUM_THREADS": "1"}
    try:
        return function(*args, **keywords)
    finally:
        for name in own:
            del os.environ[name]
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
