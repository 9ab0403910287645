"""Evaluate a frozen encoder on a data set: kNN and linear probes on features that are extracted once."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..data import ImageDataset, ImageSource, load_source
from ..data.unreadable import left_out_note
from ..encoders import Encoder
from ..messages import suggest
from .features import FeatureCache, are_equal
from .knn import NEIGHBOURS, TEMPERATURE, class_counts, nearest_neighbours, neighbour_votes
from .labels import imbalanced_rows, lost_classes_note, match_splits, noisy_labels, require_labels
from .linear_probe import PROTOCOLS, LinearClassifier, lbfgs_probe, sgd_probe
from .results import Result, unreadable_counts
from .scoring import accuracy, accuracy_results

HELD_OUT_SPLITS = ("test", "validation", "valid", "val")


@dataclass
class LabelledFeatures:
    """Features of a training and a test split whose labels mean the same classes.

    Args:
        train (`Tensor` of shape `(N, D)`): Representations of labelled training images.
        train_labels (`Tensor` of shape `(N,)`): Their classes.
        test (`Tensor` of shape `(M, D)`): Representations of labelled test images of classes that occur in training.
        test_labels (`Tensor` of shape `(M,)`): Their classes.
        class_names (`list[str]`): Names of the C classes.
        dataset (`str`): Name of the data set, as in results.
        split (`str`): Name of the test split, as in results.
        notes (`list[str]`): One sentence for each reason for which images were excluded.
        about (`dict`): The entries of a result's protocol on the images: how their values became 8 bits, if they were
            not, and how many unreadable ones were left out, if any.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    class_names: list[str]
    dataset: str
    split: str
    notes: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def extract(
        cls,
        encoder: Encoder,
        train: ImageSource,
        test: ImageSource,
        cache: FeatureCache | None = None,
        *,
        progress: bool = False,
        cache_images: str = "never",
        **kwargs: Any,
    ) -> "LabelledFeatures":
        """Extract the features of two splits.

        Args:
            encoder ([`Encoder`]): The frozen encoder.
            train ([`ImageSource`]): The training split.
            test ([`ImageSource`]): The test split.
            cache ([`FeatureCache`], *optional*): A cache of extracted features.
            progress (`bool`, defaults to `False`): Show progress bars.
            cache_images (`str`, defaults to "never"): Whether the decoded images stay in memory with their sources, as
                for [`ImageDataset`]: for several encoders.
            kwargs: Further arguments of [`extract_features`].

        Raises:
            ValueError: If labels are missing, the splits do not match (see [`match_classes`]), or more images cannot
                be read than are allowed.
        """
        test = test.as_in(train)
        for source in (train, test):
            require_labels(source)
        cache = cache or FeatureCache(enabled=False)
        features = [
            cache.features(
                encoder,
                ImageDataset(source, image_size=encoder.image_size, unreadable="omit", cache_images=cache_images),
                progress=source.split if progress else None,
                **kwargs,
            )
            for source in (train, test)
        ]
        bank, queries, names, notes = match_splits(train, test, *(part.labels for part in features))
        if are_equal(*(part.representations for part in features)):
            images = sum(len(part.labels) for part in features)
            notes.append(
                f"The representations of all {images:,} images are equal: the encoder has collapsed completely or the "
                f"images are equal, and a probe gives all of them the same class, a most frequent one of {train.split}."
            )
        for source, part in zip((train, test), features, strict=True):
            if part.unreadable:
                notes += left_out_note(part.unreadable, source.num_rows, source.split)
                notes += lost_classes_note(source, part.labels)
        return cls(
            train=features[0].representations[bank >= 0],
            train_labels=bank[bank >= 0],
            test=features[1].representations[queries >= 0],
            test_labels=queries[queries >= 0],
            class_names=names,
            dataset=test.name,
            split=test.split,
            notes=notes,
            about=train.pixels.settings() | unreadable_counts(*(len(part.unreadable) for part in features)),
        )

    def corrupted(self, label_noise: float = 0.0, imbalance: float = 1.0, seed: int = 0) -> "LabelledFeatures":
        """Return the features with corrupted training labels and unchanged test labels.

        Args:
            label_noise (`float`, defaults to 0): Share of wrong labels, see [`noisy_labels`].
            imbalance (`float`, defaults to 1): Largest class over smallest, see [`imbalanced_rows`].
            seed (`int`, defaults to 0): Seed of both.
        """
        rows = imbalanced_rows(self.train_labels, imbalance, seed) if imbalance != 1 else slice(None)
        labels = self.train_labels[rows]
        labels = noisy_labels(labels, len(self.class_names), label_noise, seed)
        return dataclasses.replace(self, train=self.train[rows], train_labels=labels)


def labelled_splits(
    dataset: Any,
    *,
    train_split: str | None = None,
    test_split: str | None = None,
    **reading: Any,
) -> tuple[ImageSource, ImageSource]:
    """Open the training and test split of a data set.

    Args:
        dataset: A data set in any form that [`load_source`] accepts.
        train_split (`str`, *optional*): The training split; "train" by default.
        test_split (`str`, *optional*): The test split; the first of test, validation, valid and val by default.
        reading: Further arguments of [`load_source`], which hold for both splits.

    Raises:
        ValueError: If `test_split` is not given and no split has a usual name, or [`load_source`] rejects a split.
    """
    train = load_source(dataset, split=train_split, **reading)
    return train, train.with_split(test_split or held_out_split(train))


def held_out_split(train: ImageSource) -> str:
    """Return the first of the splits test, validation, valid and val that a data set has.

    Raises:
        ValueError: There is none besides the training split.
    """
    held_out = [split for split in HELD_OUT_SPLITS if split in train.splits and split != train.split]
    if not held_out:
        raise ValueError(
            f"data set {train.name} has no split named {', '.join(HELD_OUT_SPLITS)}: pass --test_split, or split "
            "one, as in --train_split 'train[:80%]' --test_split 'train[80%:]'"
        )
    return held_out[0]


def knn_results(
    features: LabelledFeatures,
    *,
    k: int = NEIGHBOURS,
    temperatures: Sequence[float | None] = (TEMPERATURE,),
    shared: bool = False,
) -> list[Result]:
    """Return top-1 and top-5 accuracy of kNN votes, for each temperature.

    Args:
        features ([`LabelledFeatures`]): Bank and queries.
        k (`int`, defaults to 20): Number of neighbours that vote.
        temperatures (`Sequence[float | None]`, defaults to (0.07,)): Temperatures of the votes; with `None`,
            all neighbours have equal weights.
        shared (`bool`, defaults to `False`): Divide the queries among the processes of the run. All of them must call
            this function, and all receive all results.
    """
    equal, num_classes = are_equal(features.train, features.test), len(features.class_names)
    if not equal:
        similarity, index = nearest_neighbours(features.train, features.test, k=k, shared=shared)
        classes = features.train_labels[index]
    results: list[Result] = []
    for temperature in temperatures:
        if equal:
            # No neighbour is nearer than another.
            scores = class_counts(features.train_labels, num_classes, len(features.test))
        else:
            scores = neighbour_votes(similarity, classes, num_classes=num_classes, temperature=temperature)
        measured = accuracy(scores, features.test_labels, features.class_names)
        about = {"k": k, "temperature": temperature, "train_images": len(features.train)} | features.about
        results += accuracy_results("knn", features.dataset, features.split, measured, about)
    return results


def linear_results(
    features: LabelledFeatures,
    *,
    protocol: str = "sgd",
    seeds: Sequence[int] = (0,),
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    progress: bool = False,
    **settings: Any,
) -> list[Result]:
    """Return top-1 and top-5 accuracy of linear probes, one per seed.

    Args:
        features ([`LabelledFeatures`]): Features to fit and score.
        protocol (`str`, defaults to "sgd"): "sgd", the paper's, or "lbfgs".
        seeds (`Sequence[int]`, defaults to (0,)): Seeds, one for each probe.
        label_noise (`float`, defaults to 0): Share of wrong training labels, see [`LabelledFeatures.corrupted`].
        imbalance (`float`, defaults to 1): Largest training class over smallest, see [`LabelledFeatures.corrupted`].
        progress (`bool`, defaults to `False`): Show a progress bar.
        settings: Further arguments of [`sgd_probe`] or [`lbfgs_probe`].

    Raises:
        ValueError: If the protocol is unknown, or a setting is out of range.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown: {suggest(protocol, PROTOCOLS)}")
    probe = sgd_probe if protocol == "sgd" else lbfgs_probe
    results: list[Result] = []
    for seed in seeds:
        worse = features.corrupted(label_noise, imbalance, seed)
        classifier: LinearClassifier = probe(
            worse.train, worse.train_labels, len(worse.class_names), seed=seed, progress=progress, **settings
        )
        measured = accuracy(classifier(worse.test), worse.test_labels, worse.class_names)
        about = {**classifier.settings, "seed": seed, "train_images": len(worse.train)} | worse.about
        about |= {"label_noise": label_noise} if label_noise else {}
        about |= {"imbalance": imbalance} if imbalance != 1 else {}
        results += accuracy_results("linear", features.dataset, features.split, measured, about)
    return results
