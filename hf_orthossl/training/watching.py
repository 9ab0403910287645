"""Measuring a model while it trains, without training noticing."""

import logging
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn
from tqdm import tqdm

from ..distributed.collectives import all_reduce_max, rank
from ..distributed.sharding import gather_module, has_sharded_weights
from ..modeling import SSLModel
from .arguments import check_interval, is_due
from .reporting import ReportingCallback

logger = logging.getLogger(__name__)


class WatchingCallback(ReportingCallback):
    """Measures a module every so many steps while any `transformers.Trainer`, or a loop of one's own, trains it.

    Its scalars, under `<name>/`, go into the first log entry after each `every` steps and into the last one, on the
    main process. Training goes on exactly as it would without: no random number is drawn, and what cannot be measured
    is told and left out. Weights that FSDP2 shards are put together on the main process, one at a time, while it
    measures. Not for DeepSpeed ZeRO-3. Subclasses measure in `_measure`.

    Args:
        name (`str`): What its scalars begin with.
        every (`float`): Steps between two measurements, or a share of the run if below 1; 0 for none.
        module (`nn.Module`, *optional*): What to measure; by default the encoder of an [`SSLModel`], else the model.
        subject (`str`, *optional*): What messages call that which is measured; `name` by default.

    Raises:
        ValueError: `every` is out of range.
    """

    def __init__(self, name: str, every: float, module: nn.Module | None, subject: str | None = None):
        check_interval("every", every)
        self.name, self.every, self.module, self.subject = name, every, module, subject or name
        self.measured = 0
        self._watched: nn.Module | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.begin(model, state.log_history)

    def scalars(self, state, logs):
        return self.measure(state.global_step, state.max_steps)

    def begin(self, model: nn.Module, history: Iterable[Mapping] = ()) -> None:
        """Chooses what to measure; for a training loop of one's own, on all its processes.

        Args:
            model (`nn.Module`): What is trained, not its distributed wrapper.
            history (iterable of mappings, *optional*): Log entries with their `step`, of a run that is resumed.
        """
        own = (entry["step"] for entry in history if any(key.startswith(f"{self.name}/") for key in entry))
        self.measured = max(own, default=0)
        module = self.module or (model.encoder if isinstance(model, SSLModel) else model)
        sharded = has_sharded_weights(module)
        if sharded:
            # All take part when a measurement is due: they have to agree on when that is.
            self.measured = all_reduce_max(self.measured)
        self._watched = module if self.every and (sharded or rank() == 0) else None
        if self._watched is not None and any(hasattr(p, "ds_id") for p in module.parameters()):
            say(f"{self.name} cannot be measured: DeepSpeed ZeRO-3 keeps the weights in pieces")
            self._watched = None

    def measure(self, step: int, max_steps: int) -> dict[str, float]:
        """Scalars to log with the entry written after `step` steps; empty where none are due, or not this process's."""
        if self._watched is None or not is_due(step, self.measured, self.every, max_steps):
            return {}
        self.measured = step
        module = gather_module(self._watched, self._needed())
        if module is None:
            return {}
        devices = {parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"}
        try:
            # A DataLoader draws a seed each time it is read.
            with torch.random.fork_rng(devices=devices):
                found = self._measure(module, step)
        except Exception as error:
            # Watching must not end a run, be it for want of memory.
            say(f"{self.subject} at step {step} cannot be measured: {in_one_line(error)}")
            return {}
        return {f"{self.name}/{key}": value for key, value in found.items()}

    def _needed(self) -> Collection[str] | None:
        """Names of the parameters that `_measure` reads; by default all, `None`."""
        return None

    def _measure(self, module: nn.Module, step: int) -> dict[str, float]:
        """Scalars of the module as it is after `step` steps, without the name before them."""
        raise TypeError(f"{type(self).__name__} is abstract: use one of its subclasses")


def in_one_line(error: Exception) -> str:
    """The first line of an error's message, with its type where the message alone would say little."""
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, ValueError | RuntimeError) and text else f"{type(error).__name__}: {text}"


def say(message: str) -> None:
    """Logs a warning; progress bars step aside and are drawn again below."""
    with tqdm.external_write_mode():
        logger.warning(message)
