"""Spectral reports: data, files, and summaries as text and scalars."""

import json
import math
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_arrays
from safetensors.torch import save as save_arrays
from torch import Tensor

from ..files import replace_file, replacing_files
from . import tables
from .collapse import complete_collapse, partial_collapse
from .spectrum import FeatureSpectrum, WeightSpectrum


@dataclass
class SpectralReport:
    """Spectra of a model's weights and features; made by [`spectral_report`].

    Attributes:
        weights (`dict[str, WeightSpectrum]`): Spectra by parameter name, in the model's order.
        features (`dict[str, FeatureSpectrum]`): Spectra by layer, in order: `"input"`, the stages, `"representation"`,
            `"embedding"`; empty if no images were given.
        metadata (`dict`): What was measured: `model` (its name), `num_images`, and whatever was passed in, such as
            `dataset` or the package's version; JSON values.
        notes (`list[str]`): Remarks for the reader, one sentence each.

    Example:
        >>> report = spectral_report(encoder, images)
        >>> print(report.table())
        >>> report.save("spectra")
        >>> print(report.compare(SpectralReport.load("spectra_of_another_run")))
    """

    weights: dict[str, WeightSpectrum] = field(default_factory=dict)
    features: dict[str, FeatureSpectrum] = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the model's name, as tables and figures show it."""
        return str(self.metadata.get("model") or "model")

    def save(self, directory: str | PathLike) -> Path:
        """Write `spectra.json` (scalars) and `spectra.safetensors` (arrays) into a directory, which is created.

        Args:
            directory (`str` or path): The directory.

        Returns:
            `Path`: The directory.

        Raises:
            ValueError: `metadata` contains values that are not JSON.
        """
        return _save(self.weights, self.features, self.metadata, self.notes, Path(directory))

    @classmethod
    def load(cls, directory: str | PathLike) -> "SpectralReport":
        """Read and validate a report that [`~SpectralReport.save`] wrote; the files are untrusted.

        Args:
            directory (`str` or path): The directory.

        Raises:
            FileNotFoundError: The directory contains no report.
            ValueError: A file is broken, too large, or does not have this format.
        """
        return cls(*_load(Path(directory)))

    def table(self, brief: bool = False) -> str:
        """Return all scalars as text for a terminal: a table of the weights, one of the features, then the notes.

        Args:
            brief (`bool`, defaults to `False`): Whether to show only the last weight of each stage, and one line about
                the remaining ones.
        """
        return tables.table(self.name, self.weights, self.features, self.notes, brief)

    def compare(self, *others: "SpectralReport", brief: bool = False) -> str:
        """Return this report and others side by side, as text.

        There is a table for each measure with a column for each report, and the change if there are two.

        Args:
            *others ([`SpectralReport`]): Reports on models of any architecture, at most 25.
            brief (`bool`, defaults to `False`): Whether to show only the main measures of the last weight of each stage
                and of the features. Stages of different architectures are then matched by position; otherwise every
                layer that any of the models has is shown by its name.

        Raises:
            ValueError: There are more than 25 others.
        """
        if len(others) > 25:
            raise ValueError(f"others must be at most 25 reports, got {len(others)}")
        runs = [self, *others]
        return tables.compare(
            [run.name for run in runs],
            [run.weights for run in runs],
            [run.features for run in runs],
            [run.notes for run in runs],
            brief,
        )

    def collapse(self) -> list[str]:
        """Say in words what has collapsed, completely or in part.

        A direction that a LayerNorm removes from every input, and one that N images cannot show, is not counted.

        Returns:
            `list[str]`: Sentences, those about complete collapse first; empty if every direction has some variance and
            no effective rank is below a tenth of its maximum.

        Example:
            >>> spectral_report(encoder, images).collapse()
            ['The representations of all 64 images are equal: they have no variance, so the encoder has collapsed ...
        """
        return self.complete_collapse() + partial_collapse(self.weights, self.features)

    def complete_collapse(self) -> list[str]:
        """Say in words what does not vary at all: layers at which all images are equal, and zero weights.

        Returns:
            `list[str]`: Sentences, one on the representation first; empty if every layer and every weight has at least
            one direction.
        """
        return complete_collapse(self.weights, self.features)

    def summary(self) -> dict[str, float]:
        """Return scalars to log, all finite.

        Returns:
            `dict[str, float]`: `weights/<name>/effective_rank`; over all weights `weights/relative_rank_mean` and
            `weights/relative_rank_min` (effective rank divided by the smaller side, in (0, 1]),
            `weights/gram_frobenius_mean`, `weights/gram_sigma_max`, `weights/non_positive` (eigenvalues
            that could be positive but are not);
            `features/<layer>/…` for `effective_rank`, `rankme`, `participation_ratio`, `num_positive`, and `alpha`
            and `lidar` if they were measured.
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
        """Draw the report with [`plot_spectra`].

        Args:
            path (`str` or path): The file to write; its suffix determines the format (`.png`, `.pdf`, …).

        Returns:
            `Path`: The file.
        """
        from .figures import plot_spectra

        return plot_spectra(self, path)


SCHEMA_VERSION = 1
SCALARS, ARRAYS = "spectra.json", "spectra.safetensors"
# Far above the report of the largest network (about 1 MB and 50 MB), and small enough for memory.
_MAX_BYTES = {SCALARS: 64 * 2**20, ARRAYS: 2 * 2**30}
_KINDS = {"weights": WeightSpectrum, "features": FeatureSpectrum}
# JSON has no infinity. Only a condition number can be infinite, and is then stored as null.
_INFINITE = "condition_number"
_OPTIONAL = {"alpha", "lidar"}
_POOLS = {"none", "flatten", "avg", "each"}


def _save(weights: dict, features: dict, metadata: dict, notes: list[str], directory: Path) -> Path:
    """Write the parts of a report into a directory, and return the directory."""
    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "metadata": metadata, "notes": notes}
    arrays: dict[str, Tensor] = {}
    for section, spectra in (("weights", weights), ("features", features)):
        content[section] = {}
        for name, spectrum in spectra.items():
            values = {f.name: getattr(spectrum, f.name) for f in fields(spectrum)}
            # Cloned, because a view would be saved with all of the larger tensor.
            arrays |= {f"{section}/{name}/{key}": v.clone() for key, v in values.items() if isinstance(v, Tensor)}
            values = {key: v for key, v in values.items() if not isinstance(v, Tensor)}
            if values.get(_INFINITE) == math.inf:
                values[_INFINITE] = None
            content[section][name] = values
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must contain only JSON values, no NaN or infinity: {error}") from error
    # Both or none, because each is read with the other.
    with replacing_files(directory) as unfinished:
        replace_file(unfinished / ARRAYS, save_arrays(arrays))
        replace_file(unfinished / SCALARS, text + "\n")
    return directory


def _load(directory: Path) -> tuple[dict, dict, dict, list[str]]:
    """Return the weights, features, metadata and notes of a report, checked."""
    content = _read_json(directory / SCALARS)
    try:
        arrays = load_arrays(_read(directory / ARRAYS))
    except SafetensorError as error:
        raise ValueError(f"{directory / ARRAYS} is not a safetensors file: {error}") from error
    try:
        sections = [_read_section(section, content, arrays) for section in _KINDS]
        metadata, notes = content["metadata"], content["notes"]
        _require(isinstance(metadata, dict), "metadata must be an object")
        _require(isinstance(notes, list) and all(isinstance(n, str) for n in notes), "notes must be strings")
        _require(not arrays, f"array {next(iter(arrays), '')!r} belongs to no spectrum")
    except KeyError as error:
        raise ValueError(f"{directory} is not a spectral report: {error} is missing") from error
    except ValueError as error:
        raise ValueError(f"{directory} is not a spectral report: {error}") from error
    return *sections, metadata, notes


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a report is {SCALARS} and {ARRAYS} in one folder")
    if path.stat().st_size > _MAX_BYTES[path.name]:
        raise ValueError(f"{path} is too large: a report file must be at most {_MAX_BYTES[path.name] >> 20} MiB")
    return path.read_bytes()


def _read_json(path: Path) -> dict:
    def reject(token: str) -> None:
        raise ValueError(f"{token} is not JSON")

    try:
        content = json.loads(_read(path), parse_constant=reject)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or "schema_version" not in content:
        raise ValueError(f"{path} is not a spectral report: it has no schema_version")
    if content["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {content['schema_version']!r}, but this version of the package reads "
            f"{SCHEMA_VERSION}: update the package, or measure the spectra again"
        )
    return content


def _read_section(section: str, content: dict, arrays: dict[str, Tensor]) -> dict:
    kind, spectra = _KINDS[section], {}
    _require(isinstance(content[section], dict), f"{section} must be an object")
    for name, values in content[section].items():
        where = f"{section}/{name}"
        _require(isinstance(values, dict), f"{where} must be an object")
        read = {}
        for spec in fields(kind):
            if spec.type is Tensor:
                read[spec.name] = _checked_array(f"{where}/{spec.name}", arrays.pop(f"{where}/{spec.name}"))
            else:
                read[spec.name] = _checked_scalar(where, spec, values[spec.name])
        unknown = set(values) - set(read)
        _require(not unknown, f"{where} has the unknown entry {min(unknown, default='')!r}")
        spectra[name] = kind(**read)
        _check_lengths(where, spectra[name])
    return spectra


def _checked_array(where: str, array: Tensor) -> Tensor:
    _require(array.dtype == torch.float64 and array.ndim == 1 and len(array) > 0, f"{where} must be a float64 vector")
    _require(bool(torch.isfinite(array).all()) and bool((array >= 0).all()), f"{where} must be finite and >= 0")
    _require(bool((array.diff() <= 0).all()), f"{where} must be in descending order")
    return array


def _checked_scalar(where: str, spec, value):
    if spec.name == _INFINITE and value is None:
        return math.inf
    if spec.name in _OPTIONAL and value is None:
        return None
    where = f"{where}/{spec.name}"
    if spec.name == "shape":
        valid = isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
        _require(valid, f"{where} must be two positive integers")
        return tuple(value)
    if spec.type in (str, bool):
        _require(type(value) is spec.type, f"{where} must be a {spec.type.__name__}, got {value!r}")
        _require(spec.name != "pool" or value in _POOLS, f"{where} must be one of {sorted(_POOLS)}")
        return value
    # Only α may be negative, because of rounding. The comparison also rejects integers too large for a float.
    lowest = -1e300 if spec.name == "alpha" else 0
    number = type(value) in (int, float) and lowest <= value <= 1e300
    _require(number, f"{where} must be a finite number >= {lowest:g}")
    _require(spec.type is not int or type(value) is int, f"{where} must be an integer, got {value!r}")
    return value if spec.type is int else float(value)


def _check_lengths(where: str, spectrum: WeightSpectrum | FeatureSpectrum) -> None:
    length = len(spectrum.eigenvalues)
    _require(float(spectrum.eigenvalues[0]) <= 1, f"{where}/eigenvalues must be at most 1")
    _require(length == spectrum.dim or (not spectrum.exact and length < spectrum.dim), f"{where}: {length} eigenvalues")
    _require(spectrum.num_positive <= length, f"{where}: num_positive exceeds the number of eigenvalues")
    if isinstance(spectrum, WeightSpectrum):
        valid = len(spectrum.singular_values) == min(spectrum.shape)
        _require(valid, f"{where}: {len(spectrum.singular_values)} singular values")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
