"""One of the processes that `scripts/benchmark.py scaling` starts with torchrun."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import measure
from hf_orthossl import OrthoSSLTrainingArguments, SSLConfig, SSLModel
from hf_orthossl.methods import Progress
from hf_orthossl.regularization import get_penalty
from hf_orthossl.training.engines import engine_settings, prepare_model
from hf_orthossl.training.optimizers import build_optimizer


class Training:
    """A model with optimizer, accelerator and random views: all that an optimizer step needs."""

    def __init__(self, method: str, regularizer: str | None, args: Namespace):
        torch.manual_seed(0)
        settings = OrthoSSLTrainingArguments(use_cpu=args.device == "cpu", output_dir="unused")
        config = SSLConfig(
            backbone=args.backbone, image_size=args.image_size, method=method, regularizer=regularizer, gamma=1e-6
        )
        self.model = SSLModel(config)
        settings = settings.with_recipe(self.model.method.recipe)
        self.accelerator = Accelerator(**engine_settings(settings))
        prepare_model(self.model, self.accelerator, settings)
        optimizer = build_optimizer(self.model, settings)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        shape = (args.batch, 3, args.image_size, args.image_size)
        self.views = [torch.randn(shape, device=self.accelerator.device) for _ in range(2)]

    def step(self, model: torch.nn.Module, penalty_weight: float = 1.0) -> None:
        """Take one optimizer step through `model`, either the bare model or its DDP wrapper."""
        self.model.begin_step(Progress(0, 100, 100))
        self.accelerator.backward(model(self.views, penalty_weight=penalty_weight).loss)
        self.model.before_optimizer_step()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.end_step()

    def penalty(self, processes: int) -> None:
        """Compute value and gradient of this process's share of the penalty among `processes`."""
        regularizer, generator = self.model.regularizer, self.model.method.progress.generator(self.model.device)
        process = dist.get_rank() if processes > 1 else 0
        regularizer(generator, process=process, processes=processes).backward()

    def whole_penalty_step(self) -> None:
        """Take a step in which every process computes the whole penalty."""
        self.model.shared_penalty = self.model.penalty
        try:
            self.step(self.wrapped)
        finally:
            del self.model.shared_penalty


def time_steps(args: Namespace) -> list[dict]:
    """Return a row without penalty, and one for each penalty, whole and divided among the processes."""
    processes, rows = dist.get_world_size(), []
    for kind in args.regularizers:
        training = Training(args.method, kind, args)
        contenders = {
            "none": partial(training.step, training.wrapped, penalty_weight=0.0),
            "whole": training.whole_penalty_step,
            "shared": partial(training.step, training.wrapped),
            "whole alone": partial(training.penalty, 1),
            "shared alone": partial(training.penalty, processes),
        }
        parameters = [matrix for matrix in training.model.regularizer.matrices if matrix.index == 0]
        # A round ends when the last process has finished.
        times = measure({name: _together(call) for name, call in contenders.items()}, args.device, args.repeats)
        for sharing in ("none", "whole", "shared"):
            if sharing == "none" and rows:
                continue
            step, alone = times[sharing], times.get(f"{sharing} alone")
            rows.append(
                {
                    "processes": processes,
                    "method": args.method,
                    "backbone": args.backbone,
                    "batch": args.batch,
                    "penalty": None if alone is None else kind,
                    "sharing": None if alone is None else sharing,
                    "step": step,
                    "images_per_second": 1e3 * processes * args.batch / step["median_ms"],
                    "penalty_alone": alone,
                    "penalty_share": alone and alone["median_ms"] / step["median_ms"],
                    "matrix_costs": [get_penalty(kind)().cost(matrix.shape) * matrix.count for matrix in parameters],
                }
            )
    return rows


def count_traffic(args: Namespace) -> list[dict]:
    """Return the bytes that a step of each method communicates: gradients, gathers and sums."""
    rows = []
    for method in args.methods:
        training = Training(method, None, args)
        # The bare model sends no gradients: the rest belongs to method and batch norm.
        training.step(training.model)
        with _Traffic() as traffic:
            training.step(training.model)
        trained = [p for p in training.model.parameters() if p.requires_grad]
        rows.append(
            {
                "method": method,
                "gradient_bytes": sum(p.numel() * p.element_size() for p in trained),
                "gathered_bytes": sum(traffic.gathered),
                "reduced_bytes": sum(traffic.reduced),
                "collectives": len(traffic.gathered) + len(traffic.reduced),
                "batchnorm_collectives": _of_batchnorm(training),
            }
        )
    return rows


class _Traffic(TorchDispatchMode):
    """Record the bytes of each collective: all of an all-reduce, one process's part of a gather or scatter."""

    def __init__(self):
        super().__init__()
        self.gathered: list[int] = []
        self.reduced: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name.startswith("c10d::"):
            # The output is the first argument: the whole for a gather, one part for a reduction or scatter.
            part = args[1] if "allgather" in name else args[0]
            tensors = [part] if isinstance(part, Tensor) else part
            kind = self.reduced if "allreduce" in name else self.gathered
            kind.append(sum(t.numel() * t.element_size() for t in tensors))
        return function(*args, **(kwargs or {}))


def _of_batchnorm(training: Training) -> int:
    """Return the number of collectives of batch norm in a step: forward and backward passes of two views."""
    with _Traffic() as traffic:
        training.model.encoder(training.views[0]).sum().backward()
    training.optimizer.zero_grad()
    return 2 * (len(traffic.gathered) + len(traffic.reduced))


def _together(call: Callable[[], None]) -> Callable[[], None]:
    def synchronized() -> None:
        call()
        dist.barrier()

    return synchronized


if __name__ == "__main__":
    work, settings, answer = sys.argv[1:]
    args = Namespace(**json.loads(settings))
    PartialState(cpu=args.device == "cpu")
    rows = {"step": time_steps, "traffic": count_traffic}[work](args)
    if dist.get_rank() == 0:
        Path(answer).write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()
