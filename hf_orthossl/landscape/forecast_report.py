"""A forecast of what training will keep: its numbers, its file and its summary."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import replace_file

SCHEMA_VERSION = 1
_MAX_BYTES = 16 * 2**20


@dataclass
class Direction:
    """
    One direction of the views' variation.

    Attributes:
        index (`int`): Place in order of k, from 0.
        k, low, high (`float`): Canonical correlation with its 95 % interval.
        variance (`float`): Share of the views' variance that it carries, in [0, 1].
        alive (`bool`): Whether the landscape keeps it, given enough outputs.
        examples (`list[int]`): Images that lie farthest along it: three at its negative and three at its positive end.
    """

    index: int
    k: float
    low: float
    high: float
    variance: float
    alive: bool
    examples: list[int]


@dataclass
class LeftOut:
    """What the pipeline without one augmentation would keep, other settings equal: `surviving` and the sum of k."""

    without: str
    surviving: int
    total: float


@dataclass
class Forecast:
    """
    What a linear encoder will keep of a data set under an augmentation pipeline. Made by [`forecast`].

    Attributes:
        settings (`dict`): `loss`, `alpha`, `temperature`, `weight_decay`, `gamma`, `dim`: as of [`Objective`].
        num_images, views_per_image (`int`): n and v.
        dimension (`int`): D, pixels or features.
        directions (`int`): How many leading principal directions k was estimated in.
        variance_share (`float`): Share of the views' variance that they hold.
        correlations, low, high (`list[float]`): k, descending, with 95 % intervals.
        negative (`int`): How many k of the unbiased sample were below 0; they count as 0.
        eigenvalues (`list[float]`): Predicted, of the representation's covariance, descending, 0 where dead.
        surviving (`int`): How many are positive.
        surviving_low, surviving_high (`int`, *optional*): The same for the ends of the intervals of all k at once;
            `None` with `gamma`.
        cut_by_dim (`int`): Directions that would live if the encoder had more outputs.
        threshold (`float`, *optional*): A direction dies where k is at most this. `None` where k alone does not decide.
        dead_variance (`float`): Share of the views' variance in dead directions.
        gamma_to_revive (`float`, *optional*): Above it all directions live; `None` where γ does not decide.
        temperature_to_revive (`float`, *optional*): Below it all directions live; of normalized features only.
        alpha_to_collapse (`float`, *optional*): Weight of the alignment from which nothing lives, where there is one.
        endangered (`list[Direction]`): Of those that die, the ones with the most variance; then those nearest to dying.
        safest (`list[Direction]`): Those with the highest k.
        left_out (`list[LeftOut]`): One for each augmentation left out, as without the penalty.
        left_out_base (`LeftOut`): The whole pipeline in the same terms.
        label_signal (`dict`, *optional*): `lost`, `kind` and `verdict` of [`LabelSignal`], with labels.
        measured (`list[float]`, *optional*): Normalized eigenvalues of a representation that was trained.
        metadata (`dict`): What was forecast: JSON values.
        notes (`list[str]`): What a reader must know.
        patterns (`Tensor`, *optional*): `(m, D)`, `endangered` then `safest` as inputs; not saved.
    """

    settings: dict[str, Any]
    num_images: int
    views_per_image: int
    dimension: int
    directions: int
    variance_share: float
    correlations: list[float] = field(repr=False)
    low: list[float] = field(repr=False)
    high: list[float] = field(repr=False)
    negative: int
    eigenvalues: list[float] = field(repr=False)
    surviving: int
    surviving_low: int | None
    surviving_high: int | None
    cut_by_dim: int
    threshold: float | None
    dead_variance: float
    gamma_to_revive: float | None
    temperature_to_revive: float | None
    alpha_to_collapse: float | None
    endangered: list[Direction] = field(repr=False)
    safest: list[Direction] = field(repr=False)
    left_out: list[LeftOut]
    left_out_base: LeftOut
    label_signal: dict[str, Any] | None
    measured: list[float] | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    patterns: Tensor | None = field(default=None, repr=False, compare=False)

    def save(self, path: str | PathLike) -> Path:
        """
        Write the forecast as JSON; folders are created.

        Raises:
            ValueError: if `metadata` holds what JSON cannot.
        """
        path = Path(path)
        content = {"schema_version": SCHEMA_VERSION}
        for spec in dataclasses.fields(self):
            if spec.name != "patterns":
                content[spec.name] = _plain(getattr(self, spec.name))
        try:
            text = json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata must hold JSON values only, no NaN or infinity: {error}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        return replace_file(path, text + "\n")

    @classmethod
    def load(cls, path: str | PathLike) -> "Forecast":
        """
        Read a forecast that [`~Forecast.save`] wrote, checked: it may come from anywhere.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no forecast of this version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: pass the forecast.json that orthossl forecast wrote")
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path} is larger than the {_MAX_BYTES >> 20} MiB that a forecast may have")
        try:
            content = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        version = content.pop("schema_version", None) if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema_version {version!r} and {SCHEMA_VERSION} is read: forecast anew")
        try:
            for name, kind in (("endangered", Direction), ("safest", Direction), ("left_out", LeftOut)):
                content[name] = [kind(**entry) for entry in content[name]]
            content["left_out_base"] = LeftOut(**content["left_out_base"])
            loaded = cls(**content)
            loaded._check()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no forecast: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path} is no forecast: {error}") from error
        return loaded

    def _check(self) -> None:
        for name in ("correlations", "low", "high"):
            values = getattr(self, name)
            if len(values) != self.directions or not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{name} must be {self.directions} numbers in [0, 1]")
        for name in ("eigenvalues", "measured"):
            values = getattr(self, name) or []
            if not all(math.isfinite(value) and value >= 0 for value in values):
                raise ValueError(f"{name} must be numbers of at least 0")

    def summary(self) -> str:
        """The forecast in a few lines of plain words."""
        return summary(self)

    def plot(self, path: str | PathLike) -> Path:
        """Draw k, the predicted spectrum and the augmentations' shares; the file's suffix chooses the format."""
        from .figures import plot_forecast

        return plot_forecast(self, path)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
        return [dataclasses.asdict(entry) for entry in value]
    return value


_LOSSES = {
    "quartic": "quartic landscape",
    "spectral": "spectral contrastive loss",
    "infonce": "InfoNCE on Euclidean distances",
    "normalized": "InfoNCE on normalized features",
}
_ANY_GAMMA = 1e-8


def summary(forecast: Forecast) -> str:
    """One line for each question: what was measured, what survives, what dies and why, what would help."""
    f = forecast
    unit = f.metadata.get("unit", "dimensions")
    rows = [
        (
            "measured",
            f"{f.num_images:,} images × {f.views_per_image} views, {f.dimension:,} {unit}; "
            f"their leading {f.directions} directions hold {100 * f.variance_share:.4g}% of the variance of views",
        ),
        ("loss", f"{_LOSSES[f.settings['loss']]}, {_settings(f)}"),
        ("survive", _survivors(f)),
        ("die", _dead(f)),
    ]
    if f.label_signal:
        rows.append(("labels", f"{f.label_signal['kind']}: {f.label_signal['verdict']}"))
    rows += [("remedy", text) for text in _remedies(f)]
    if f.left_out:
        base = f.left_out_base
        rows.append(("pipeline", f"keeps {base.surviving}, sum of k {base.total:.1f}{_without_penalty(f)}"))
        for one in sorted(f.left_out, key=lambda one: -one.total):
            change = one.surviving - base.surviving
            text = f"keeps {one.surviving} ({change:+d}), sum of k {one.total:.1f} ({one.total - base.total:+.1f})"
            rows.append((f"no {one.without}", text))
    if f.settings["loss"] == "normalized" and any(one.surviving < f.left_out_base.surviving for one in f.left_out):
        rows.append(("note", "normalized features compete: what raises the strongest k can cost weaker directions"))
    rows += [("note", text) for text in f.notes]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)


def _settings(f: Forecast) -> str:
    names = {"temperature": "temperature", "alpha": "alignment weight α", "weight_decay": "weight decay", "gamma": "γ"}
    parts = [f"{label} {f.settings[name]:g}" for name, label in names.items() if _matters(f, name)]
    outputs = "as many outputs as directions" if f.settings["dim"] is None else f"{f.settings['dim']} outputs"
    return ", ".join([*parts, outputs])


def _matters(f: Forecast, name: str) -> bool:
    if name == "temperature":
        return f.settings["loss"] in ("normalized", "infonce")
    return name == "alpha" or f.settings[name] > 0


def _survivors(f: Forecast) -> str:
    text = f"{f.surviving} of {f.directions} directions"
    if f.surviving_low is not None and f.surviving_high is not None:
        low, high = sorted((f.surviving_low, f.surviving_high))
        if low < high:
            text += f" ({low} to {high} over the 95 % intervals of k)"
    if f.cut_by_dim:
        text += f"; {f.cut_by_dim} more would if the encoder had more than {f.settings['dim']} outputs"
    if f.threshold is not None:
        text += f"; a direction needs k above {max(f.threshold, 0):.3g}"
    return text


def _dead(f: Forecast) -> str:
    dead = f.directions - f.surviving - f.cut_by_dim
    if not dead:
        return "nothing: augmentation leaves a part of every direction"
    text = f"{dead} directions with {f.dead_variance:.0%} of the variance of views"
    return f"complete collapse: {text}" if not f.surviving else text


def _remedies(f: Forecast) -> list[str]:
    remedies = []
    if f.gamma_to_revive:
        # Directions that die with k = 0 and no more need no strength worth a number.
        strength = f"with γ above {f.gamma_to_revive:.3g}" if f.gamma_to_revive > _ANY_GAMMA else "of any strength"
        remedies.append(f"an orthogonality penalty {strength} revives all that dies")
    if f.temperature_to_revive is not None and f.settings["temperature"] > f.temperature_to_revive:
        remedies.append(f"a temperature below {f.temperature_to_revive:.3g} keeps all directions")
    if f.alpha_to_collapse is not None and f.alpha_to_collapse > 1:
        remedies.append(f"complete collapse comes at an alignment weight α of {f.alpha_to_collapse:.3g}")
    return remedies


def _without_penalty(f: Forecast) -> str:
    return " (without the penalty)" if f.settings["gamma"] else ""
