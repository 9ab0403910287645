"""Measure a model while it trains, without changing the training."""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ...distributed.collectives import all_reduce_max, rank
from ...distributed.sharding import gather_module, has_sharded_weights
from ...messages import first_line, warn_above_bars
from ...modeling import SSLModel
from ..intervals import check_interval, is_due
from .reporting import ReportingCallback

logger = logging.getLogger(__name__)


class MeasuringCallback(ReportingCallback):
    """Measure a module at regular intervals while a `transformers.Trainer`, or your own loop, trains it.

    The scalars, under `<name>/`, go into the first log entry after each `every` steps and into the last one, on the
    main process. Training is not affected: no random number is drawn, and a measurement that fails is skipped with
    a warning. Weights sharded by FSDP2 are gathered on the main process, one at a time, while it measures.
    DeepSpeed ZeRO-3 is not supported. Subclasses implement `_measure`.

    Args:
        name (`str`): Prefix of the scalars.
        every (`float`): Steps between two measurements, or a share of the run if below 1; 0 for none.
        module (`nn.Module`, *optional*): The module to measure; by default the encoder of an [`SSLModel`], else the
            whole model.
        subject (`str`, *optional*): Name of the measured quantity in warnings; `name` by default.

    Raises:
        ValueError: `every` is out of range.
    """

    def __init__(self, name: str, every: float, module: nn.Module | None, subject: str | None = None):
        check_interval("every", every)
        self.name, self.every, self.module, self.subject = name, every, module, subject or name
        self.measured = 0
        self._measured_module: nn.Module | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Choose what to measure."""
        super().on_train_begin(args, state, control, **kwargs)
        self.begin(model, state.log_history)

    def scalars(self, state, logs):
        """Return the measurements that are due."""
        return self.measure(state.global_step, state.max_steps)

    def begin(self, model: nn.Module, history: Iterable[Mapping[str, Any]] = ()) -> None:
        """Choose what to measure; in your own training loop, call it on all processes before the first step.

        Args:
            model (`nn.Module`): The model in training, not its distributed wrapper.
            history (iterable of mappings, *optional*): Log entries with their `step`, of a run that is resumed.
        """
        earlier = (entry["step"] for entry in history if any(key.startswith(f"{self.name}/") for key in entry))
        self.measured = max(earlier, default=0)
        module = self.module or (model.encoder if isinstance(model, SSLModel) else model)
        sharded = has_sharded_weights(module)
        if sharded:
            # All processes take part in a measurement, so they must agree on when one is due.
            self.measured = all_reduce_max(self.measured)
        self._measured_module = module if self.every and (sharded or rank() == 0) else None
        if self._measured_module is not None and any(hasattr(p, "ds_id") for p in module.parameters()):
            warn_above_bars(logger, f"{self.name} cannot be measured: DeepSpeed ZeRO-3 partitions the weights")
            self._measured_module = None

    def measure(self, step: int, max_steps: int) -> dict[str, float]:
        """Return the scalars to log after `step` optimizer steps.

        Returns:
            `dict[str, float]`: Empty if no measurement is due, and on all processes but the main one.
        """
        if self._measured_module is None or not is_due(step, self.measured, self.every, max_steps):
            return {}
        self.measured = step
        module = gather_module(self._measured_module, self._parameters_needed())
        if module is None:
            return {}
        devices = {parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"}
        try:
            # A DataLoader draws a seed each time it is read.
            with torch.random.fork_rng(devices=devices):
                scalars = self._measure(module, step)
        except Exception as error:
            # A failed measurement, even out of memory, must not end a run.
            warn_above_bars(logger, f"{self.subject} at step {step} cannot be measured: {error_text(error)}")
            return {}
        return {f"{self.name}/{key}": value for key, value in scalars.items()}

    def _parameters_needed(self) -> Collection[str] | None:
        """Return the names of the parameters that `_measure` reads, or `None` for all of them."""
        return None

    def _measure(self, module: nn.Module, step: int) -> dict[str, float]:
        """Return the scalars of the module after `step` steps, without the prefix."""
        raise TypeError(f"{type(self).__name__} is abstract: use one of its subclasses")


def error_text(error: Exception) -> str:
    """Return the first line of an error's message, preceded by its type unless the message is clear without it."""
    text = first_line(error)
    if isinstance(error, ValueError | RuntimeError) or not str(error).strip():
        return text
    return f"{type(error).__name__}: {text}"
