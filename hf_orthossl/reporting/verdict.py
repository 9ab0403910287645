"""Judge a run by its spectra and its log: whether it is healthy, where it has collapsed, and what to try."""

from dataclasses import dataclass
from typing import Any

from ..spectra import SpectralReport
from ..spectra.collapse import STRONG, remedies
from ..spectra.spectrum import FeatureSpectrum
from ..spectra.stages import ENDS, INPUT, REPRESENTATION, short_name
from .run import RANK, Run

# A run whose kNN accuracy fell by more has lost something, beyond what another choice of images changes.
FALL = 0.02


@dataclass(frozen=True)
class Verdict:
    """Say what a run came to.

    Args:
        kind (`str`): "good", "mixed", "bad" or "open" (nothing was measured).
        headline (`str`): One sentence.
        reasons (`list[str]`): Why, a sentence each.
        advice (`list[str]`): What to try, a sentence each; empty for a healthy run.
    """

    kind: str
    headline: str
    reasons: list[str]
    advice: list[str]


def judge(run: Run) -> Verdict:
    """Return the verdict on a run, by the spectra of its encoder, or by its log while it has none.

    The representation has collapsed if its effective rank is below a tenth of the highest possible, which is also what
    a run warns of while it trains.

    Args:
        run ([`Run`]): The run.
    """
    report = run.spectra
    if report is None or REPRESENTATION not in report.features:
        return _by_log(run)
    spectrum = report.features[REPRESENTATION]
    most = spectrum.most_positive
    rank = f"{'' if spectrum.exact else 'at least '}{_number(spectrum.effective_rank)} of {most:,} directions"
    about = [f"Measured on {spectrum.num_images:,} images of the training set."]
    knn = _accuracy(run)
    if spectrum.num_positive == 0 or spectrum.effective_rank < STRONG * most:
        how = "completely: all images get the same representation" if spectrum.num_positive == 0 else f"to {rank}"
        sentences = report.complete_collapse() if spectrum.num_positive == 0 else _where(report)
        advice = _advice(run)
        if spectrum.num_positive == 0:
            # The general one, on how to train, is said with the values of this run, unless the images are the cause.
            backbone = run.record.backbone if run.record else "BACKBONE"
            first, *general = remedies(report.weights, report.features)
            first = first.replace("BACKBONE", backbone).replace("`", "")
            advice = [first, *advice] if general else [first]
        return Verdict("bad", f"Collapsed {how}.", [*sentences, *_over_time(run), *knn, *about], advice)
    lost = report.collapse()
    fell = len(run.accuracies) > 1 and run.accuracies[-1] < run.accuracies[0] - FALL
    if fell or any(sentence.startswith("Effective rank below") for sentence in lost) or report.complete_collapse():
        headline = (
            f"The representation has not collapsed ({rank}), but kNN accuracy fell during training."
            if fell
            else f"The representation has not collapsed ({rank}), but parts of the encoder use few."
        )
        return Verdict("mixed", headline, [*lost, *_over_time(run), *knn, *about], _advice(run))
    headline = f"Healthy: the representation uses {rank}."
    return Verdict("good", headline, [*_over_time(run), *lost, *knn, *about], [])


def _by_log(run: Run) -> Verdict:
    """Return the verdict on a run of which only the log says something of the representation, or nothing does."""
    ended = run.record is not None
    ranks = run.series(RANK)
    state = "The spectra of its weights alone were measured" if ended else "The run has not ended, or was stopped"
    last = f"{state}; its last log entry is of step {run.history[-1]['step']:,}." if run.history else f"{state}."
    if not ranks:
        advice = ["Pass --spectra_images 512 to measure the representation while the run trains."]
        return Verdict("open", "No spectrum of the representation was measured.", [last, *_accuracy(run)], advice)
    count = run.settings.get("spectra_images")
    dims = run.record.num_features if run.record else None
    bounds = [value for value in (count - 1 if isinstance(count, int) else None, dims) if value]
    step, rank = ranks[-1]
    of = f" of {min(bounds):,}" if bounds else ""
    headline = f"At step {step:,} the representation uses {_number(rank)}{of} directions"
    if bounds and rank < STRONG * min(bounds):
        return Verdict("bad", f"{headline}: it is collapsing.", [last, *_over_time(run)], _advice(run))
    return Verdict("open", f"{headline}.", [last, *_over_time(run)], [])


def _where(report: SpectralReport) -> list[str]:
    """Return sentences on the layers at which a representation that is nearly constant has lost its directions."""
    shares = {name: _share(f) for name, f in report.features.items() if name not in ENDS}
    low = [name for name, share in shares.items() if share < STRONG]
    sentences = []
    if low and len(low) < len(shares):
        sentences.append(f"The first layer that uses less than {STRONG:.0%} of its directions is {short_name(low[0])}.")
    elif low:
        sentences.append(f"Every layer uses less than {STRONG:.0%} of its directions, from {short_name(low[0])} on.")
    elif shares:
        sentences.append("All layers before the representation keep more: it is lost in the last step.")
    if INPUT in report.features:
        f = report.features[INPUT]
        sentences.append(
            f"The images themselves have an effective rank of {_number(f.effective_rank)}, so that they are not the "
            "cause."
            if _share(f) >= STRONG or f.effective_rank > 2 * report.features[REPRESENTATION].effective_rank
            else "The images themselves vary little: look at them."
        )
    shares = {name: w.effective_rank / min(w.shape) for name, w in report.weights.items()}
    weak = [name for name, share in shares.items() if share < STRONG]
    if weak:
        worst = min(weak, key=shares.__getitem__)
        sentences.append(
            f"{len(weak)} of {len(shares)} weight matrices use less than {STRONG:.0%} of their directions, "
            f"{short_name(worst)} the least: {_number(report.weights[worst].effective_rank)} of "
            f"{min(report.weights[worst].shape)}."
        )
    return sentences


def _share(spectrum: FeatureSpectrum) -> float:
    return spectrum.effective_rank / max(spectrum.most_positive, 1)


def _over_time(run: Run) -> list[str]:
    ranks = run.series(RANK)
    if len(ranks) < 2:
        return []
    (first, before), (last, after) = ranks[0], ranks[-1]
    count = run.settings.get("spectra_images")
    # Fewer images show fewer directions, so that these numbers differ from that of the end.
    on = f" of {count:,} images" if isinstance(count, int) else ""
    if abs(after - before) <= 0.05 * before:
        return [f"During training, its effective rank{on} stayed at {_number(after)} from step {first:,} to {last:,}."]
    return [
        f"During training, its effective rank{on} was {_number(before)} at step {first:,} and {_number(after)} at step "
        f"{last:,}."
    ]


def _accuracy(run: Run) -> list[str]:
    if len(run.accuracies) < 2:
        return []
    before, after = run.accuracies[0], run.accuracies[-1]
    return [f"kNN accuracy was {before:.3f} before training and is {after:.3f} now."]


def _advice(run: Run) -> list[str]:
    """Return what to try, with the values that the run used."""
    used: dict[str, Any] = run.settings | (run.record.training if run.record else {})
    rate, decay = used.get("learning_rate"), used.get("weight_decay")
    advice = []
    if rate is not None:
        peak = f"{rate:g}" if isinstance(rate, int | float) else str(rate)
        advice.append(f"Lower the learning rate (its peak was {peak}): try a tenth of it.")
    if isinstance(decay, int | float) and decay > 0:
        advice.append(f"Lower the weight decay (it was {decay:g}).")
    regularizer = run.settings.get("regularizer")
    if regularizer in (None, "none"):
        advice.append("Add the orthogonality penalty, which keeps the directions of the weights: --regularizer so.")
    elif isinstance(run.settings.get("gamma"), int | float):
        advice.append(f"Raise γ of the penalty (it was {run.settings['gamma']:g}), or pass --gamma auto.")
    advice.append(
        "Let orthossl compare find which remedy works on these images; with --stop_on_collapse yes and "
        "--spectra_images 512 such a run ends by itself."
    )
    return advice


def _number(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1}f}"
