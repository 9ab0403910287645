"""What a frozen encoder knows of a data set: kNN and linear probes on features that are extracted once."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..data import ImageDataset, ImageSource, available_splits, load_source
from .features import FeatureCache
from .knn import nearest_neighbours, neighbour_votes
from .labels import imbalanced_rows, match_splits, noisy_labels, require_labels
from .linear_probe import PROTOCOLS, LinearClassifier, lbfgs_probe, sgd_probe
from .results import Result
from .scoring import accuracy, accuracy_results

HELD_OUT_SPLITS = ("test", "validation", "valid", "val")


@dataclass
class LabelledFeatures:
    """Features of a training and a test split whose labels mean the same classes.

    Args:
        train, train_labels (`Tensor` of shape `(N, D)` and `(N,)`): Labelled training images.
        test, test_labels (`Tensor` of shape `(M, D)` and `(M,)`): Labelled test images of classes seen in training.
        class_names (`list[str]`): Names of the C classes.
        dataset, split (`str`): Data set and test split, as results name them.
        notes (`list[str]`): What was left out, one sentence each.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    class_names: list[str]
    dataset: str
    split: str
    notes: list[str]

    @classmethod
    def extract(
        cls,
        encoder: nn.Module,
        train: ImageSource,
        test: ImageSource,
        cache: FeatureCache | None = None,
        *,
        progress: bool = False,
        **kwargs,
    ) -> "LabelledFeatures":
        """Features of two splits; `kwargs` go to [`extract_features`], with `progress` each under a bar.

        Raises:
            ValueError: labels are missing, or the splits do not go together (see [`match_classes`]).
        """
        for source in (train, test):
            require_labels(source)
        cache = cache or FeatureCache(enabled=False)
        features = [
            cache.features(
                encoder,
                ImageDataset(source, image_size=encoder.image_size),
                progress=source.split if progress else None,
                **kwargs,
            )
            for source in (train, test)
        ]
        bank, queries, names, notes = match_splits(train, test, *(part.labels for part in features))
        kept = bank >= 0, queries >= 0
        return cls(
            train=features[0].representations[kept[0]],
            train_labels=bank[kept[0]],
            test=features[1].representations[kept[1]],
            test_labels=queries[kept[1]],
            class_names=names,
            dataset=test.name,
            split=test.split,
            notes=notes,
        )

    def corrupted(self, label_noise: float = 0.0, imbalance: float = 1.0, seed: int = 0) -> "LabelledFeatures":
        """The same with worse training labels: see [`noisy_labels`] and [`imbalanced_rows`]. Tests stay clean."""
        rows = imbalanced_rows(self.train_labels, imbalance, seed) if imbalance != 1 else slice(None)
        labels = self.train_labels[rows]
        labels = noisy_labels(labels, len(self.class_names), label_noise, seed)
        return dataclasses.replace(self, train=self.train[rows], train_labels=labels)


def labelled_splits(
    dataset: str,
    *,
    name: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[ImageSource, ImageSource]:
    """The two splits of a data set that a probe needs; the test split is found by its usual names.

    Raises:
        ValueError: there is no test split of a usual name and none is given; or what [`load_source`] refuses.
    """
    columns = {"name": name, "image_column": image_column, "label_column": label_column}
    train = load_source(dataset, split=train_split, **columns)
    if test_split is None:
        found = [split for split in HELD_OUT_SPLITS if split in available_splits(dataset, name)]
        found = [split for split in found if split != train.split]
        if not found:
            raise ValueError(
                f"data set {dataset} has no split named {', '.join(HELD_OUT_SPLITS)}: pass --test_split, or cut one "
                "off, as in --train_split 'train[:80%]' --test_split 'train[80%:]'"
            )
        test_split = found[0]
    return train, load_source(dataset, split=test_split, **columns)


def knn_results(
    features: LabelledFeatures,
    *,
    k: int = 200,
    temperatures: Sequence[float | None] = (0.07, 0.1, None),
    shared: bool = False,
) -> list[Result]:
    """Top-1 and top-5 of kNN votes, one per temperature; `None` weighs all neighbours alike.

    With `shared`, the processes of the run share the queries out, and all of them get all results.
    """
    similarity, index = nearest_neighbours(features.train, features.test, k=k, shared=shared)
    classes, results = features.train_labels[index], []
    for temperature in temperatures:
        scores = neighbour_votes(similarity, classes, num_classes=len(features.class_names), temperature=temperature)
        measured = accuracy(scores, features.test_labels, features.class_names)
        about = {"k": k, "temperature": temperature, "train_images": len(features.train)}
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
    **settings,
) -> list[Result]:
    """Top-1 and top-5 of linear probes, one per seed.

    Args:
        features ([`LabelledFeatures`]): What to fit and score.
        protocol (`str`, defaults to "sgd"): "sgd", the paper's, or "lbfgs".
        seeds (`Sequence[int]`, defaults to (0,)): One probe each.
        label_noise (`float`, defaults to 0), imbalance (`float`, defaults to 1): Of the training labels, see
            [`LabelledFeatures.corrupted`].
        progress (`bool`, defaults to `False`): Show a progress bar.
        settings: Further arguments of [`sgd_probe`] or [`lbfgs_probe`].
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    probe = sgd_probe if protocol == "sgd" else lbfgs_probe
    results = []
    for seed in seeds:
        worse = features.corrupted(label_noise, imbalance, seed)
        classifier: LinearClassifier = probe(
            worse.train, worse.train_labels, len(worse.class_names), seed=seed, progress=progress, **settings
        )
        measured = accuracy(classifier(worse.test), worse.test_labels, worse.class_names)
        about = {**classifier.settings, "seed": seed, "train_images": len(worse.train)}
        about |= {"label_noise": label_noise} if label_noise else {}
        about |= {"imbalance": imbalance} if imbalance != 1 else {}
        results += accuracy_results("linear", features.dataset, features.split, measured, about)
    return results
