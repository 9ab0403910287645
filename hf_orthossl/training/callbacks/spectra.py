"""Measure spectra of weights and features during training, and warn when they collapse."""

import glob
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from ...messages import warn_above_bars
from ...modeling import SSLModel
from ...regularization import select_matrices
from ...spectra import SpectralReport, last_weights, spectral_report
from ...spectra.layers import check_layers, evaluation_mode
from ...spectra.stages import PATCH_TOKENS, REPRESENTATION, short_name
from ...spectra.tokens import token_layers
from ..intervals import check_threshold
from .measuring import MeasuringCallback, error_text

logger = logging.getLogger(__name__)

# Number of consecutive failures after which features are no longer measured.
FAILURES = 3


class SpectraCallback(MeasuringCallback):
    """Measure spectra while any `transformers.Trainer` trains, log them, and warn when a layer collapses.

    By default only the last weight matrix of each stage is measured, which takes a fraction of a second. The scalars
    are those of [`SpectralReport.summary`] with the prefix `<name>/`, in the first log entry after each `every` steps
    and in the last one; the weights are those at the time of the entry, measured on the main process. Training is not
    affected: a measurement that fails is skipped with a warning. Weights sharded by FSDP2 are gathered on
    the main process, one at a time, while it measures. DeepSpeed ZeRO-3 is not supported.

    Args:
        every (`float`, defaults to 0.1): Steps between two measurements, or a share of the run if below 1; 0 for none.
        module (`nn.Module`, *optional*): The module to measure; by default the encoder of an [`SSLModel`], else the
            whole model.
        images (`Tensor` or iterable, *optional*): Normalized images `(N, C, H, W)`, or batches of them such as those
            of a `DataLoader`, read again at each measurement; their features are measured too. The rank of features
            is at most N − 1, so pass more images than the features have dimensions.
        views (iterable of `Tensor`, *optional*): Batches `(n, v, C, H, W)` of v views of each of n images, read again
            at each measurement; LiDAR of the representation is then measured too.
        include (`str` or sequence of `str`, *optional*): Patterns of weights to measure, see `select_matrices`; by
            default the last weight of each stage.
        layers (sequence of `str`, *optional*): Layers whose features to measure, see `spectral_report`; by default
            the representation, and the patch tokens of a vision transformer.
        threshold (`float`, defaults to 0.1): Warn once when the effective rank of a layer falls below this share of
            its maximum, and again only after it has recovered; in [0, 1), 0 for no warnings.
        name (`str`, defaults to "spectra"): Prefix of the scalars; it must differ between several such callbacks.

    Raises:
        ValueError: `every` or `threshold` is out of range, `layers` or `views` is given without `images`, `name` is
            empty or contains "/", or, when training begins, `include` matches no weight, `layers` matches no layer, or
            `images` are not images.

    Example:
        ```python
        Trainer(model, args, train_dataset=ds, callbacks=[SpectraCallback(every=100)]).train()
        ```
    """

    def __init__(
        self,
        every: float = 0.1,
        *,
        module: nn.Module | None = None,
        images: Tensor | Iterable | None = None,
        views: Iterable[Tensor] | None = None,
        include: str | Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        threshold: float = 0.1,
        name: str = "spectra",
    ):
        check_threshold("threshold", threshold)
        if layers is not None and images is None:
            raise ValueError("layers is given without images: pass images, or select weights with include")
        if views is not None and images is None:
            raise ValueError("views is given without images: pass the images too, or leave both out")
        if not name or "/" in name:
            raise ValueError(f"name is {name!r}: it must be a word without '/', as in 'spectra'")
        super().__init__(name, every, module)
        self.threshold, self.images, self.views, self.include = threshold, images, views, include
        self.layers = layers
        self.collapsed: set[str] = set()
        self._failures, self._advice = 0, ""
        self._patterns: str | Sequence[str] | None = include
        self._weights: set[str] | None = None

    def begin(self, model: nn.Module, history: Iterable[Mapping] = ()) -> None:
        """Choose what to measure; in your own training loop, call it on all processes before the first step.

        Args:
            model (`nn.Module`): The model in training, not its distributed wrapper.
            history (iterable of mappings, *optional*): Log entries with their `step`, of a run that is resumed.

        Raises:
            ValueError: `include` matches no weight, `layers` matches no layer, or `images` are not images.
        """
        super().begin(model, history)
        self._failures, module = 0, self._measured_module
        if module is None:
            return
        # In training mode, reading a weight under spectral norm would update its vectors.
        with evaluation_mode(module):
            matrices = select_matrices(module, self.include)
        if self.include is None:
            chosen = last_weights(matrix.name for matrix in matrices)
            self._patterns = [glob.escape(name.partition("[")[0]) for name in chosen]
            matrices = [matrix for matrix in matrices if matrix.name in chosen]
        self._weights = {matrix.path for matrix in matrices}
        if not self._weights <= {name for name, _ in module.named_parameters()}:
            # The parameters of parametrized weights have other names.
            self._weights = None
        if self.images is not None:
            _check_images(self.images)
            if self.layers is None:
                patches = [layer for layer in token_layers(module) if layer == PATCH_TOKENS]
                self.layers = [*patches, REPRESENTATION]
            check_layers(module, self.layers)
        if isinstance(model, SSLModel) and model.regularizer and any(p is module for p in model.encoder.modules()):
            self._advice = (
                ": the encoder is collapsing; raise gamma, the weight of the orthogonality penalty, or lower the "
                "learning rate"
            )

    def _parameters_needed(self) -> Collection[str] | None:
        return self._weights if self.images is None else None

    def _measure(self, module: nn.Module, step: int) -> dict[str, float]:
        report = self._report(module, step)
        self._warn(report, step)
        return report.summary() | self._noted(module, step, report)

    def _noted(self, module: nn.Module, step: int, report: SpectralReport) -> dict[str, float]:
        """Take note of a measurement of the module, and return scalars to log with it."""
        return {}

    def _report(self, module: nn.Module, step: int) -> SpectralReport:
        """Return the spectra of weights and features, or only those of weights if features cannot be measured."""
        if self.images is None or self._failures == FAILURES:
            return spectral_report(module, include=self._patterns)
        try:
            report = spectral_report(module, self.images, include=self._patterns, layers=self.layers, views=self.views)
        except Exception as error:
            # This raises too if the weights are the cause.
            report = spectral_report(module, include=self._patterns)
            self._failures += 1
            last = f"; after {FAILURES} failures they are no longer measured" if self._failures == FAILURES else ""
            warn_above_bars(
                logger, f"{self.name} of features at step {step} cannot be measured: {error_text(error)}{last}"
            )
        else:
            self._failures = 0
        return report

    def _warn(self, report: SpectralReport, step: int) -> None:
        ranks = {name: (w.effective_rank, min(w.shape)) for name, w in report.weights.items()}
        ranks |= {name: (f.effective_rank, f.most_positive) for name, f in report.features.items()}
        for name, (rank, most) in ranks.items():
            if rank >= self.threshold * most:
                self.collapsed.discard(name)
            elif name not in self.collapsed:
                self.collapsed.add(name)
                used = f"{short_name(name)} uses {math.ceil(rank)} of its {most} directions (effective rank {rank:.1f})"
                if rank == 0 and name in report.features:
                    used = (
                        f"all images are equal at {short_name(name)}, which has collapsed completely (effective rank 0)"
                    )
                elif rank == 0:
                    used = f"all weights of {short_name(name)} are 0 (effective rank 0)"
                warn_above_bars(
                    logger,
                    f"{self.name} at step {step}: {used}, below the threshold of {100 * self.threshold:g} %"
                    f"{self._advice}",
                )


def _check_images(images: Tensor | Iterable) -> None:
    """Reject values that cannot be images, without reading a batch."""
    if isinstance(images, Tensor):
        if images.ndim != 4 or not images.is_floating_point() or len(images) < 2:
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}: pass at least 2 normalized float images "
                "(N, C, H, W)"
            )
    elif not isinstance(images, Iterable) or isinstance(images, str | Mapping | Iterator):
        raise ValueError(
            f"images is a {type(images).__name__}: pass normalized images (N, C, H, W), or an iterable of batches "
            "that can be read repeatedly, such as a DataLoader"
        )
