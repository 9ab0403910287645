"""Measure published weights again: accuracies by the protocols that the author's claims state, and spectra."""

import datetime
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .... import __version__
from ....data import ImageDataset, ImageSource, load_source
from ....encoders import Encoder, load_encoder
from ....encoders.budget import deadline, image_cost
from ....encoders.channels import common_channels
from ....encoders.embedding import normalized_batches
from ....evaluation import (
    FeatureCache,
    KNNMonitor,
    LabelledFeatures,
    Result,
    knn_results,
    labelled_splits,
    linear_results,
    transfer_sets,
)
from ....evaluation.knn import NEIGHBOURS, TEMPERATURE
from ....evaluation.results import learned_from, overlap
from ....messages import readable_size
from ....spectra import SpectralReport, spectral_report
from ...client import hub_id, public_name
from ...encoder_folder import spectra_rows
from ..board.collect import find, read_published
from ..fetch import Fetcher
from ..schema import LARGEST, BoardResult, Entry, Rejection, evenly, shown
from .check import CONFIG, SCALARS, Published, check
from .parse import parse_object
from .read import NOT_STATED, on_board
from .spectra import REPRESENTATION
from .verify import Comparison, Verification, compare, interval, spectra_digest

# Between spectra of the same weights taken on different machines: relative to the number, and on a curve in [0, 1].
TOLERANCE = 0.01
# Limits of what untrusted weights and claims may make this machine compute: seconds in all, bytes of weights, the side
# of an image in pixels, floating-point operations for one, and bytes of the largest activation of one batch.
MAX_SECONDS = 2 * 3600
MAX_WEIGHTS, MAX_SIDE, MAX_FLOP, MAX_ACTIVATION = 8 * 2**30, 512, 1e12, 16 * 2**30
# Images of a batch, from which features are extracted.
BATCH = 256
_WHOLE = {"k": 10_000, "epochs": 1000, "bank": 10**6, "queries": 10**6, "batch_size": 10**6}
_WHOLE |= {"unreadable_train_images": 10**6, "unreadable_test_images": 10**6}
_REAL = ("temperature", "learning_rate", "weight_decay", "label_noise", "imbalance")
_PROBE = ("protocol", "epochs", "batch_size", "learning_rate", "weight_decay", "label_noise", "imbalance")
# What L-BFGS takes of these; it chooses the rest on the training images again.
_LBFGS = ("protocol", "label_noise", "imbalance")
_DEFAULT = {"k": NEIGHBOURS, "temperature": TEMPERATURE}
# Tasks with their protocols.
_Wanted = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Data:
    """The data that claims are measured on, by the options of `orthossl evaluate`."""

    # Used instead of the data that claims name, such as a folder of images.
    dataset: str | None = None
    name: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    @property
    def columns(self) -> dict[str, str | None]:
        """Return the options that both splits share."""
        return {"name": self.name, "image_column": self.image_column, "label_column": self.label_column}


@dataclass(frozen=True)
class Verified:
    """Outcome of [`verify`]."""

    # What the author published: what passed the checks, and what failed.
    entry: Entry
    rejected: list[Rejection]
    # The measurements, and the claims beside them.
    verification: Verification
    compared: list[Comparison]
    # What was not measured again, and why.
    notes: list[str]


def verify(
    model: str,
    data: Data | None = None,
    *,
    device: str | None = None,
    token: str | None = None,
    cache: FeatureCache | None = None,
    progress: bool = False,
    seconds: float = MAX_SECONDS,
) -> Verified:
    """Download an encoder's published weights at one commit, and measure them again.

    Published spectra may differ by 1 % (`TOLERANCE`) from those that are taken here, since machines round differently,
    and an accuracy by its 95 % interval. An encoder of more than 8 GiB, 512 pixels, 1 TFLOP an image or 16 GiB for an
    activation of a batch is not measured.

    Args:
        model (`str`): Hub id "owner/name", optionally with `@revision`.
        data ([`Data`], *optional*): What to measure on; the data that the claims name by default.
        device (`str`, *optional*): Such as "cpu"; CUDA where available by default.
        token (`str`, *optional*): As in [`Fetcher`].
        cache ([`FeatureCache`], *optional*): Where features are kept; nowhere by default.
        progress (`bool`, defaults to `False`): Show progress bars.
        seconds (`float`, defaults to 7200): When to stop, without a result.

    Raises:
        ValueError: `model` is not a Hub id or has no place on a board, the weights or data cannot be used or are beyond
            the limits, or the time is over.
        OSError: The Hub or the data cannot be read.
    """
    repo_id, fetcher = hub_id(model), Fetcher(token=token)
    if repo_id is None:
        raise ValueError(f"{model!r} is not a Hub id of the form owner/name: publish the encoder first")
    published, rejected = read_published(fetcher, find(fetcher, repo_id, model.partition("@")[2] or "main"))
    entry, more = check(published)
    if entry is None:
        raise ValueError(f"{model} has no place on a board: " + "; ".join(f"{r.field} {r.reason}" for r in more))
    size = sum(size for name, size in published.sizes.items() if name.endswith(".safetensors"))
    if size > MAX_WEIGHTS:
        raise ValueError(f"{model} has {readable_size(size)} of weights: at most {MAX_WEIGHTS >> 30} GiB are verified")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with deadline(f"{model} was not measured within {seconds:.0f} s: pass --max_minutes for more", seconds):
        return _verify(entry, published, rejected + more, data or Data(), device, cache, progress)


def _verify(
    entry: Entry,
    published: Published,
    rejected: list[Rejection],
    data: Data,
    device: str,
    cache: FeatureCache | None,
    progress: bool,
) -> Verified:
    encoder = load_encoder(f"hf-hub:{entry.repo_id}@{entry.revision}", pretrained=True).eval()
    _check_cost(entry.repo_id, encoder)
    try:
        encoder.to(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} cannot be used: pass --device cpu") from error
    block = parse_object(published.files[CONFIG], CONFIG)["orthossl"]
    training = block.get("training")
    seed = training.get("seed") if isinstance(training, dict) else None
    seed = seed if type(seed) is int and 0 <= seed < 2**32 else 0
    results, notes = remeasure(encoder, entry.results, data, seed=seed, cache=cache, progress=progress)
    trained_on = block.get("split") if isinstance(block.get("split"), str) else None
    own = (entry.pretrained_on or "").lower()
    seen = [r for r in results if learned_from(r.split, trained_on if r.dataset.lower() == own else None)]
    results = [result for result in results if result not in seen]
    notes += sorted(f"{r.task} {r.metric} on {r.dataset}: its {r.split} was learned from" for r in seen)
    # Only data that were measured on or named by the user are loaded for the spectra.
    known = {result.dataset for result in results} | {data.dataset, "digits"}
    wrong, not_taken = recompute(entry, published, encoder, known)
    verification = Verification(
        repo_id=entry.repo_id,
        revision=entry.revision,
        weights=entry.weights,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        results=results,
        spectra=wrong,
        digest=spectra_digest(entry.spectra) if entry.spectra else None,
        record=wrong_record(block, encoder),
    )
    return Verified(entry, rejected, verification, compare(entry.results, results), notes + not_taken)


def remeasure(
    encoder: Encoder,
    claims: list[BoardResult],
    data: Data,
    *,
    seed: int = 0,
    cache: FeatureCache | None = None,
    progress: bool = False,
) -> tuple[list[BoardResult], list[str]]:
    """Measure kNN accuracy and linear probes, once for each protocol of the claims; kNN alone without claims.

    `seed` is that of the training run, which chose the images of its own kNN accuracy. A data set that `data` names and
    that cannot be read or used raises `OSError` or `ValueError`; one that a claim names does not.

    Returns:
        `tuple[list[BoardResult], list[str]]`: Results with 95 % intervals, and one sentence for each claim that was not
        measured.
    """
    notes: dict[str, None] = {}
    groups: dict[tuple[str, str, bool], _Wanted] = defaultdict(list)
    for claim in claims:
        location = _location(claim.dataset, data.dataset)
        reason = _not_measured(claim, location)
        if reason or location is None:
            notes[f"{claim.task} {claim.metric} on {claim.dataset}: {reason}"] = None
            continue
        split = data.test_split or ("test" if claim.split == NOT_STATED else claim.split)
        groups[location, split, "bank" in claim.protocol].append((claim.task, claim.protocol))
    if not claims:
        groups[data.dataset or "digits", data.test_split or "test", False] = [("knn", _DEFAULT)]
    results: list[Result] = []
    for (location, split, by_monitor), wanted in groups.items():
        try:
            if by_monitor:
                results += _monitored(encoder, location, split, data, wanted, seed, progress)
            else:
                results += _frozen(encoder, location, split, data, wanted, seed, cache, progress)
        except (ValueError, OSError) as error:
            if data.dataset is not None or not claims:
                raise
            # A claim about data that cannot be loaded does not keep the others from being measured.
            notes[f"claims on {location}, {split}: not measured again ({error})"] = None
    return list({result.key: _with_interval(result) for result in results}.values()), list(notes)


def recompute(
    entry: Entry, published: Published, encoder: Encoder, datasets: Collection[str | None] = ("digits",)
) -> tuple[str | None, list[str]]:
    """Return what is wrong with the published spectra, as in [`Verification`], and what was not compared.

    The spectra of the weights are always taken; those of the features where the training data are among `datasets`.
    """
    if entry.spectra is None:
        return None, ["there are no published spectra to compare with"]
    scalars = parse_object(published.files[SCALARS], SCALARS)
    block = parse_object(published.files[CONFIG], CONFIG)["orthossl"]
    images, notes = _images(entry, block.get("split"), encoder, datasets)
    report = spectral_report(encoder, images)
    claimed, measured = scalars["weights"], report.weights
    if set(measured) != set(claimed):
        return f"the spectra are of {len(claimed)} weights that are not the {len(measured)} of the encoder", notes
    wrong = _wrong_scalars(measured, claimed, "effective_rank", "gram_frobenius", "gram_sigma_max")
    wrong = wrong or _wrong_curves(report, entry.spectra.curves)
    if images is not None and not wrong:
        features = {REPRESENTATION: report.features[REPRESENTATION]}
        wrong = _wrong_scalars(features, scalars["features"], "effective_rank", "rankme", "participation_ratio")
    return wrong or "", notes


def wrong_record(block: dict[str, Any], encoder: Encoder) -> str:
    """Return which entry of the record the encoder's own configuration contradicts, or an empty text."""
    for name in ("mean", "std", "image_size", "num_features", "pooling"):
        said, own = block.get(name), getattr(encoder, name)
        if isinstance(own, tuple):
            numbers = said if isinstance(said, list) and all(type(a) in (int, float) for a in said) else []
            agrees = len(numbers) == len(own) and np.allclose(numbers, own, rtol=0, atol=1e-3)
        else:
            agrees = type(said) is type(own) and said == own
        if not agrees:
            shown_own = [*own] if isinstance(own, tuple) else own
            return (
                f"the record says {name} = {shown(said)}; by its own configuration the encoder has {shown(shown_own)}"
            )
    return ""


def _check_cost(name: str, encoder: Encoder) -> None:
    """Refuse an encoder whose images cost more than is spent on a stranger's.

    Raises:
        ValueError: The images are too large, or take too many operations or too much memory.
    """
    flop, activation = image_cost(encoder, encoder.image_size, encoder.channels)
    needed = 4 * BATCH * activation
    if encoder.image_size > MAX_SIDE or flop > MAX_FLOP or needed > MAX_ACTIVATION:
        raise ValueError(
            f"{name} takes {flop / 1e9:,.0f} GFLOP for an image of {encoder.image_size} pixels and "
            f"{readable_size(needed)} for an activation of {BATCH}: at most {MAX_FLOP / 1e9:,.0f} GFLOP, "
            f"{MAX_SIDE} pixels and {MAX_ACTIVATION >> 30} GiB are verified"
        )


def _location(dataset: str, given: str | None) -> str | None:
    """Return what to load for a claim's data: an untrusted name loads well-known data only, never a local folder."""
    if given is not None:
        return given if public_name(given).lower() == dataset.lower() else None
    if dataset == "digits":
        return dataset
    known = {entry.dataset.lower(): entry.dataset for entry in transfer_sets()}
    location = known.get(dataset.lower())
    return location if location and hub_id(location) else None


def _not_measured(claim: BoardResult, location: str | None) -> str | None:
    """Return why a claim is not measured again, or `None`."""
    protocol = claim.protocol
    if claim.task not in ("knn", "linear"):
        return f"not measured again, only kNN and linear probes are; orthossl evaluate --task {claim.task} measures it"
    if claim.metric not in ("top1", "top5"):
        return f"{claim.metric} is not measured again"
    if learned_from(claim.split, None):
        return f"the split {claim.split} was learned from"
    if location is None:
        return f"pass --dataset {claim.dataset} to measure it again"
    if claim.task == "linear" and protocol.get("protocol") not in ("sgd", "lbfgs"):
        return "its protocol names neither sgd nor lbfgs"
    for name, value in protocol.items():
        if name in _WHOLE and not (type(value) is int and 0 < value <= _WHOLE[name]):
            return f"its {name} must be a whole number up to {_WHOLE[name]:,}"
        # A plain vote has the temperature `None`.
        is_plain = name == "temperature" and value is None
        if name in _REAL and type(value) not in (int, float) and not is_plain:
            return f"its {name} must be a number"
    if claim.task == "knn" and not {"k", "temperature"} <= protocol.keys():
        return "its protocol must state k and temperature"
    return None


def _check_held_out(train: ImageSource, test: ImageSource) -> None:
    if train.split and test.split and overlap(train.split, test.split):
        raise ValueError(
            f"test_split={test.split!r} shares images with train_split={train.split!r}: name splits that share none"
        )


def _frozen(
    encoder: Encoder,
    location: str,
    split: str,
    data: Data,
    wanted: _Wanted,
    seed: int,
    cache: FeatureCache | None,
    progress: bool,
) -> list[Result]:
    splits = labelled_splits(
        location, train_split=data.train_split, test_split=split, channels=_channels(encoder), **data.columns
    )
    _check_held_out(*splits)
    features = LabelledFeatures.extract(encoder, *splits, cache, progress=progress)
    results: list[Result] = []
    votes: dict[int, dict[float | None, None]] = defaultdict(dict)
    probes: dict[tuple, None] = {}
    for task, protocol in wanted:
        if task == "knn":
            votes[protocol["k"]][protocol["temperature"]] = None
        else:
            names = _LBFGS if protocol["protocol"] == "lbfgs" else _PROBE
            probes[tuple((name, protocol[name]) for name in names if name in protocol)] = None
    for k, temperatures in votes.items():
        results += knn_results(features, k=k, temperatures=list(temperatures))
    for probe in probes:
        results += linear_results(features, seeds=(seed,), progress=progress, **dict(probe))
    return results


def _monitored(
    encoder: Encoder, location: str, split: str, data: Data, wanted: _Wanted, seed: int, progress: bool
) -> list[Result]:
    """Measure the kNN accuracy that a training run takes on some of the images."""
    reading = {"channels": _channels(encoder), **data.columns}
    source = load_source(location, split=data.train_split, **reading)
    held_out = load_source(location, split=split, **reading)
    _check_held_out(source, held_out)
    results = []
    for protocol in {tuple(sorted(p.items(), key=str)): p for _, p in wanted}.values():
        monitor = KNNMonitor(
            source,
            held_out,
            encoder.image_size,
            # The number of images that gives this bank and these queries.
            images=max(
                protocol["bank"] + protocol.get("unreadable_train_images", 0),
                2 * (protocol.get("queries", 1) + protocol.get("unreadable_test_images", 0)),
            ),
            k=protocol["k"],
            temperature=protocol["temperature"],
            seed=seed,
            progress=progress,
        )
        results += monitor.measure(encoder, "end")
    return results


def _channels(encoder: Encoder) -> int | None:
    """Return the number of channels with which images are read for an encoder; `None` for RGB."""
    return common_channels({encoder.name: encoder})


def _with_interval(result: Result) -> BoardResult:
    low, high = interval(result.value, result.protocol.get("test_images") or result.protocol.get("queries") or 1)
    return on_board(replace(result, dataset=public_name(result.dataset)), low=low, high=high, source="board")


def _images(
    entry: Entry, split: object, encoder: Encoder, datasets: Collection[str | None]
) -> tuple[Iterable | None, list[str]]:
    """Return the images behind the features' spectra, as training chose them; `None` if they cannot be loaded."""
    name, summary = entry.pretrained_on or "", entry.spectra.summary if entry.spectra else {}
    count = int(summary.get("num_images", 0))
    if not count:
        return None, []
    note = f"spectra of features were not taken again: {{}} ({name or 'no name'})"
    if name not in datasets:
        return None, [note.format("the training data are not among those measured on")]
    try:
        source = load_source(name, split=split if isinstance(split, str) else None, channels=_channels(encoder))
    except (ValueError, OSError):
        return None, [note.format("the training data cannot be loaded")]
    rows = spectra_rows(source.num_rows)
    if len(rows) != count:
        return None, [note.format(f"they are of {count:,} images, not of the {len(rows):,} that training takes")]
    measured = ImageDataset(source, image_size=encoder.image_size, indices=rows, unreadable="omit")
    return normalized_batches(encoder, measured), []


def _wrong_scalars(spectra: Mapping[str, Any], claimed: dict, *keys: str) -> str | None:
    for name, spectrum in spectra.items():
        for key in keys:
            said, ours = claimed.get(name, {}).get(key), getattr(spectrum, key)
            # The bounds also reject integers too large for a float.
            is_number = type(said) in (int, float) and 0 <= said <= LARGEST
            if not is_number or not abs(said - ours) <= TOLERANCE * max(ours, 1e-3):
                return (
                    f"the {key} of {name} is published as {shown(said)}; recomputed from the published weights it is "
                    f"{ours:.4g}"
                )
    return None


def _wrong_curves(report: SpectralReport, curves: dict[str, list[float]]) -> str | None:
    """Compare the curves of the weights, as the page draws them."""
    for name, curve in curves.items():
        spectrum = report.weights.get(name.removeprefix("weights/"))
        if not name.startswith("weights/") or spectrum is None:
            continue
        ranks = np.array(evenly(len(spectrum.eigenvalues), len(curve))) - 1
        same_length = len(ranks) == len(curve)
        apart = np.abs(spectrum.eigenvalues.numpy()[ranks] - np.array(curve)).max() if same_length else 1.0
        if apart > TOLERANCE:
            return f"the curve of {name} is not that of the published weights: recomputed, it is {apart:.2g} away"
    return None
