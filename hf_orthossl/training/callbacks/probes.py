"""Measure the kNN and linear-probe accuracy of an encoder during training, with labels that training does not use."""

from typing import ClassVar, cast

from torch import nn

from ...encoders import Encoder
from ...evaluation import Features, KNNMonitor, accuracy, knn_accuracy, lbfgs_probe
from ...evaluation.labels import row_labels
from ...modeling import SSLModel
from ...spectra.layers import evaluation_mode
from ..data import TrainingData
from .measuring import MeasuringCallback


class ProbeCallback(MeasuringCallback):
    """Probe an encoder on labelled images while any `transformers.Trainer` trains it, and log the accuracy.

    Use [`KNNCallback`] or [`LinearProbeCallback`]. The scalars are `top1` and `top5`, in [0, 1], with the prefix of the
    probe, in the first log entry after each `every` steps and in the last one, measured on the main process. Training
    is not affected: gradients, running statistics and random numbers do not change. Weights sharded by FSDP2 are
    gathered on the main process, which holds the whole encoder while it measures.

    Args:
        monitor ([`~evaluation.KNNMonitor`]): The labelled images of bank and queries.
        every (`float`, defaults to 0.1): Steps between two measurements, or a share of the run if below 1; 0 for none.
        encoder (`nn.Module`, *optional*): The encoder to measure, with the attributes `mean` and `std` of an
            [`Encoder`]; by default the encoder of an [`SSLModel`], else the whole model.

    Raises:
        ValueError: `every` is out of range.
    """

    probe: ClassVar[str]

    def __init__(self, monitor: KNNMonitor, every: float = 0.1, *, encoder: nn.Module | None = None):
        super().__init__(self.probe, every, encoder, subject=f"{self.probe}/top1")
        self.monitor = monitor

    def _measure(self, module: nn.Module, step: int) -> dict[str, float]:
        with evaluation_mode(module):
            # Whatever the module is, it maps images to vectors, which is all that features are made with.
            return self.accuracy(*self.monitor.features(cast(Encoder, module)))

    def accuracy(self, bank: Features, queries: Features) -> dict[str, float]:
        """Return `top1` and `top5` on `queries` of a probe trained on `bank`."""
        raise TypeError("ProbeCallback is abstract: use KNNCallback or LinearProbeCallback")


class KNNCallback(ProbeCallback):
    """Classify by a vote of the nearest labelled images, with the prefix `knn/`; see [`ProbeCallback`].

    Example:
        ```python
        monitor = KNNMonitor(load_source("digits"), None, image_size=32, progress=False)
        OrthoSSLTrainer(model, args, train_dataset=ds, callbacks=[KNNCallback(monitor, every=100)]).train()
        ```
    """

    probe = "knn"

    def accuracy(self, bank: Features, queries: Features) -> dict[str, float]:
        """Return `top1` and `top5` of the vote."""
        settings = self.monitor.settings
        return knn_accuracy(bank, queries, k=int(settings["k"]), temperature=settings["temperature"])


class LinearProbeCallback(ProbeCallback):
    """Classify by logistic regression on representations, with the prefix `linear_probe/`; see [`ProbeCallback`].

    The probe is fitted from scratch at each measurement, so that the accuracy depends only on the current encoder.

    Args:
        monitor ([`~evaluation.KNNMonitor`]): See [`ProbeCallback`].
        every (`float`, defaults to 0.1): See [`ProbeCallback`].
        encoder (`nn.Module`, *optional*): See [`ProbeCallback`].
        penalty (`float`, defaults to 1e-3): λ ≥ 0 of [`~evaluation.lbfgs_probe`].

    Raises:
        ValueError: `every` or `penalty` is out of range.
    """

    probe = "linear_probe"

    def __init__(
        self, monitor: KNNMonitor, every: float = 0.1, *, encoder: nn.Module | None = None, penalty: float = 1e-3
    ):
        super().__init__(monitor, every, encoder=encoder)
        if not penalty >= 0:
            raise ValueError(f"penalty is {penalty}: it must be 0 or more, as in 1e-3")
        self.penalty = penalty

    def accuracy(self, bank: Features, queries: Features) -> dict[str, float]:
        """Return `top1` and `top5` of the fitted probe.

        Raises:
            ValueError: `bank` has no labels.
        """
        labelled = bank.labels >= 0
        if not labelled.any():
            raise ValueError("a linear probe needs labels, and the monitor has none: pass labelled images")
        classes = int(max(bank.labels.max(), queries.labels.max())) + 1
        classifier = lbfgs_probe(bank.representations[labelled], bank.labels[labelled], classes, penalty=self.penalty)
        names = [str(number) for number in range(classes)]
        measured = accuracy(classifier(queries.representations), queries.labels, names)
        return {"top1": measured.top1, "top5": measured.top5}


def build_probes(model: SSLModel, data: TrainingData) -> list[ProbeCallback]:
    """Return the callbacks requested by `knn_steps` and `linear_probe_steps`.

    They use up to 2,048 labelled training images, of which a fifth are the queries.

    Raises:
        ValueError: The data have no labels, or those of a single class, or are a stream.
    """
    kinds: dict[str, type[ProbeCallback]] = {"knn_steps": KNNCallback, "linear_probe_steps": LinearProbeCallback}
    intervals = {name: getattr(data.args, name) for name in kinds if getattr(data.args, name)}
    if not intervals:
        return []
    source = data.source
    if source is None or source.label_column is None or source.num_rows is None:
        name, steps = next(iter(intervals.items()))
        raise ValueError(
            f"{name} is {steps:g}, but the data have no labels or are a stream: pass label_column, or {name} 0"
        )
    classes = row_labels(source).clamp(min=-1).unique()
    if int((classes >= 0).sum()) < 2:
        name, steps = next(iter(intervals.items()))
        raise ValueError(f"{name} is {steps:g}, but the images have fewer than two classes: pass {name} 0")
    monitor = KNNMonitor(source, None, model.encoder.image_size, seed=data.args.seed, progress=False)
    return [kinds[name](monitor, steps) for name, steps in intervals.items()]
