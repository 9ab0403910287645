"""The transfer suite: probe one encoder on many data sets, and skip those that were already measured."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..data import ImageSource, available_splits
from ..distributed.collectives import rank
from ..encoders import Encoder
from ..messages import suggest
from .features import FeatureCache, encoder_key
from .frozen import LabelledFeatures, knn_results, labelled_splits, linear_results
from .knn import NEIGHBOURS
from .results import Result, read_results, write_results

TABLE = Path(__file__).with_name("transfer_sets.yaml")
PROBES = ("linear", "knn")


@dataclass(frozen=True)
class TransferSet:
    """A data set of the transfer suite.

    Args:
        name (`str`): Short name, such as "cifar10".
        dataset (`str`): Hub id or folder.
        train_split (`str`, *optional*): The training split; "train" by default.
        test_split (`str`, *optional*): The test split; found by its usual names by default.
        image_column (`str`, *optional*): Column of images; found by type by default.
        label_column (`str`, *optional*): Column of labels; found by type by default.
        metric (`str`, defaults to "top1"): "top1" or "mean_per_class".
        num_classes (`int`, *optional*): Number of classes of the standard set; a difference is noted.
        train_images (`int`, *optional*): Number of training images of the standard set; a difference is noted.
        test_images (`int`, *optional*): Number of test images of the standard set; a difference is noted.
        verified (`str`, defaults to "named by the user"): How the entry was verified, see `transfer_sets.yaml`.
        local (`bool`, defaults to `False`): Whether a folder replaces the set on the Hub.
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
        """Open the training and the test split.

        Raises:
            ValueError: See [`labelled_splits`].
            OSError: See [`labelled_splits`].
        """
        splits = {"train_split": self.train_split, "test_split": self.test_split}
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        if self.local:
            # A folder may have other names for its splits; its columns are found by type.
            known = set(available_splits(self.dataset))
            splits = {key: split for key, split in splits.items() if split and set(split.split("+")) <= known}
            columns = {}
        return labelled_splits(self.dataset, **splits, **columns)


@dataclass
class Transfer:
    """The outcome of [`transfer_suite`].

    Args:
        results (`list[Result]`): Results of the task "transfer", one for each set, probe and seed.
        failures (`dict[str, str]`): The reason of each missing result, by set.
        notes (`list[str]`): One sentence for each difference from the standard sets and for excluded images.
    """

    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def transfer_sets(names: Sequence[str] | None = None, folder: str | Path | None = None) -> list[TransferSet]:
    """Return transfer sets by name.

    Args:
        names (`Sequence[str]`, *optional*): Names from `transfer_sets.yaml`, Hub ids, folders or "digits"; by default
            the six sets of the paper (He, Du & Ma 2024).
        folder (`str` or `Path`, *optional*): A folder whose subfolders replace the sets of the same names on the Hub.

    Raises:
        ValueError: If a name is unknown; the message suggests the nearest one.
        FileNotFoundError: If `folder` does not exist.
    """
    known = {
        name: TransferSet(name, **entry) for name, entry in yaml.safe_load(TABLE.read_text(encoding="utf-8")).items()
    }
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"transfer_data {folder} does not exist: pass a folder with a subfolder for each set")
    sets = []
    for name in names or known:
        own = None if folder is None else Path(folder) / name
        entry = known.get(name)
        if own is not None and own.is_dir():
            sets.append(dataclasses.replace(entry or TransferSet(name, ""), dataset=str(own), local=True))
        elif entry is None and not (name == "digits" or "/" in name or Path(name).is_dir()):
            raise ValueError(
                f"transfer set {name!r} is unknown, and neither a Hub id (owner/name) nor a folder: "
                f"{suggest(name, known)}"
            )
        else:
            sets.append(entry or TransferSet(name, name))
    return sets


def transfer_suite(
    encoder: Encoder,
    sets: Sequence[TransferSet] | None = None,
    *,
    model: str = "",
    results_file: str | Path | None = None,
    cache: FeatureCache | None = None,
    probes: Sequence[str] = ("linear",),
    seeds: Sequence[int] = (0,),
    progress: bool = False,
    say: Callable[[str], None] | None = None,
    extraction: Mapping[str, Any] | None = None,
    k: int = NEIGHBOURS,
    **settings: Any,
) -> Transfer:
    """Probe an encoder on every set, one after the other; a set that fails does not stop the suite.

    Args:
        encoder ([`Encoder`]): The encoder, frozen.
        sets (`Sequence[TransferSet]`, *optional*): From [`transfer_sets`]; the six sets of the paper by default.
        model (`str`, defaults to ""): Name of the encoder in the results.
        results_file (`str` or `Path`, *optional*): File of results, written after each set. Sets for which it has
            results of the same encoder, images and settings are not measured again; its other results are preserved.
        cache ([`FeatureCache`], *optional*): A cache of extracted features.
        probes (`Sequence[str]`, defaults to ("linear",)): "linear", the paper's; "knn" with T = 0.07.
        seeds (`Sequence[int]`, defaults to (0,)): Seeds of the linear probes, one for each.
        progress (`bool`, defaults to `False`): Show progress bars.
        say (`Callable`, *optional*): Called with a line of text after each set.
        extraction (`Mapping`, *optional*): Further arguments of [`extract_features`], such as `batch_size`. With
            `shared`, all processes of the run must call this function; only the main one probes, writes and returns
            results.
        k (`int`, defaults to 20): Number of neighbours that vote.
        settings: Further arguments of [`linear_results`], such as `protocol` and `epochs`.

    Raises:
        ValueError: If a probe is unknown, or `results_file` is not a file of results.
    """
    for probe in probes:
        if probe not in PROBES:
            raise ValueError(f"probe {probe!r} is unknown: {suggest(probe, PROBES)}")
    path = None if results_file is None else Path(results_file)
    earlier = read_results(path) if path is not None and path.exists() else []
    weights, outcome = encoder_key(encoder), Transfer()
    for entry in transfer_sets() if sets is None else sets:
        results: list[Result] = []
        try:
            train, test = entry.open()
            data = [[source.cache_key, source.pixels.describe()] for source in (train, test)]
            about = [weights, dataclasses.asdict(entry), data, sorted(probes), k, list(seeds), settings]
            run = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
            results = [result for result in earlier if result.protocol.get("run") == run]
            outcome_line = f"read from {path}"
            if results:
                # The same weights may have been measured under another name.
                results = [dataclasses.replace(r, protocol=r.protocol | {"model": model}) for r in results]
                earlier = [result for result in earlier if result.protocol.get("run") != run]
            else:
                features = LabelledFeatures.extract(
                    encoder, train, test, cache, progress=progress, **(extraction or {})
                )
                probing = rank() == 0 or not (extraction or {}).get("shared")
                results = _probed(features, probes if probing else (), k=k, seeds=seeds, progress=progress, **settings)
                notes = [*features.notes, *_differences(entry, features)]
                results = [_as_transfer(result, entry, notes, model, run) for result in results]
                outcome_line = f"{len(features.train):,} training and {len(features.test):,} test images"
        except (ValueError, OSError, ArithmeticError) as error:
            outcome.failures[entry.name] = " ".join(str(error).split())
            outcome_line = f"failed: {outcome.failures[entry.name]}"
        for note in results[0].protocol.get("notes", ()) if results else ():
            outcome.notes.append(f"{entry.name}: {note}")
        if say is not None:
            say(f"{entry.name:<12} {outcome_line}")
        outcome.results += results
        if path is not None and results:
            write_results(path, [*earlier, *outcome.results])
    return outcome


def with_earlier(path: Path, results: list[Result]) -> list[Result]:
    """Return the results, completed with the transfer results of a file that they do not include."""
    runs = {result.protocol.get("run") for result in results}
    earlier = read_results(path) if path.exists() else []
    return results + [r for r in earlier if r.task == "transfer" and r.protocol.get("run") not in runs]


def _probed(
    features: LabelledFeatures, probes: Sequence[str], *, k: int, seeds: Sequence[int], progress: bool, **settings: Any
) -> list[Result]:
    """Return the top-1 result of each probe and seed."""
    results = linear_results(features, seeds=seeds, progress=progress, **settings) if "linear" in probes else []
    if "knn" in probes:
        results += knn_results(features, k=k)
    return [result for result in results if result.metric == "top1"]


def _as_transfer(result: Result, entry: TransferSet, notes: list[str], model: str, run: str) -> Result:
    """Return a probe's top-1 result in the metric of the set."""
    settings, value = dict(result.protocol), result.value
    own = settings.pop("mean_per_class")
    if entry.metric == "mean_per_class":
        value = own
        del settings["interval"]
    about = {"model": model, "set": entry.name, "probe": result.task, **settings, "notes": notes, "run": run}
    return Result("transfer", result.dataset, result.split, entry.metric, value, about)


def _differences(entry: TransferSet, features: LabelledFeatures) -> list[str]:
    """Return one sentence for each difference between a set and the standard one."""
    notes = [f"read from the folder {entry.dataset}, not from the Hub."] if entry.local else []
    counts = {
        "classes": (len(features.class_names), entry.num_classes),
        "training images": (len(features.train), entry.train_images),
        "test images": (len(features.test), entry.test_images),
    }
    return notes + [
        f"{count:,} {what}, while the standard set has {standard:,}."
        for what, (count, standard) in counts.items()
        if standard is not None and count != standard
    ]
