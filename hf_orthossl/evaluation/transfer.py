"""The transfer suite: one encoder, many data sets, a probe on each; what is measured once is not measured again."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from torch import nn

from ..data import ImageSource, available_splits
from ..distributed.collectives import rank
from ..messages import suggest
from .features import FeatureCache, encoder_key
from .frozen import LabelledFeatures, knn_results, labelled_splits, linear_results
from .results import Result, read_results, write_results

TABLE = Path(__file__).with_name("transfer_sets.yaml")
PROBES = ("linear", "knn")


@dataclass(frozen=True)
class TransferSet:
    """A data set of the transfer suite.

    Args:
        name (`str`): Short name, "cifar10".
        dataset (`str`): Hub id or folder.
        train_split, test_split, image_column, label_column (`str`, *optional*): Found by their usual names otherwise.
        metric (`str`, defaults to "top1"): "top1" or "mean_per_class".
        num_classes, train_images, test_images (`int`, *optional*): What the standard set has; differences are noted.
        verified (`str`): What stands behind the entry, see `transfer_sets.yaml`.
        local (`bool`): Whether a folder stands in for the set on the Hub.
    """

    name: str
    dataset: str
    train_split: str | None = None
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    metric: str = "top1"
    num_classes: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    verified: str = "named by the user"
    local: bool = False

    def open(self) -> tuple[ImageSource, ImageSource]:
        """Training and test split.

        Raises:
            ValueError, OSError: as in [`labelled_splits`].
        """
        splits = {"train_split": self.train_split, "test_split": self.test_split}
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        if self.local:
            # A folder may name its parts otherwise; its columns are found by type.
            there = available_splits(self.dataset)
            splits = {key: split for key, split in splits.items() if split and set(split.split("+")) <= set(there)}
            columns = {}
        return labelled_splits(self.dataset, **splits, **columns)


@dataclass
class Transfer:
    """What [`transfer_suite`] gives.

    Args:
        results (`list[Result]`): Of the task "transfer": one for each set, probe and seed.
        failures (`dict[str, str]`): Set → why there is no result.
        notes (`list[str]`): What a reader of the numbers must know, one sentence each.
    """

    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def transfer_sets(names: Sequence[str] | None = None, folder: str | Path | None = None) -> list[TransferSet]:
    """The sets of these names.

    Args:
        names (`Sequence[str]`, *optional*): Of `transfer_sets.yaml`, or any Hub id, folder or "digits"; by default the
            six of the paper (He, Du & Ma 2024).
        folder (`str` or `Path`, *optional*): Where a subfolder has the name of a set, it is read instead of the Hub.

    Raises:
        ValueError: a name is none of these; the nearest is named.
        FileNotFoundError: there is no such folder.
    """
    known = {name: TransferSet(name, **entry) for name, entry in yaml.safe_load(TABLE.read_text()).items()}
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"transfer_data {folder}: no such folder; pass one with a subfolder for each set")
    found = []
    for name in names or known:
        own = None if folder is None else Path(folder) / name
        entry = known.get(name)
        if own is not None and own.is_dir():
            found.append(dataclasses.replace(entry or TransferSet(name, ""), dataset=str(own), local=True))
        elif entry is None and not (name == "digits" or "/" in name or Path(name).is_dir()):
            raise ValueError(f"transfer set {name!r} is unknown: {suggest(name, known)} (or any Hub id or folder)")
        else:
            found.append(entry or TransferSet(name, name))
    return found


def transfer_suite(
    encoder: nn.Module,
    sets: Sequence[TransferSet] | None = None,
    *,
    model: str = "",
    results_file: str | Path | None = None,
    cache: FeatureCache | None = None,
    probes: Sequence[str] = ("linear",),
    seeds: Sequence[int] = (0,),
    progress: bool = False,
    say: Callable[[str], None] | None = None,
    extraction: Mapping[str, int] | None = None,
    k: int = 200,
    **settings,
) -> Transfer:
    """Probes an encoder on every set, one after the other; a set that fails does not stop the others.

    Args:
        encoder ([`Encoder`]): What to measure, frozen.
        sets (`Sequence[TransferSet]`, *optional*): From [`transfer_sets`]; the paper's six by default.
        model (`str`): Name of the encoder in the results.
        results_file (`str` or `Path`, *optional*): Written after each set. Sets that it already holds for the same
            encoder and settings are not measured again; everything else in it stays.
        cache ([`FeatureCache`], *optional*): Of extracted features.
        probes (`Sequence[str]`, defaults to ("linear",)): "linear", the paper's; "knn" with T 0.07.
        seeds (`Sequence[int]`, defaults to (0,)): Linear probes, one each.
        progress (`bool`, defaults to `False`): Show progress bars.
        say (`Callable`, *optional*): Told in one line how each set went.
        extraction (`Mapping`, *optional*): Further arguments of [`extract_features`], such as `batch_size`. With
            `shared` all processes of the run call, and the main process alone probes and writes: the others get no
            results.
        k (`int`, defaults to 200): Neighbours that vote.
        settings: Further arguments of [`linear_results`], such as `protocol` and `epochs`.

    Raises:
        ValueError: a probe is unknown, or `results_file` is not of its form.
    """
    for probe in probes:
        if probe not in PROBES:
            raise ValueError(f"probe {probe!r} is unknown: choose from {', '.join(PROBES)}")
    path = None if results_file is None else Path(results_file)
    earlier = read_results(path) if path is not None and path.exists() else []
    weights, outcome = encoder_key(encoder), Transfer()
    for entry in transfer_sets() if sets is None else sets:
        about = [weights, dataclasses.asdict(entry), sorted(probes), k, list(seeds), settings]
        run = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        results = [result for result in earlier if result.protocol.get("run") == run]
        told = f"kept from {path}"
        if results:
            # The same weights may go by another name now.
            results = [dataclasses.replace(r, protocol=r.protocol | {"model": model}) for r in results]
            earlier = [result for result in earlier if result.protocol.get("run") != run]
        else:
            try:
                train, test = entry.open()
                features = LabelledFeatures.extract(
                    encoder, train, test, cache, progress=progress, **(extraction or {})
                )
                probing = rank() == 0 or not (extraction or {}).get("shared")
                results = _probed(features, probes if probing else (), k=k, seeds=seeds, progress=progress, **settings)
            except (ValueError, OSError, ArithmeticError) as error:
                outcome.failures[entry.name] = " ".join(str(error).split())
                told = f"failed: {outcome.failures[entry.name]}"
            else:
                notes = [*features.notes, *_differences(entry, features)]
                results = [_as_transfer(result, entry, notes, model, run) for result in results]
                told = f"{len(features.train):,} training and {len(features.test):,} test images"
        for note in results[0].protocol.get("notes", ()) if results else ():
            outcome.notes.append(f"{entry.name}: {note}")
        if say is not None:
            say(f"{entry.name:<12} {told}")
        outcome.results += results
        if path is not None and results:
            write_results(path, [*earlier, *outcome.results])
    return outcome


def with_earlier(path: Path, results: list[Result]) -> list[Result]:
    """Results with the transfer results that a file already holds and that are not among them."""
    runs = {result.protocol.get("run") for result in results}
    earlier = read_results(path) if path.exists() else []
    return results + [r for r in earlier if r.task == "transfer" and r.protocol.get("run") not in runs]


def _probed(
    features: LabelledFeatures, probes: Sequence[str], *, k: int, seeds: Sequence[int], progress: bool, **settings
) -> list[Result]:
    """Top-1 of each probe and seed."""
    results = linear_results(features, seeds=seeds, progress=progress, **settings) if "linear" in probes else []
    if "knn" in probes:
        results += knn_results(features, k=k, temperatures=(0.07,))
    return [result for result in results if result.metric == "top1"]


def _as_transfer(result: Result, entry: TransferSet, notes: list[str], model: str, run: str) -> Result:
    """A probe's top-1 result in the set's own metric."""
    settings, value = dict(result.protocol), result.value
    own = settings.pop("mean_per_class")
    if entry.metric == "mean_per_class":
        value = own
        del settings["interval"]
    about = {"model": model, "set": entry.name, "probe": result.task, **settings, "notes": notes, "run": run}
    return Result("transfer", result.dataset, result.split, entry.metric, value, about)


def _differences(entry: TransferSet, features: LabelledFeatures) -> list[str]:
    """Where a set is not the standard one."""
    notes = [f"read from the folder {entry.dataset}, not from the Hub."] if entry.local else []
    found = {
        "classes": (len(features.class_names), entry.num_classes),
        "training images": (len(features.train), entry.train_images),
        "test images": (len(features.test), entry.test_images),
    }
    return notes + [
        f"{have:,} {what} where the standard set has {standard:,}."
        for what, (have, standard) in found.items()
        if standard is not None and have != standard
    ]
