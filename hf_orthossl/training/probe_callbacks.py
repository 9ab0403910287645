"""kNN and linear probes while an encoder trains: what its representations tell of labels that training never sees."""

import logging
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..evaluation import Features, KNNMonitor, knn_accuracy, lbfgs_probe
from ..modeling import SSLModel
from ..spectra.layers import evaluation_mode
from .arguments import OrthoSSLTrainingArguments, check_interval, is_due
from .reporting import ReportingCallback

logger = logging.getLogger(__name__)


class ProbeCallback(ReportingCallback):
    """Probes an encoder on labelled images while any `transformers.Trainer` trains it, and logs the accuracy.

    Use [`KNNCallback`] or [`LinearProbeCallback`]. The scalars are `top1` and `top5`, in [0, 1], under the probe's own
    prefix, in the first log entry after each `every` steps and in the last one, measured on the main process. Training
    goes on exactly as it would without: no gradient, no running statistic and no random number is touched. Not for
    weights that are sharded over processes (FSDP, DeepSpeed ZeRO-3).

    Args:
        monitor ([`~evaluation.KNNMonitor`]): Which labelled images to learn from and to ask about.
        every (`float`, defaults to 0.1): Steps between two measurements, or a share of the run if below 1; 0 for none.
        encoder (`nn.Module`, *optional*): What to measure; by default the encoder of an [`SSLModel`], else the model.
            It needs `mean` and `std` as encoders have them.

    Raises:
        ValueError: `every` is out of range.
    """

    prefix: ClassVar[str]

    def __init__(self, monitor: KNNMonitor, every: float = 0.1, *, encoder: nn.Module | None = None):
        check_interval("every", every)
        self.monitor, self.every, self.encoder = monitor, every, encoder
        self.measured = 0
        self._watched: nn.Module | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.begin(model, state.log_history)

    def scalars(self, state, logs):
        return self.measure(state.global_step, state.max_steps) if state.is_world_process_zero else {}

    def begin(self, model: nn.Module, history: Iterable[Mapping] = ()) -> None:
        """Chooses what to measure; for a training loop of one's own.

        Args:
            model (`nn.Module`): What is trained, not its distributed wrapper.
            history (iterable of mappings, *optional*): Log entries with their `step`, of a run that is resumed.
        """
        self.measured = max((e["step"] for e in history if any(key.startswith(self.prefix) for key in e)), default=0)
        encoder = self.encoder or (model.encoder if isinstance(model, SSLModel) else model)
        self._watched = encoder if self.every else None

    def measure(self, step: int, max_steps: int) -> dict[str, float]:
        """Scalars to log with the entry written after `step` steps; empty where no measurement is due."""
        if self._watched is None or not is_due(step, self.measured, self.every, max_steps):
            return {}
        self.measured = step
        devices = {parameter.device for parameter in self._watched.parameters() if parameter.device.type == "cuda"}
        try:
            # A DataLoader draws a seed each time it is read.
            with torch.random.fork_rng(devices=devices), evaluation_mode(self._watched):
                found = self.accuracy(*self.monitor.features(self._watched))
        except (ValueError, RuntimeError) as error:
            # Watching must not end a run, be it for want of memory.
            with tqdm.external_write_mode():
                logger.warning(f"{self.prefix}top1 at step {step} cannot be measured: {error}")
            return {}
        return {self.prefix + name: value for name, value in found.items()}

    def accuracy(self, bank: Features, queries: Features) -> dict[str, float]:
        """`top1` and `top5` of the probe that learns from `bank`, on `queries`."""
        raise TypeError("ProbeCallback is abstract: use KNNCallback or LinearProbeCallback")


class KNNCallback(ProbeCallback):
    """A vote of the nearest labelled images, under `knn/`: see [`ProbeCallback`].

    ```python
    monitor = KNNMonitor(load_source("digits"), None, image_size=32, progress=False)
    OrthoSSLTrainer(model, args, train_dataset=ds, callbacks=[KNNCallback(monitor, every=100)]).train()
    ```
    """

    prefix = "knn/"

    def accuracy(self, bank: Features, queries: Features) -> dict[str, float]:
        settings = self.monitor.settings
        return knn_accuracy(bank, queries, k=settings["k"], temperature=settings["temperature"])


class LinearProbeCallback(ProbeCallback):
    """Logistic regression on the representations of labelled images, under `linear_probe/`: see [`ProbeCallback`].

    It is fitted anew each time, on features as they are then, so that it depends on nothing but the encoder.

    Args:
        monitor, every, encoder: As for [`ProbeCallback`].
        penalty (`float`, defaults to 1e-3): λ of [`~evaluation.lbfgs_probe`].
    """

    prefix = "linear_probe/"

    def __init__(
        self, monitor: KNNMonitor, every: float = 0.1, *, encoder: nn.Module | None = None, penalty: float = 1e-3
    ):
        super().__init__(monitor, every, encoder=encoder)
        if not penalty >= 0:
            raise ValueError(f"penalty is {penalty}: it must be 0 or more, as in 1e-3")
        self.penalty = penalty

    def accuracy(self, bank: Features, queries: Features) -> dict[str, float]:
        known, asked = bank.labels >= 0, queries.labels >= 0
        if not known.any() or not asked.any():
            raise ValueError("a linear probe needs labels both where it learns and where it is asked")
        classes = int(max(bank.labels.max(), queries.labels.max())) + 1
        classifier = lbfgs_probe(bank.representations[known], bank.labels[known], classes, penalty=self.penalty)
        ranked = classifier(queries.representations[asked]).topk(min(5, classes), dim=1).indices
        hits = (ranked == queries.labels[asked][:, None]).double()
        return {"top1": hits[:, 0].mean().item(), "top5": hits.sum(1).mean().item()}


def build_probes(model: SSLModel, dataset: Dataset, args: OrthoSSLTrainingArguments) -> list[ProbeCallback]:
    """The probes that `knn_steps` and `linear_probe_steps` ask for; they set aside a fifth of 2,048 training images.

    Raises:
        ValueError: there are no labels to probe with.
    """
    wanted = [
        (name, kind, getattr(args, name))
        for name, kind in (("knn_steps", KNNCallback), ("linear_probe_steps", LinearProbeCallback))
        if getattr(args, name)
    ]
    if not wanted:
        return []
    source = getattr(dataset, "source", None)
    if source is None or source.label_column is None or source.num_rows is None:
        name, _, steps = wanted[0]
        raise ValueError(
            f"{name} is {steps} and the data have no labels that can be read at will: pass label_column, no stream, or "
            f"{name} 0"
        )
    monitor = KNNMonitor(source, None, model.encoder.image_size, seed=args.seed, progress=False)
    return [kind(monitor, steps) for _, kind, steps in wanted]
