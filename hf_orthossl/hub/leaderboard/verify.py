"""Published weights measured again: accuracies by the protocols claimed, and spectra."""

import datetime
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ... import __version__
from ...data import ImageDataset, load_source
from ...encoders import Encoder, load_encoder
from ...evaluation import FeatureCache
from ...evaluation.features import normalized_batches
from ...spectra import SpectralReport, spectral_report
from ..client import hub_id
from ..encoder_folder import spectra_rows
from .checking import CONFIG, Published, check
from .fetching import Fetcher
from .parsing import parse_json
from .remeasure import Data, remeasure
from .repositories import find, read_published
from .schema import Aside, Entry, evenly
from .spectra_of import REPRESENTATION
from .splits import learned_from
from .values import LARGEST, shown
from .verification import Compared, Verification, compare, spectra_digest

# Of spectra taken twice of the same weights, on different machines: relative to the number, and on a curve in [0, 1].
TOLERANCE = 0.01


@dataclass(frozen=True)
class Verified:
    """What [`verify`] found.

    Args:
        entry ([`Entry`]): What the author published, checked.
        asides (`list[Aside]`): What of it did not pass the checks.
        verification ([`Verification`]): What came out, for the board.
        compared (`list[Compared]`): Claims beside it.
        notes (`list[str]`): What was not measured again, and why.
    """

    entry: Entry
    asides: list[Aside]
    verification: Verification
    compared: list[Compared]
    notes: list[str]


def verify(
    model: str,
    data: Data | None = None,
    *,
    device: str | None = None,
    token: str | None = None,
    cache: FeatureCache | None = None,
    progress: bool = False,
) -> Verified:
    """Downloads an encoder's published weights at one commit, and measures them again.

    Args:
        model (`str`): Hub id "owner/name", with `@revision` at will.
        data ([`Data`], *optional*): What to measure on; what the claims name by default.
        device (`str`, *optional*): CUDA where there is one by default.
        token (`str`, *optional*): Access token; defaults to the one of `hf auth login` or `HF_TOKEN`.
        cache ([`FeatureCache`], *optional*): Where features are kept; nowhere by default.
        progress (`bool`, defaults to `False`): Show progress bars.

    Raises:
        ValueError: `model` is no Hub id or no entry of a board, or the weights or data cannot be used.
        OSError: the Hub or the data cannot be read.
    """
    repo_id, fetcher = hub_id(model), Fetcher(token=token)
    if repo_id is None:
        raise ValueError(f"{model!r} is no Hub id of the form owner/name: publish the encoder first")
    listed = find(fetcher, repo_id, model.partition("@")[2] or "main")
    published, asides = read_published(fetcher, listed)
    entry, more = check(published)
    if entry is None:
        raise ValueError(f"{model} has no place on a board: " + "; ".join(f"{a.field} {a.reason}" for a in more))
    encoder = _load(entry, device)
    block = parse_json(published.files[CONFIG], CONFIG)["orthossl"]
    training = block.get("training")
    seed = training.get("seed") if isinstance(training, dict) else None
    seed = seed if type(seed) is int and 0 <= seed < 2**32 else 0
    data = data or Data()
    results, notes = remeasure(encoder, entry.results, data, seed=seed, cache=cache, progress=progress)
    trained_on = block.get("split") if isinstance(block.get("split"), str) else None
    own = (entry.pretrained_on or "").lower()
    seen = {r for r in results if learned_from(r.split, trained_on if r.dataset.lower() == own else None)}
    results = [result for result in results if result not in seen]
    notes += [f"{r.task} {r.metric} on {r.dataset}: its {r.split} was learned from" for r in sorted(seen, key=str)]
    # Of data that nobody asked for, none is downloaded.
    known = {result.dataset for result in results} | {data.dataset, "digits"}
    wrong, told = recompute(entry, published, encoder, known)
    verification = Verification(
        repo_id=entry.repo_id,
        revision=entry.revision,
        weights=entry.weights,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        results=results,
        spectra=wrong,
        digest=entry.spectra and spectra_digest(entry.spectra),
    )
    return Verified(entry, asides + more, verification, compare(entry.results, results), notes + told)


def recompute(
    entry: Entry, published: Published, encoder: Encoder, datasets: Collection[str] = ("digits",)
) -> tuple[str | None, list[str]]:
    """Whether published spectra belong to the published weights: they are taken again.

    The weights' spectra always; those of the features where the training data are one of `datasets`.

    Args:
        entry ([`Entry`]), published ([`Published`]): The encoder, and the files it was read from.
        encoder ([`Encoder`]): With the weights of that commit, in evaluation mode.
        datasets (collection of `str`): Data that may be loaded.

    Returns:
        what is wrong, as [`Verification`] has it, and what was not taken again.
    """
    if entry.spectra is None:
        return None, ["there are no spectra to compare with"]
    scalars = parse_json(published.files["spectra.json"], "spectra.json")
    block = parse_json(published.files[CONFIG], CONFIG)["orthossl"]
    images, notes = _images(entry, block.get("split"), encoder, datasets)
    report = spectral_report(encoder, images)
    wrong = _wrong_weights(report, scalars["weights"]) or _wrong_curves(report, entry)
    if images is not None:
        wrong = wrong or _wrong_features(report, scalars["features"])
    return wrong or "", notes


def _load(entry: Entry, device: str | None) -> Encoder:
    encoder = load_encoder(f"hf-hub:{entry.repo_id}@{entry.revision}", pretrained=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return encoder.to(device).eval()
    except RuntimeError as error:
        raise ValueError(f"device {device!r} cannot be used: pass --device cpu") from error


def _images(
    entry: Entry, split: object, encoder: Encoder, datasets: Collection[str]
) -> tuple[Iterable | None, list[str]]:
    """The images behind the features' spectra, as training chose them; `None` where they cannot be had."""
    name, count = entry.pretrained_on or "", int(entry.spectra.summary.get("num_images", 0))
    if not count:
        return None, []
    note = f"spectra of features were not taken again: {{}} ({name or 'no name'})"
    if name not in datasets:
        return None, [note.format("the training data are none of those measured on")]
    try:
        source = load_source(name, split=split if isinstance(split, str) else None)
    except (ValueError, OSError):
        return None, [note.format("the training data cannot be loaded")]
    rows = spectra_rows(source.num_rows)
    if len(rows) != count:
        return None, [note.format(f"they are of {count:,} images, not of the {len(rows):,} that training takes")]
    return normalized_batches(encoder, ImageDataset(source, image_size=encoder.image_size, indices=rows)), []


def _wrong_weights(report: SpectralReport, claimed: dict) -> str | None:
    if set(report.weights) != set(claimed):
        return f"the spectra are of {len(claimed)} weights that are not the {len(report.weights)} of the encoder"
    for name, found in report.weights.items():
        for key in ("effective_rank", "gram_frobenius", "gram_sigma_max"):
            said = claimed[name].get(key)
            if not _close(said, getattr(found, key)):
                return _told(key, name, said, getattr(found, key))
    return None


def _wrong_curves(report: SpectralReport, entry: Entry) -> str | None:
    """Curves of the weights, as the page draws them."""
    for name, curve in entry.spectra.curves.items():
        found = report.weights.get(name.removeprefix("weights/"))
        if not name.startswith("weights/") or found is None:
            continue
        ranks = np.array(evenly(len(found.eigenvalues), len(curve))) - 1
        apart = np.abs(found.eigenvalues.numpy()[ranks] - np.array(curve)).max() if len(ranks) == len(curve) else 1.0
        if apart > TOLERANCE:
            return f"the curve of {name} is not that of the published weights: recomputed, it lies {apart:.2g} away"
    return None


def _wrong_features(report: SpectralReport, claimed: dict) -> str | None:
    found, said = report.features[REPRESENTATION], claimed.get(REPRESENTATION, {})
    for key in ("effective_rank", "rankme", "participation_ratio"):
        if not _close(said.get(key), getattr(found, key)):
            return _told(key, REPRESENTATION, said.get(key), getattr(found, key))
    return None


def _close(said: object, found: float) -> bool:
    # The comparison with the bounds refuses integers too large for a float.
    return type(said) in (int, float) and 0 <= said <= LARGEST and abs(said - found) <= TOLERANCE * max(found, 1e-3)


def _told(key: str, name: str, said: object, found: float) -> str:
    return f"the {key} of {name} is published as {shown(said)}; recomputed from the published weights it is {found:.4g}"
