"""The report of a forecast: its numbers, its file and its summary as text."""

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
_LOSSES = {
    "quartic": "quartic landscape",
    "spectral": "spectral contrastive loss",
    "infonce": "InfoNCE on Euclidean distances",
    "normalized": "InfoNCE on normalized features",
}
_SETTINGS = {"temperature": "temperature", "alpha": "alignment weight α", "weight_decay": "weight decay", "gamma": "γ"}
# Any penalty revives directions with k = 0, so do not state a smaller γ.
_ANY_GAMMA = 1e-8
# Maximum number of classes named in the summary.
_NAMED = 5


@dataclass
class Direction:
    """One direction in which views vary.

    Attributes:
        index (`int`): Position in the order of k, from 0.
        k (`float`): Canonical correlation.
        low (`float`): Lower end of its 95 % interval.
        high (`float`): Upper end of its 95 % interval.
        variance (`float`): Share of the views' variance in this direction, in [0, 1].
        alive (`bool`): Whether the landscape keeps it, given enough outputs.
        examples (`list[int]`): The images at its ends: three at the negative end, then three at the positive end.
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
    """The forecast without one augmentation, with all other settings equal.

    Attributes:
        without (`str`): The augmentation, empty for the whole pipeline.
        surviving (`int`): The number of surviving directions.
        total (`float`): The sum of k over all directions.
    """

    without: str
    surviving: int
    total: float


@dataclass
class ClassFate:
    """The direction that separates one class from the rest, as [`ClassDirections`] describes it.

    Attributes:
        name (`str`): The name of the class, or its number.
        share (`float`): Share of the labelled images, in [0, 1].
        k (`float`): Canonical correlation along the filter that best separates the class.
        captured (`float`): Share of that filter's variance in surviving directions, in [0, 1].
        survives (`bool`, *optional*): Whether the class keeps its direction; `None` if its mean does not differ from
            the rest by more than chance.
    """

    name: str
    share: float
    k: float
    captured: float
    survives: bool | None


@dataclass
class Forecast:
    """The directions of a data set that a linear encoder will keep under an augmentation pipeline; from [`forecast`].

    Attributes:
        settings (`dict`): `loss`, `alpha`, `temperature`, `weight_decay`, `gamma` and `dim`, as in [`Objective`].
        num_images (`int`): n.
        views_per_image (`int`): v.
        dimension (`int`): D, the number of pixels or features.
        directions (`int`): The number of leading principal directions in which k was estimated.
        variance_share (`float`): Their share of the views' variance.
        correlations (`list[float]`): k, descending.
        low (`list[float]`): Lower ends of the 95 % intervals of k.
        high (`list[float]`): Upper ends of the 95 % intervals of k.
        negative (`int`): Number of k of the unbiased sample that were below 0; they count as 0.
        eigenvalues (`list[float]`): Predicted eigenvalues of the representation's covariance, descending, 0 if
            collapsed.
        surviving (`int`): The number of positive eigenvalues.
        surviving_low (`int`, *optional*): The same if all k are at the lower ends of their intervals; `None` with
            `gamma`.
        surviving_high (`int`, *optional*): The same for the upper ends.
        cut_by_dim (`int`): Directions that would survive if the encoder had more outputs.
        threshold (`float`, *optional*): A direction collapses if its k is at most this; `None` if k alone does not
            decide.
        dead_variance (`float`): Share of the views' variance in collapsed directions.
        gamma_to_revive (`float`, *optional*): All directions survive above this γ; `None` if γ does not decide.
        temperature_to_revive (`float`, *optional*): All directions survive below this temperature; only for normalized
            features.
        alpha_to_collapse (`float`, *optional*): Weight of the alignment from which no direction survives, if any.
        endangered (`list[Direction]`): The collapsed directions with the most variance, then the nearest to collapse.
        safest (`list[Direction]`): The directions with the highest k.
        left_out (`list[LeftOut]`): One entry for each augmentation left out, without the penalty.
        left_out_base (`LeftOut`): The whole pipeline, without the penalty.
        label_signal (`dict`, *optional*): `lost`, `kind` and `verdict` of [`LabelSignal`], if there are labels.
        classes (`list[ClassFate]`, *optional*): Which classes keep a direction, if there are labels.
        measured (`list[float]`, *optional*): Normalized eigenvalues of a trained representation.
        metadata (`dict`): Description of the data, as JSON values.
        notes (`list[str]`): Remarks for the reader.
        patterns (`Tensor`, *optional*): `endangered`, then `safest` as inputs, shape `(m, D)`; not saved.
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
    classes: list[ClassFate] | None = field(repr=False)
    measured: list[float] | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    patterns: Tensor | None = field(default=None, repr=False, compare=False)

    def save(self, path: str | PathLike) -> Path:
        """Write the forecast as JSON; folders are created.

        Args:
            path (`str` or path): The file to write.

        Returns:
            `Path`: The file.

        Raises:
            ValueError: `metadata` contains values that are not JSON.
        """
        path = Path(path)
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for spec in dataclasses.fields(self):
            if spec.name != "patterns":
                content[spec.name] = _plain(getattr(self, spec.name))
        try:
            text = json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata must contain only JSON values, no NaN or infinity: {error}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        return replace_file(path, text + "\n")

    @classmethod
    def load(cls, path: str | PathLike) -> "Forecast":
        """Read and validate a forecast that [`~Forecast.save`] wrote; the file is untrusted.

        Args:
            path (`str` or path): The file to read.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not a forecast of this version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: pass the forecast.json that orthossl forecast wrote")
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path} is too large: a forecast must be at most {_MAX_BYTES >> 20} MiB")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        version = content.pop("schema_version", None) if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema_version {version!r}, but this version of the package reads {SCHEMA_VERSION}: run "
                "orthossl forecast again"
            )
        try:
            for name, kind in (("endangered", Direction), ("safest", Direction), ("left_out", LeftOut)):
                content[name] = [kind(**entry) for entry in content[name]]
            content["left_out_base"] = LeftOut(**content["left_out_base"])
            if content["classes"] is not None:
                content["classes"] = [ClassFate(**entry) for entry in content["classes"]]
            loaded = cls(**content)
            loaded._check()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a forecast: {error}") from error
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
        """Return the forecast as text: what was measured, what survives, what collapses and why, and the remedies."""
        unit = self.metadata.get("unit", "dimensions")
        held = (
            f"their leading {self.directions} directions hold {100 * self.variance_share:.4g}% of the variance of views"
        )
        rows = [
            (
                "measured",
                f"{self.num_images:,} images × {self.views_per_image} views, {self.dimension:,} {unit}; "
                + (held if self.directions else "their views have no variance"),
            ),
            ("loss", f"{_LOSSES[self.settings['loss']]}, {_settings(self)}"),
            ("survive", _survivors(self)),
            ("collapse", _collapsed(self)),
        ]
        if self.label_signal:
            rows.append(("labels", f"{self.label_signal['kind']}: {self.label_signal['verdict']}"))
        if self.classes:
            rows.append(("classes", _classes(self.classes)))
        rows += [("remedy", text) for text in _remedies(self)]
        if self.left_out:
            base = self.left_out_base
            penalty = " (without the penalty)" if self.settings["gamma"] else ""
            rows.append(("pipeline", f"keeps {base.surviving}, sum of k {base.total:.1f}{penalty}"))
            for one in sorted(self.left_out, key=lambda one: -one.total):
                change = one.surviving - base.surviving
                text = f"keeps {one.surviving} ({change:+d}), sum of k {one.total:.1f} ({one.total - base.total:+.1f})"
                rows.append((f"no {one.without}", text))
        competition = any(one.surviving < self.left_out_base.surviving for one in self.left_out)
        if self.settings["loss"] == "normalized" and competition:
            text = (
                "directions of normalized features compete: a change that raises the strongest k can lose weaker ones"
            )
            rows.append(("note", text))
        rows += [("note", text) for text in self.notes]
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{text}" for name, text in rows)

    def plot(self, path: str | PathLike) -> Path:
        """Draw k, the predicted spectrum and the effect of each augmentation with [`plot_forecast`].

        Args:
            path (`str` or path): The file to write; its suffix chooses the format.

        Returns:
            `Path`: The file.
        """
        from .figures import plot_forecast

        return plot_forecast(self, path)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
        return [dataclasses.asdict(entry) for entry in value]
    return value


def _settings(forecast: Forecast) -> str:
    def applies(name: str) -> bool:
        if name == "temperature":
            return forecast.settings["loss"] in ("normalized", "infonce")
        return name == "alpha" or forecast.settings[name] > 0

    parts = [f"{label} {forecast.settings[name]:g}" for name, label in _SETTINGS.items() if applies(name)]
    dim = forecast.settings["dim"]
    return ", ".join([*parts, "as many outputs as directions" if dim is None else f"{dim} outputs"])


def _survivors(forecast: Forecast) -> str:
    if not forecast.directions:
        return "no direction: none has any variance"
    text = f"{forecast.surviving} of {forecast.directions} directions"
    if forecast.surviving_low is not None and forecast.surviving_high is not None:
        low, high = sorted((forecast.surviving_low, forecast.surviving_high))
        if low < high:
            text += f" ({low} to {high} over the 95 % intervals of k)"
    if forecast.cut_by_dim:
        text += f"; {forecast.cut_by_dim} more would if the encoder had more than {forecast.settings['dim']} outputs"
    if forecast.threshold is not None and forecast.threshold >= 0:
        text += f"; a direction needs k above {forecast.threshold:.3g}"
    return text


def _collapsed(forecast: Forecast) -> str:
    if not forecast.directions:
        return "complete collapse: there is nothing that a representation could keep"
    dead = forecast.directions - forecast.surviving - forecast.cut_by_dim
    if not dead and not any(forecast.correlations):
        return "nothing: the loss spreads the representation over all directions, of which augmentation leaves no part"
    if not dead:
        return "nothing: augmentation leaves a part of every direction"
    text = f"{dead} directions with {forecast.dead_variance:.0%} of the variance of views"
    return f"complete collapse: {text}" if not forecast.surviving else text


def _classes(classes: list[ClassFate]) -> str:
    """Return which classes lose their direction, largest first, and how many are undecided."""
    lost = sorted((one for one in classes if one.survives is False), key=lambda one: -one.share)
    unknown = sum(one.survives is None for one in classes)
    survivors = len(classes) - len(lost) - unknown
    text = f"{survivors} of {len(classes)} keep the direction that separates them from the rest"
    if lost:
        named = [f"{one.name} ({one.share:.2g} of images, k {one.k:.2f})" for one in lost[:_NAMED]]
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        text += f"; {', '.join(named)}{more} lose{'s' if len(lost) == 1 else ''} it"
    if unknown:
        text += f"; {unknown} differ{'s' if unknown == 1 else ''} from the rest by no more than chance"
    return text


def _remedies(forecast: Forecast) -> list[str]:
    remedies = []
    if forecast.gamma_to_revive:
        strength = f"with γ above {forecast.gamma_to_revive:.3g}"
        strength = strength if forecast.gamma_to_revive > _ANY_GAMMA else "of any strength"
        remedies.append(f"an orthogonality penalty {strength} revives every collapsed direction")
    temperature = forecast.temperature_to_revive
    if temperature is not None and forecast.settings["temperature"] > temperature:
        remedies.append(f"a temperature below {temperature:.3g} keeps all directions")
    if forecast.alpha_to_collapse is not None and forecast.alpha_to_collapse > 1:
        remedies.append(f"an alignment weight α of {forecast.alpha_to_collapse:.3g} or more collapses all directions")
    return remedies
