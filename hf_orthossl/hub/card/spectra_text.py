"""Describe the spectra of an encoder in sentences and tables, for its card."""

import torch

from ...spectra import FeatureSpectrum, SpectralReport, WeightSpectrum, last_weights
from ...spectra.collapse import complete_collapse, is_constant, remedies
from ..escaping import Safe, escape

REPRESENTATION, PATCH_TOKENS = "representation", "patch_tokens"


def directions_for(spectrum: FeatureSpectrum, share: float) -> int | None:
    """Return the number of leading directions that account for a share of the variance.

    Args:
        spectrum ([`FeatureSpectrum`]): Eigenvalues of features.
        share (`float`): Share of the total variance, in (0, 1].

    Returns:
        `int` or `None`: The number; `None` if all known eigenvalues together account for less.
    """
    if spectrum.num_positive == 0:
        return None
    held = spectrum.eigenvalues.cumsum(0) * (spectrum.largest / spectrum.total_variance)
    # The last cumulative sum is 1 up to rounding.
    reached = torch.nonzero(held >= share - 1e-12)
    return int(reached[0]) + 1 if len(reached) else None


def collapse_notice(report: SpectralReport) -> list[Safe]:
    """Return paragraphs of Markdown on a complete collapse, the first of them in bold; empty without one."""
    sentences = complete_collapse(report.weights, report.features, escape)
    if not sentences:
        return []
    if is_constant(report.features, REPRESENTATION):
        headline = "Complete collapse: this encoder gives all images the same representation."
    else:
        headline = "Complete collapse in a part of this encoder."
    advice = " ".join(remedies(report.weights, report.features))
    return [Safe(f"**{headline}**"), Safe(" ".join(sentences)), Safe(f"What to try: {advice}")]


def plain_reading(report: SpectralReport) -> Safe:
    """Explain a report in one paragraph of Markdown, for a reader who has never seen a spectrum."""
    spectrum = report.features.get(REPRESENTATION)
    weights_alone = ["These are only the spectra of the weights; no images were measured."]
    sentences = _of_representation(spectrum) if spectrum else weights_alone
    patches = report.features.get(PATCH_TOKENS)
    if patches is not None and patches.num_positive:
        sentences.append(
            f"The {patches.num_vectors:,} patch tokens of these images have an effective rank of "
            f"{'' if patches.exact else 'at least '}{patches.effective_rank:.0f} of {patches.dim}."
        )
    sentences += _of_weights(report.weights)
    sentences.append(
        "The effective rank indicates how many directions are in use: that of a collapsed encoder is near 1, or 0 if "
        "nothing varies, and its curves in the figure fall steeply, or are missing."
    )
    return Safe(" ".join(sentences))


def weight_rows(report: SpectralReport) -> list[tuple[str, str, str, str]]:
    """Return a row for the last matrix of each stage: name, inputs × outputs, effective rank, positive eigenvalues."""
    chosen = {name: report.weights[name] for name in last_weights(report.weights)}
    return [
        (
            escape(name),
            f"{w.shape[0]} × {w.shape[1]}",
            f"{w.effective_rank:.1f} of {min(w.shape)}",
            f"{w.num_positive} of {w.most_positive}",
        )
        for name, w in chosen.items()
    ]


def feature_rows(report: SpectralReport) -> list[tuple[str, str, str, str, str, str]]:
    """Return a row for each layer: name, dimensions, effective rank, RankMe, α-ReQ, positive eigenvalues."""
    return [
        (
            "input pixels" if layer == "input" else layer,
            str(f.dim),
            f"{'' if f.exact else '≥ '}{f.effective_rank:.1f}",
            f"{'' if f.exact else '≥ '}{f.rankme:.1f}",
            "–" if f.alpha is None else f"{f.alpha:.2f}",
            f"{'' if f.exact else '≥ '}{f.num_positive} of {f.most_positive}",
        )
        for layer, f in report.features.items()
    ]


def _of_representation(spectrum: FeatureSpectrum) -> list[str]:
    cap, images = spectrum.most_positive, f"{spectrum.num_images:,} images"
    half = directions_for(spectrum, 0.5)
    if spectrum.num_positive == 0:
        return [
            f"All {images} have the same representation: no direction has any variance, and the effective rank is 0."
        ]
    rank = f"{'' if spectrum.exact else 'at least '}{spectrum.effective_rank:.0f} of {spectrum.dim}"
    sentences = [
        f"Over {images}, half of the variance of the representation lies in "
        + (f"{half} of its {spectrum.dim} directions" if half else f"more than {len(spectrum.eigenvalues)} directions")
        + f"; its effective rank is {rank}."
    ]
    lost = cap - spectrum.num_positive if spectrum.exact else 0
    if spectrum.num_images - 1 < spectrum.dim - spectrum.removed_by_norm:
        sentences.append(
            f"{images} can show at most {cap} directions; the others have not collapsed, but cannot be measured."
        )
    if lost > 0:
        sentences.append(f"{lost} of the {cap} have no variance: in these directions the representation has collapsed.")
    elif spectrum.exact:
        sentences.append(f"All {cap} have some variance.")
    if spectrum.removed_by_norm and cap == spectrum.dim - spectrum.removed_by_norm:
        has = "has" if spectrum.removed_by_norm == 1 else "have"
        sentences.append(
            f"{spectrum.removed_by_norm} of the {spectrum.dim} dimensions {has} none by construction, because the last "
            "norm subtracts the mean over the channels; this is no collapse."
        )
    return sentences


def _of_weights(weights: dict[str, WeightSpectrum]) -> list[str]:
    if not weights:
        return []
    lost = {name: w.most_positive - w.num_positive for name, w in weights.items() if w.num_positive < w.most_positive}
    share = {name: w.effective_rank / min(w.shape) for name, w in weights.items()}
    lowest = min(share, key=share.__getitem__)
    mean = sum(share.values()) / len(share)
    if lost:
        worst = max(lost, key=lost.__getitem__)
        first = (
            f"{len(lost)} of the {len(weights)} weight matrices {'has' if len(lost) == 1 else 'have'} lost directions, "
            f"{escape(worst)} the most: {lost[worst]} of {weights[worst].most_positive}."
        )
    else:
        first = f"None of the {len(weights)} weight matrices has lost a direction."
    return [
        first,
        f"Their effective rank is on average {mean:.0%} of its maximum, and lowest in {escape(lowest)}: "
        f"{share[lowest]:.0%}.",
    ]
