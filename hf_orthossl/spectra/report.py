"""The spectra of a model: data, file, and what is read off them."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from . import storage, tables
from .spectrum import FeatureSpectrum, WeightSpectrum


@dataclass
class SpectralReport:
    """
    Spectra of a model's weights and features. Made by [`spectral_report`].

    Attributes:
        weights (`dict[str, WeightSpectrum]`): by parameter name, in the model's order.
        features (`dict[str, FeatureSpectrum]`): by layer, in order: `"input"`, the stages, `"representation"`,
            `"embedding"`; empty if no images were given.
        metadata (`dict`): what was measured: `model` (its name), `num_images`, and whatever was passed in, such as
            `dataset` or the package's version; JSON values.
        notes (`list[str]`): what a reader must know, one sentence each.

    Example:

    ```python
    >>> report = spectral_report(encoder, images)
    >>> print(report.table())
    >>> report.save("spectra")
    >>> print(report.compare(SpectralReport.load("spectra_of_another_run")))
    ```
    """

    weights: dict[str, WeightSpectrum] = field(default_factory=dict)
    features: dict[str, FeatureSpectrum] = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The model's name, as tables and figures show it."""
        return str(self.metadata.get("model") or "model")

    def save(self, directory: str | PathLike) -> Path:
        """
        Write `spectra.json` (scalars) and `spectra.safetensors` (arrays) into a directory, which is created.

        Returns:
            `Path` of the directory.

        Raises:
            ValueError: if `metadata` holds what JSON cannot.
        """
        return storage.save(self.weights, self.features, self.metadata, self.notes, Path(directory))

    @classmethod
    def load(cls, directory: str | PathLike) -> "SpectralReport":
        """
        Read a report that [`~SpectralReport.save`] wrote. The files are checked: they may come from anywhere.

        Raises:
            FileNotFoundError: if the directory holds no report.
            ValueError: if a file is broken, too large, or not of this form.
        """
        return cls(*storage.load(Path(directory)))

    def table(self, brief: bool = False) -> str:
        """
        All scalars as text for a terminal: a table of the weights, one of the features, then the notes.

        Args:
            brief (`bool`, *optional*, defaults to `False`): only the last weight of each stage, and one line on the
                others.
        """
        return tables.table(self.name, self.weights, self.features, self.notes, brief)

    def compare(self, *others: "SpectralReport", brief: bool = False) -> str:
        """
        This report and others side by side, as text: a table for each measure, a column for each report, and the
        change where there are two.

        Args:
            others ([`SpectralReport`]): of models of any architecture, at most 25.
            brief (`bool`, *optional*, defaults to `False`): the most telling measures of the last weight of each
                stage and of the features. Stages of different architectures are then matched by position;
                otherwise every layer that any of the models has is shown by its name.
        """
        runs = [self, *others]
        parts = zip(*((run.name, run.weights, run.features, run.notes) for run in runs), strict=True)
        return tables.compare(*parts, brief)

    def summary(self) -> dict[str, float]:
        """
        Scalars to log, all finite.

        Returns:
            `dict[str, float]`: `weights/<name>/effective_rank`; over all weights `weights/relative_rank_mean` and
            `weights/relative_rank_min` (effective rank divided by the smaller side, in (0, 1]),
            `weights/gram_frobenius_mean`, `weights/gram_sigma_max`, `weights/non_positive` (eigenvalues
            that could be positive and are not);
            `features/<layer>/…` for `effective_rank`, `rankme`, `participation_ratio`, `num_positive`, and `alpha`
            and `lidar` where there is one.
        """
        scalars = {f"weights/{name}/effective_rank": w.effective_rank for name, w in self.weights.items()}
        if self.weights:
            weights = list(self.weights.values())
            relative = [w.effective_rank / min(w.shape) for w in weights]
            scalars |= {
                "weights/relative_rank_mean": sum(relative) / len(relative),
                "weights/relative_rank_min": min(relative),
                "weights/gram_frobenius_mean": sum(w.gram_frobenius for w in weights) / len(weights),
                "weights/gram_sigma_max": max(w.gram_sigma_max for w in weights),
                "weights/non_positive": float(sum(w.most_positive - w.num_positive for w in weights)),
            }
        for layer, spectrum in self.features.items():
            for key in ("effective_rank", "rankme", "participation_ratio", "num_positive", "alpha", "lidar"):
                value = getattr(spectrum, key)
                if value is not None:
                    scalars[f"features/{layer}/{key}"] = float(value)
        return scalars

    def plot(self, path: str | PathLike) -> Path:
        """Draw the report with [`plot_spectra`] into a file whose suffix chooses the format (`.png`, `.pdf`, …)."""
        from .figures import plot_spectra

        return plot_spectra(self, path)
