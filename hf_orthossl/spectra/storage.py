"""`spectra.json` and `spectra.safetensors`: writing them, and reading them without trusting them."""

import json
import math
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_arrays
from safetensors.torch import save as save_arrays
from torch import Tensor

from ..files import replace_file
from .spectrum import FeatureSpectrum, WeightSpectrum

SCHEMA_VERSION = 1
SCALARS, ARRAYS = "spectra.json", "spectra.safetensors"
# Far above the largest network's report (about 1 MB and 50 MB), and small enough to be read into memory.
_MAX_BYTES = {SCALARS: 64 * 2**20, ARRAYS: 2 * 2**30}
_KINDS = {"weights": WeightSpectrum, "features": FeatureSpectrum}
# JSON has no infinity, and only a condition number can be infinite: null stands for it.
_INFINITE = "condition_number"
_OPTIONAL = {"alpha", "lidar"}
_POOLS = {"none", "flatten", "avg"}


def save(weights: dict, features: dict, metadata: dict, notes: list[str], directory: Path) -> Path:
    """Write a report's parts into a directory."""
    content = {"schema_version": SCHEMA_VERSION, "metadata": metadata, "notes": notes}
    arrays = {}
    for section, spectra in (("weights", weights), ("features", features)):
        content[section] = {}
        for name, spectrum in spectra.items():
            values = {f.name: getattr(spectrum, f.name) for f in fields(spectrum)}
            # A narrowed tensor would drag its whole storage into the file.
            arrays |= {f"{section}/{name}/{key}": v.clone() for key, v in values.items() if isinstance(v, Tensor)}
            values = {key: v for key, v in values.items() if not isinstance(v, Tensor)}
            if values.get(_INFINITE) == math.inf:
                values[_INFINITE] = None
            content[section][name] = values
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must hold JSON values only, no NaN or infinity: {error}") from error
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / ARRAYS, save_arrays(arrays))
    replace_file(directory / SCALARS, text + "\n")
    return directory


def load(directory: Path) -> tuple[dict, dict, dict, list[str]]:
    """A report's weights, features, metadata and notes, checked."""
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
        raise ValueError(f"{directory} is no spectral report: {error} is missing") from error
    except ValueError as error:
        raise ValueError(f"{directory} is no spectral report: {error}") from error
    return *sections, metadata, notes


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a report is {SCALARS} and {ARRAYS} in one folder")
    if path.stat().st_size > _MAX_BYTES[path.name]:
        raise ValueError(f"{path} is larger than the {_MAX_BYTES[path.name] >> 20} MiB that a report may have")
    return path.read_bytes()


def _read_json(path: Path) -> dict:
    def refuse(token: str) -> None:
        raise ValueError(f"{token} is not JSON")

    try:
        content = json.loads(_read(path), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or "schema_version" not in content:
        raise ValueError(f"{path} is no spectral report: it has no schema_version")
    if content["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {content['schema_version']!r}, this version of the package reads "
            f"{SCHEMA_VERSION}: update the package or write the report anew"
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
    # α alone may be negative, by rounding. The comparison also refuses integers too large for a float.
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
