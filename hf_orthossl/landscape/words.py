"""A forecast in plain words."""

from .forecast import Forecast

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
