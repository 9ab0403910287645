"""kNN and linear probes while an encoder trains: what its representations tell of labels that training never sees."""

from typing import ClassVar

from torch import nn
from torch.utils.data import Dataset

from ..evaluation import Features, KNNMonitor, accuracy, knn_accuracy, lbfgs_probe
from ..modeling import SSLModel
from ..spectra.layers import evaluation_mode
from .arguments import OrthoSSLTrainingArguments
from .watching import WatchingCallback


class ProbeCallback(WatchingCallback):
    """Probes an encoder on labelled images while any `transformers.Trainer` trains it, and logs the accuracy.

    Use [`KNNCallback`] or [`LinearProbeCallback`]. The scalars are `top1` and `top5`, in [0, 1], under the probe's own
    prefix, in the first log entry after each `every` steps and in the last one, measured on the main process. Training
    goes on exactly as it would without: no gradient, no running statistic and no random number is touched. Weights
    that FSDP2 shards are put together on the main process, which then holds the whole encoder for the time.

    Args:
        monitor ([`~evaluation.KNNMonitor`]): Which labelled images to learn from and to ask about.
        every (`float`, defaults to 0.1): Steps between two measurements, or a share of the run if below 1; 0 for none.
        encoder (`nn.Module`, *optional*): What to measure; by default the encoder of an [`SSLModel`], else the model.
            It needs `mean` and `std` as encoders have them.

    Raises:
        ValueError: `every` is out of range.
    """

    probe: ClassVar[str]

    def __init__(self, monitor: KNNMonitor, every: float = 0.1, *, encoder: nn.Module | None = None):
        super().__init__(self.probe, every, encoder, subject=f"{self.probe}/top1")
        self.monitor = monitor

    def _measure(self, module: nn.Module, step: int) -> dict[str, float]:
        with evaluation_mode(module):
            return self.accuracy(*self.monitor.features(module))

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

    probe = "knn"

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

    probe = "linear_probe"

    def __init__(
        self, monitor: KNNMonitor, every: float = 0.1, *, encoder: nn.Module | None = None, penalty: float = 1e-3
    ):
        super().__init__(monitor, every, encoder=encoder)
        if not penalty >= 0:
            raise ValueError(f"penalty is {penalty}: it must be 0 or more, as in 1e-3")
        self.penalty = penalty

    def accuracy(self, bank: Features, queries: Features) -> dict[str, float]:
        known = bank.labels >= 0
        if not known.any():
            raise ValueError("a linear probe needs labels where it learns: pass a monitor of labelled images")
        classes = int(max(bank.labels.max(), queries.labels.max())) + 1
        classifier = lbfgs_probe(bank.representations[known], bank.labels[known], classes, penalty=self.penalty)
        names = [str(number) for number in range(classes)]
        found = accuracy(classifier(queries.representations), queries.labels, names)
        return {"top1": found.top1, "top5": found.top5}


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
