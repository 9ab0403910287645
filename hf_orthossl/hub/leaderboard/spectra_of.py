"""Spectra that an author published: every scalar that follows from a curve is computed again from that curve."""

from typing import Any

import numpy as np

from ...spectra.stages import last_weights
from . import values
from .board_json import spectra_from
from .schema import MOST_CURVES, MOST_POINTS, Spectra, evenly
from .values import Refused, shown

REPRESENTATION = "representation"
SCHEMA_VERSION = 1
MOST_LAYERS = 3_000
# Of a scalar and of what its own curve gives; both come from float64.
TOLERANCE = 1e-4
_OF_REPRESENTATION = ("effective_rank", "rankme", "participation_ratio", "num_positive", "num_images", "dim")


def spectra_of(scalars: dict, arrays: dict[str, np.ndarray], num_features: int) -> Spectra:
    """The board's form of `spectra.json` with the curves of `spectra.safetensors`.

    Weights whose curves lie beyond the bytes that were read are taken at their word.

    Args:
        scalars (`dict`): Parsed `spectra.json`.
        arrays (`dict[str, np.ndarray]`): Curves by their names in `spectra.safetensors`.
        num_features (`int`): Width of the representation by `config.json`.

    Raises:
        Refused: a part is not of its form, or does not agree with another.
    """
    if scalars.get("schema_version") != SCHEMA_VERSION:
        raise Refused(
            "spectra", f"have the schema_version {shown(scalars.get('schema_version'))}, not {SCHEMA_VERSION}"
        )
    weights, features = _layers(scalars, "weights"), _layers(scalars, "features")
    curves = {name: _checked_feature(name, about, arrays) for name, about in features.items()}
    shares = []
    for name, about in weights.items():
        shares.append(_checked_weight(name, about, arrays))
    summary = {}
    if REPRESENTATION in features:
        about = features[REPRESENTATION]
        if about["dim"] != num_features:
            raise Refused("spectra", f"are of {about['dim']} dimensions, the encoder has {num_features}")
        summary = {key: values.number(f"spectra {key}", about.get(key), 0) for key in _OF_REPRESENTATION}
        summary["relative_rank"] = summary["effective_rank"] / about["dim"]
        alpha = alpha_req(_positive(curves[REPRESENTATION], about))
        if alpha is None and about.get("alpha") is not None:
            raise Refused("spectra", f"claim the alpha {shown(about['alpha'])}; their own curve gives none")
        if alpha is not None and about.get("alpha") is not None:
            _agree("spectra", "alpha", about, alpha, -values.LARGEST)
            summary["alpha"] = alpha
    if shares:
        summary |= {"weights_rank_mean": sum(shares) / len(shares), "weights_rank_min": min(shares)}
    for name in last_weights(weights):
        curve = arrays.get(f"weights/{name}/eigenvalues")
        if curve is not None:
            curves[f"weights/{name}"] = _curve(f"weights/{name}", curve)
    kept = dict(list(curves.items())[:MOST_CURVES])
    thinned = {name: _thinned(curve) for name, curve in kept.items()}
    lengths = {name: len(curve) for name, curve in kept.items()}
    # Through the one check that a snapshot goes through too.
    return spectra_from({"summary": summary, "curves": thinned, "lengths": lengths})


def effective_rank(singular_values: np.ndarray) -> float:
    """Roy & Vetterli's, as `hf_orthossl.spectra.effective_rank`, without torch."""
    total = singular_values.sum()
    shares = singular_values / total if total > 0 else np.zeros(1)
    # What is positive may be none of the total.
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def alpha_req(eigenvalues: np.ndarray, first: int = 4, last: int = 100) -> float | None:
    """α-ReQ of descending eigenvalues, as `hf_orthossl.spectra.alpha_req`, without torch."""
    found = eigenvalues[:last]
    found = found[found > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[0]][first - 1 :]
    if len(found) < 3:
        return None
    ranks = np.arange(first, first + len(found))
    # A line fitted to numbers weighted by w has w² in its squares.
    return -float(np.polyfit(np.log(ranks), np.log(found), 1, w=ranks**-0.5)[0])


def _positive(curve: np.ndarray, about: dict) -> np.ndarray:
    """Without what rounding left of zeros."""
    return np.where(curve > max(about["dim"], about["num_images"]) * np.finfo(np.float64).eps, curve, 0)


def _checked_feature(name: str, about: dict, arrays: dict[str, np.ndarray]) -> np.ndarray:
    where = f"spectra of {shown(name)}"
    curve = _curve(name, arrays.get(f"features/{name}/eigenvalues"))
    dim, images = (values.count(f"{where}, {key}", about.get(key)) for key in ("dim", "num_images"))
    exact = about.get("exact") is True
    if len(curve) > dim or (exact and len(curve) != dim):
        raise Refused(where, f"have {len(curve)} eigenvalues for {dim} dimensions")
    if np.any(curve > 1) or (curve[0] not in (0, 1)):
        raise Refused(where, "are not normalized: the largest eigenvalue must be 1")
    positive = _positive(curve, about)
    _agree(where, "effective_rank", about, effective_rank(np.sqrt(positive)))
    _agree(where, "num_positive", about, float(np.count_nonzero(positive)))
    if exact and positive.any():
        _agree(where, "participation_ratio", about, positive.sum() ** 2 / np.square(positive).sum())
    # Its curve is not published; ε adds a little to the number of directions.
    values.number(f"{where}, rankme", about.get("rankme"), 0, 1.01 * min(dim, max(images, 1)) + 1)
    return curve


def _checked_weight(name: str, about: dict, arrays: dict[str, np.ndarray]) -> float:
    where = f"spectra of {shown(name)}"
    shape = about.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(s) is int and 0 < s < 2**31 for s in shape):
        raise Refused(where, f"must have a shape of two numbers, got {shown(shape)}")
    claimed = values.number(f"{where}, effective_rank", about.get("effective_rank"), 0, min(shape) * (1 + TOLERANCE))
    values_of = arrays.get(f"weights/{name}/singular_values")
    if values_of is not None:
        found = _vector(where, values_of)
        if len(found) != min(shape):
            raise Refused(where, f"have {len(found)} singular values for the shape {shape}")
        _agree(where, "effective_rank", about, effective_rank(found))
    return min(claimed / min(shape), 1.0)


def _curve(name: str, curve: np.ndarray | None) -> np.ndarray:
    where = f"spectra of {shown(name)}"
    if curve is None:
        raise Refused(where, "have no curve in spectra.safetensors: a number alone cannot be checked")
    found = _vector(where, curve)
    if found[0] > 1:
        raise Refused(where, "are not normalized: the largest eigenvalue must be 1")
    return found


def _vector(where: str, vector: np.ndarray) -> np.ndarray:
    if len(vector) == 0 or not np.isfinite(vector).all() or (vector < 0).any() or (vector > 1e150).any():
        raise Refused(where, "hold no numbers, or some that are negative, infinite or none")
    if (np.diff(vector) > 0).any():
        raise Refused(where, "must be in descending order")
    return vector


def _agree(where: str, key: str, about: dict, found: float, low: float = 0) -> None:
    claimed = values.number(f"{where}, {key}", about.get(key), low)
    # NaN agrees with nothing.
    if not abs(claimed - found) <= TOLERANCE * max(abs(found), 1):
        raise Refused(where, f"claim the {key} {claimed:.6g}; their own curve gives {found:.6g}")


def _layers(scalars: dict, section: str) -> dict[str, dict]:
    layers = scalars.get(section)
    if not isinstance(layers, dict) or len(layers) > MOST_LAYERS:
        raise Refused("spectra", f"must have {section} as an object of at most {MOST_LAYERS:,} layers")
    for name, about in layers.items():
        values.name(f"spectra, {section}", name, 200)
        if not isinstance(about, dict):
            raise Refused("spectra", f"of {shown(name)} must be an object")
    return layers


def _thinned(curve: np.ndarray) -> list[Any]:
    ranks = np.array(evenly(len(curve), MOST_POINTS)) - 1
    # Five digits draw the same line.
    return [float(f"{value:.5g}") for value in curve[ranks]]
