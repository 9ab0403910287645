"""Callbacks for any `transformers.Trainer`: the orthogonality penalty, a progress bar, a history file."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from ..distributed.collectives import all_reduce_mean, rank, world_size
from ..files import replace_file
from ..methods import Progress
from ..regularization import OrthogonalityRegularizer
from .reporting import ReportingCallback

# Shown beside the progress bar, in this order; everything logged is in the history file.
SHOWN = ("loss", "ssl", "orthogonality", "embedding_std")


def bar_text(logs: dict[str, float]) -> str:
    """The loss parts of a log entry as the progress bar shows them."""
    return ", ".join(f"{name}={logs[name]:.4g}" for name in SHOWN if name in logs)


def append_history(folder: str | Path, entry: dict) -> None:
    """Adds one log entry to `<folder>/history.jsonl`."""
    path = Path(folder) / "history.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


class LossBar(ProgressCallback):
    """The Trainer's progress bar with the loss parts beside it instead of a line per log entry."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix_str(bar_text(logs))


def trim_history(folder: str | Path, step: int) -> list[dict]:
    """Drops the log entries after `step`, which a resumed run writes again, and returns the others."""
    path = Path(folder) / "history.jsonl"
    if not path.exists():
        return []
    entries = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [entry for entry in entries if entry["step"] <= step]
    replace_file(path, "".join(json.dumps(entry) + "\n" for entry in kept), durable=True)
    return kept


class HistoryCallback(TrainerCallback):
    """Writes every log entry to `<output_dir>/history.jsonl`, one JSON object a line."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            trim_history(args.output_dir, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            append_history(args.output_dir, {"step": state.global_step, **logs})


class OrthogonalityCallback(ReportingCallback):
    """Adds γ·Σ OR(W) to the training of any plain `transformers.Trainer`, without subclassing it.

    The penalty's gradient is put in place before the first backward pass of each optimizer step, so it counts once
    whatever the gradient accumulation, is clipped with the rest and scaled as fp16 needs. Its value, γ applied, is
    logged as `orthogonality` to whatever `report_to` names, as a mean over the steps that computed it. Not for
    DeepSpeed, which keeps gradients to itself.

    On several processes the training is the same: under FSDP2 each gets the gradient of its own entries, under DDP each
    computes all of it, or, with `ddp_find_unused_parameters=False`, a share of the matrices.

    ```python
    Trainer(model, args, train_dataset=ds, callbacks=[OrthogonalityCallback(kind="so", gamma=1e-6)]).train()
    ```

    Args:
        kind (`str`, defaults to "so"): The name of a penalty, see `PENALTIES`.
        gamma (`float`, defaults to 1e-6): Weight γ ≥ 0.
        module (`nn.Module`, *optional*): The part to regularize, such as `model.vit`; all of the model by default.
        seed (`int`, defaults to 0): Seed of the random vectors of SRIP and sketched SO.
        every (`int`, defaults to 1): The penalty is computed at every so many optimizer steps, the first among them,
            and its gradient multiplied by as many, as `penalty_every` of [`SSLConfig`].
        kwargs: Further arguments of [`OrthogonalityRegularizer`], such as `include` and `exclude`.

    Raises:
        ValueError: γ < 0, `every` < 1, or what [`OrthogonalityRegularizer`] refuses.
    """

    def __init__(
        self,
        kind: str = "so",
        gamma: float = 1e-6,
        module: nn.Module | None = None,
        seed: int = 0,
        every: int = 1,
        **kwargs,
    ):
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}: the penalty's weight must be 0 or more, as in 1e-6")
        if every < 1 or every != int(every):
            raise ValueError(f"every is {every}: the penalty is computed at every 1, 2, 3, … steps")
        self.kind, self.gamma, self.given, self.seed, self.kwargs = kind, gamma, module, seed, kwargs
        self.every = every
        self.regularizer: OrthogonalityRegularizer | None = None
        self.sum, self.count = torch.zeros(()), 0
        self.processes = 1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        # Anew for every training: the next may be of another model.
        self.module = model if self.given is None else self.given
        self.regularizer = OrthogonalityRegularizer(self.module, self.kind, **self.kwargs)
        # Where parameters may go unused, DDP leaves their gradients as each process has them: these must be whole.
        averages_all = args.ddp_find_unused_parameters is False and not args.ddp_static_graph
        self.processes = world_size() if averages_all else 1

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step % self.every:
            return
        generator = Progress(step=state.global_step, seed=self.seed).generator(next(self.module.parameters()).device)
        # fp16 gradients are scaled until the optimizer, or clipping, unscales them all.
        scaler = getattr(optimizer, "scaler", None)
        weight = self.gamma * self.every * (scaler.get_scale() if scaler is not None else 1.0)
        process = rank() if self.processes > 1 else 0
        value = self.regularizer.add_gradients(weight, generator, process=process, processes=self.processes)
        self.sum, self.count = self.sum.to(value.device) + self.gamma * value, self.count + 1

    def scalars(self, state, logs):
        if not self.count or "loss" not in logs:
            return {}
        mean = self.sum / self.count
        self.sum, self.count = torch.zeros(()), 0
        return {"orthogonality": (all_reduce_mean(mean) if self.processes > 1 else mean).item()}
