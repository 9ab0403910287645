"""Check published spectra: every scalar that follows from a curve is computed again from that curve.

The page and the collection run without torch, so effective rank and α are computed here with NumPy; tests hold them
equal to `hf_orthossl.spectra`.
"""

from typing import Any

import numpy as np

from ....spectra.stages import last_weights
from ..schema import (
    MAX_CURVES,
    MAX_POINTS,
    CheckedSpectra,
    Count,
    LayerName,
    Number,
    Object,
    Positive,
    RejectedError,
    Spectra,
    checked,
    evenly,
    shown,
)

REPRESENTATION = "representation"
SCHEMA_VERSION = 1
MAX_LAYERS = 3_000
# Between a scalar and what its own curve gives; both come from float64.
TOLERANCE = 1e-4
_OF_REPRESENTATION = ("effective_rank", "rankme", "participation_ratio", "num_positive", "num_images", "dim")


def spectra_of(scalars: dict[str, Any], arrays: dict[str, np.ndarray], num_features: int) -> Spectra:
    """Return the board's form of `spectra.json` with the curves of `spectra.safetensors`.

    Scalars of weights whose curves lie beyond the bytes that were read cannot be checked and are taken as published.

    Args:
        scalars (`dict`): Parsed `spectra.json`.
        arrays (`dict[str, np.ndarray]`): Curves by their names in `spectra.safetensors`.
        num_features (`int`): Width of the representation by `config.json`.

    Raises:
        RejectedError: A part is malformed, or does not agree with another.
    """
    if scalars.get("schema_version") != SCHEMA_VERSION:
        version = shown(scalars.get("schema_version"))
        raise RejectedError("spectra", f"have the schema_version {version}, not {SCHEMA_VERSION}")
    weights, features = _layers(scalars, "weights"), _layers(scalars, "features")
    curves = {name: _checked_feature(name, about, arrays) for name, about in features.items()}
    shares = [_checked_weight(name, about, arrays) for name, about in weights.items()]
    summary = {}
    if REPRESENTATION in features:
        about = features[REPRESENTATION]
        if about["dim"] != num_features:
            raise RejectedError("spectra", f"are of {about['dim']} dimensions, the encoder has {num_features}")
        summary = {key: checked(Positive, f"spectra {key}", about.get(key)) for key in _OF_REPRESENTATION}
        summary["relative_rank"] = summary["effective_rank"] / about["dim"]
        alpha = alpha_req(_positive(curves[REPRESENTATION], about))
        if alpha is None and about.get("alpha") is not None:
            raise RejectedError("spectra", f"claim the alpha {shown(about['alpha'])}; their own curve gives none")
        if alpha is not None and about.get("alpha") is not None:
            _agree("spectra", "alpha", about, alpha, Number)
            summary["alpha"] = alpha
    if shares:
        summary |= {"weights_rank_mean": sum(shares) / len(shares), "weights_rank_min": min(shares)}
    for name in last_weights(weights):
        curve = arrays.get(f"weights/{name}/eigenvalues")
        if curve is not None:
            curves[f"weights/{name}"] = _curve(f"weights/{name}", curve)
    kept = dict(list(curves.items())[:MAX_CURVES])
    thinned = {name: _thinned(curve) for name, curve in kept.items()}
    lengths = {name: len(curve) for name, curve in kept.items()}
    # A snapshot goes through the same check.
    return checked(CheckedSpectra, "spectra", {"summary": summary, "curves": thinned, "lengths": lengths})


def effective_rank(singular_values: np.ndarray) -> float:
    """Return Roy & Vetterli's effective rank, as `hf_orthossl.spectra.effective_rank` does, without torch."""
    total = singular_values.sum()
    shares = singular_values / total if total > 0 else np.zeros(1)
    # A positive value may be too small a share of the total for a float.
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def alpha_req(eigenvalues: np.ndarray, first: int = 4, last: int = 100) -> float | None:
    """Return α-ReQ of descending eigenvalues, as `hf_orthossl.spectra.alpha_req` does, without torch."""
    fitted = eigenvalues[:last]
    fitted = fitted[fitted > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[0]][first - 1 :]
    if len(fitted) < 3:
        return None
    ranks = np.arange(first, first + len(fitted))
    # A line fitted to numbers weighted by w has w² in its squares.
    return -float(np.polyfit(np.log(ranks), np.log(fitted), 1, w=ranks**-0.5)[0])


def _positive(curve: np.ndarray, about: dict) -> np.ndarray:
    """Return a curve with the rounding errors of zeros set to 0."""
    return np.where(curve > max(about["dim"], _vectors(about)) * np.finfo(np.float64).eps, curve, 0)


def _vectors(about: dict) -> int:
    """Return the number of vectors whose covariance was taken: one of each image, or of each of its tokens."""
    return about["num_images"] * about["tokens_per_image"]


def _checked_feature(name: str, about: dict, arrays: dict[str, np.ndarray]) -> np.ndarray:
    where = f"spectra of {shown(name)}"
    curve = _curve(name, arrays.get(f"features/{name}/eigenvalues"))
    dim, *_ = (checked(Count, f"{where}, {key}", about.get(key)) for key in ("dim", "num_images", "tokens_per_image"))
    exact = about.get("exact") is True
    if len(curve) > dim or (exact and len(curve) != dim):
        raise RejectedError(where, f"have {len(curve)} eigenvalues for {dim} dimensions")
    if curve[0] not in (0, 1):
        raise RejectedError(where, "are not normalized: the largest eigenvalue must be 1")
    positive = _positive(curve, about)
    _agree(where, "effective_rank", about, effective_rank(np.sqrt(positive)))
    _agree(where, "num_positive", about, float(np.count_nonzero(positive)))
    if exact and positive.any():
        _agree(where, "participation_ratio", about, positive.sum() ** 2 / np.square(positive).sum())
    # The curve of RankMe is not published; its ε adds a little to the number of directions.
    rankme = checked(Positive, f"{where}, rankme", about.get("rankme"))
    if rankme > 1.01 * min(dim, max(_vectors(about), 1)) + 1:
        raise RejectedError(f"{where}, rankme", f"is larger than the number of directions, got {rankme:g}")
    return curve


def _checked_weight(name: str, about: dict, arrays: dict[str, np.ndarray]) -> float:
    """Return the effective rank of a weight as a share of the highest possible."""
    where = f"spectra of {shown(name)}"
    shape = about.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(s) is int and 0 < s < 2**31 for s in shape):
        raise RejectedError(where, f"must have a shape of two numbers, got {shown(shape)}")
    claimed = checked(Positive, f"{where}, effective_rank", about.get("effective_rank"))
    if claimed > min(shape) * (1 + TOLERANCE):
        raise RejectedError(where, f"claim the effective rank {claimed:g} of a matrix of the shape {shape}")
    published = arrays.get(f"weights/{name}/singular_values")
    if published is not None:
        values = _vector(where, published)
        if len(values) != min(shape):
            raise RejectedError(where, f"have {len(values)} singular values for the shape {shape}")
        _agree(where, "effective_rank", about, effective_rank(values))
    return min(claimed / min(shape), 1.0)


def _curve(name: str, published: np.ndarray | None) -> np.ndarray:
    where = f"spectra of {shown(name)}"
    if published is None:
        raise RejectedError(where, "have no curve in spectra.safetensors: a number alone cannot be checked")
    curve = _vector(where, published)
    if curve[0] > 1:
        raise RejectedError(where, "are not normalized: the largest eigenvalue must be 1")
    return curve


def _vector(where: str, vector: np.ndarray) -> np.ndarray:
    if len(vector) == 0 or not np.isfinite(vector).all() or (vector < 0).any() or (vector > 1e150).any():
        raise RejectedError(where, "must be finite numbers from 0, at least one")
    if (np.diff(vector) > 0).any():
        raise RejectedError(where, "must be in descending order")
    return vector


def _agree(where: str, key: str, about: dict, recomputed: float, kind: Any = Positive) -> None:
    claimed = checked(kind, f"{where}, {key}", about.get(key))
    # Written so that NaN, which compares with nothing, is rejected.
    if not abs(claimed - recomputed) <= TOLERANCE * max(abs(recomputed), 1):
        raise RejectedError(where, f"claim the {key} {claimed:.6g}; their own curve gives {recomputed:.6g}")


def _layers(scalars: dict, section: str) -> dict[str, dict]:
    layers = checked(Object, f"spectra, {section}", scalars.get(section))
    if len(layers) > MAX_LAYERS:
        raise RejectedError("spectra", f"have {len(layers):,} {section}, more than {MAX_LAYERS:,}")
    for name, about in layers.items():
        checked(LayerName, f"spectra, {section}", name)
        checked(Object, f"spectra of {shown(name)}", about)
    return layers


def _thinned(curve: np.ndarray) -> list[float]:
    ranks = np.array(evenly(len(curve), MAX_POINTS)) - 1
    # Five digits draw the same line.
    return [float(f"{value:.5g}") for value in curve[ranks]]
