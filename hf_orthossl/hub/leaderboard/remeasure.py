"""Evaluation measured again on published weights, by the protocols that the author's claims name."""

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from ...data import ImageSource, load_source
from ...evaluation import (
    FeatureCache,
    KNNMonitor,
    LabelledFeatures,
    Result,
    knn_results,
    labelled_splits,
    linear_results,
    transfer_sets,
)
from ..client import hub_id, public_name
from ..measurements import measurements_of
from .schema import Measured
from .splits import learned_from, overlap
from .verification import interval

# Nobody's claim may keep this machine busy for days.
MOST_EPOCHS, MOST_NEIGHBOURS = 1000, 10_000
DEFAULT = "k = 20, temperature = 0.07"


@dataclass(frozen=True)
class Data:
    """Where claims are measured again.

    Args:
        dataset (`str`, *optional*): In place of what the claims name: a folder of images, say.
        name, train_split, test_split, image_column, label_column (`str`, *optional*): As `orthossl evaluate` takes
            them.
    """

    dataset: str | None = None
    name: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None


def remeasure(
    encoder: nn.Module,
    claims: list[Measured],
    data: Data,
    *,
    seed: int = 0,
    cache: FeatureCache | None = None,
    progress: bool = False,
) -> tuple[list[Measured], list[str]]:
    """kNN accuracy and linear probes anew, once for each protocol of the claims; kNN alone if nothing is claimed.

    Args:
        encoder (`nn.Module`): With the published weights, in evaluation mode.
        claims (`list[Measured]`): What the author says.
        data ([`Data`]): What to measure on.
        seed (`int`, defaults to 0): Of the training run, which chose the images of its own kNN accuracy.
        cache ([`FeatureCache`], *optional*): Where features are kept.
        progress (`bool`, defaults to `False`): Show progress bars.

    Returns:
        what was measured, with 95 % intervals, and one sentence for each claim that was not.

    Raises:
        ValueError, OSError: a data set given by name cannot be used.
    """
    notes: dict[str, None] = {}
    groups: dict[tuple[str, str, str], list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for claim in claims:
        location = _location(claim.dataset, data.dataset)
        protocol = parse_protocol(claim.protocol)
        reason = _not_again(claim, location, protocol)
        if reason:
            notes[f"{claim.task} {claim.metric} on {claim.dataset}: {reason}"] = None
            continue
        kind = "monitor" if "bank" in protocol else "frozen"
        groups[location, data.test_split or claim.split, kind].append((claim.task, protocol))
    if not claims:
        groups[data.dataset or "digits", data.test_split or "test", "frozen"] = [("knn", parse_protocol(DEFAULT))]
    results: list[Result] = []
    for (location, split, kind), asked in groups.items():
        measure = _monitored if kind == "monitor" else _frozen
        try:
            results += measure(encoder, location, split, data, asked, seed, cache, progress)
        except (ValueError, OSError) as error:
            if data.dataset is not None or not claims:
                raise
            # A stranger's claim on data that nobody can load leaves the others to be measured.
            notes[f"claims on {location}, {split}: not measured again ({error})"] = None
    return _measured(results), list(notes)


def parse_protocol(text: str) -> dict[str, str]:
    """ "sgd, epochs = 100" → `{"protocol": "sgd", "epochs": "100"}`; a lone word says which probe, or a plain vote."""
    settings = {}
    for part in text.split(", "):
        name, found, value = part.partition(" = ")
        settings[name if found else "protocol"] = value if found else part
    return settings


def _not_again(claim: Measured, location: str | None, protocol: dict[str, str]) -> str | None:
    if claim.task not in ("knn", "linear"):
        return f"not measured again, only kNN and linear probes are; orthossl evaluate --task {claim.task} measures it"
    if claim.metric not in ("top1", "top5"):
        return f"{claim.metric} is not measured again"
    if learned_from(claim.split, None):
        return f"the split {claim.split} was learned from"
    if location is None:
        return f"pass --dataset {claim.dataset} to measure it again"
    if claim.task == "linear" and protocol.get("protocol") not in ("sgd", "lbfgs"):
        return "the protocol names neither sgd nor lbfgs"
    numbers = {"k": MOST_NEIGHBOURS, "epochs": MOST_EPOCHS, "bank": 10**6, "queries": 10**6, "batch_size": 10**6}
    for name, most in numbers.items():
        if name in protocol and not (re.fullmatch(r"\d{1,7}", protocol[name]) and 0 < int(protocol[name]) <= most):
            return f"its {name} must be a whole number up to {most:,}"
    for name in ("temperature", "learning_rate", "weight_decay", "label_noise", "imbalance"):
        if name in protocol and not re.fullmatch(r"\d{0,4}\.?\d{0,12}(e-?\d\d?)?", protocol[name] or "?"):
            return f"its {name} must be a number"
    if claim.task == "knn" and ("k" not in protocol or ("temperature" in protocol) == ("protocol" in protocol)):
        return "the protocol must say k, and temperature or plain vote"
    return None


def _check_held_out(train: ImageSource, test: ImageSource) -> None:
    if train.split and test.split and overlap(train.split, test.split):
        raise ValueError(
            f"test_split={test.split!r} shares images with train_split={train.split!r}: name splits that share none"
        )


def _location(dataset: str, given: str | None) -> str | None:
    """What to load for a claim's data: a stranger's words fetch well-known data alone, and never a folder here."""
    if given is not None:
        return given if public_name(given).lower() == dataset.lower() else None
    if dataset == "digits":
        return dataset
    known = {entry.dataset.lower(): entry.dataset for entry in transfer_sets()}
    found = known.get(dataset.lower())
    return found if found and hub_id(found) else None


def _frozen(encoder, location, split, data, asked, seed, cache, progress) -> list[Result]:
    columns = {"name": data.name, "image_column": data.image_column, "label_column": data.label_column}
    splits = labelled_splits(location, train_split=data.train_split, test_split=split, **columns)
    _check_held_out(*splits)
    features = LabelledFeatures.extract(encoder, *splits, cache, progress=progress)
    results, votes, probes = [], defaultdict(dict), {}
    for task, protocol in asked:
        if task == "knn":
            temperature = float(protocol["temperature"]) if "temperature" in protocol else None
            votes[int(protocol["k"])][temperature] = None
        else:
            probe = tuple(sorted((name, value) for name, value in protocol.items() if name in _PROBE))
            probes[probe] = None
    for k, temperatures in votes.items():
        results += knn_results(features, k=k, temperatures=list(temperatures))
    for probe in probes:
        # What was chosen on the training images is chosen again.
        settings = {name: _PROBE[name](value) for name, value in probe}
        if settings["protocol"] == "lbfgs":
            settings = {n: v for n, v in settings.items() if n in ("protocol", "label_noise", "imbalance")}
        results += linear_results(features, seeds=(seed,), progress=progress, **settings)
    return results


def _monitored(encoder, location, split, data, asked, seed, cache, progress) -> list[Result]:
    """The kNN accuracy that a training run takes on some of the images."""
    columns = {"name": data.name, "image_column": data.image_column, "label_column": data.label_column}
    source = load_source(location, split=data.train_split, **columns)
    held_out = load_source(location, split=split, **columns)
    _check_held_out(source, held_out)
    results = []
    for settings in {tuple(sorted(p.items())): p for _, p in asked}.values():
        bank, queries = int(settings["bank"]), int(settings.get("queries", 1))
        # The number of images that gives this bank and these queries.
        images = max(bank, 2 * queries)
        temperature = float(settings["temperature"]) if "temperature" in settings else None
        monitor = KNNMonitor(
            source,
            held_out,
            encoder.image_size,
            images=images,
            k=int(settings["k"]),
            temperature=temperature,
            seed=seed,
            progress=progress,
        )
        results += monitor.measure(encoder, "end")
    return results


def _measured(results: list[Result]) -> list[Measured]:
    found = {}
    for result in results:
        (measurement,) = measurements_of([result])
        count = result.settings.get("test_images") or result.settings.get("queries") or 1
        low, high = interval(measurement.value, count)
        about = (measurement.task, measurement.dataset, measurement.split, measurement.metric, measurement.value)
        measured = Measured(*about, measurement.protocol, low, high, "board")
        found[measured.key] = measured
    return list(found.values())


_PROBE = {
    "protocol": str,
    "epochs": int,
    "batch_size": int,
    "learning_rate": float,
    "weight_decay": float,
    "label_noise": float,
    "imbalance": float,
}
