"""Open the images of a comparison: to learn from, to choose strengths on, and to measure with; once per process."""

from dataclasses import dataclass

import numpy as np

from ..data import ImageSource, load_source
from ..evaluation.frozen import HELD_OUT_SPLITS
from ..training.options import DataArguments

# Share of the training images on which strengths are chosen, and the most and the fewest of them.
HELD_OUT, MOST_HELD_OUT, FEWEST_HELD_OUT = 0.2, 5000, 20
# Draws the images of `images`, and those that are held out: the same for all runs of all comparisons.
DRAW_SEED = 0


@dataclass(frozen=True)
class ComparedImages:
    """The images of a comparison.

    Args:
        train ([`ImageSource`]): All runs that count learn from these.
        tuning ([`ImageSource`], *optional*): The part of them that runs learn from which choose a strength; `None` if
            no strength is chosen.
        held_out ([`ImageSource`], *optional*): The rest of them, on which strengths are chosen.
        test ([`ImageSource`], *optional*): The whole test split; `None` if the data set has none.
    """

    train: ImageSource
    tuning: ImageSource | None
    held_out: ImageSource | None
    test: ImageSource | None

    @property
    def labelled(self) -> bool:
        """Return whether accuracies can be measured on the test split."""
        return self.test is not None and None not in (self.train.label_column, self.test.label_column)

    @property
    def measured(self) -> ImageSource:
        """Return the images whose features are measured without labels: those of the test split, if there is one."""
        return self.train if self.test is None else self.test


def open_images(
    data: DataArguments, images: int | None, test_split: str | None, *, tuning: bool, source: ImageSource | None = None
) -> ComparedImages:
    """Open the data set of a comparison, and divide its training images.

    Args:
        data ([`DataArguments`]): The data set, its training split, and how images are read.
        images (`int`, *optional*): How many of the training images are used, drawn at random; all by default.
        test_split (`str`, *optional*): The split to measure with; the first of test, validation, valid and val by
            default, if there is one.
        tuning (`bool`): Whether images are held out to choose strengths on.
        source ([`ImageSource`], *optional*): The data set in memory, which replaces that of `data`.

    Raises:
        ValueError: There are too few images, or a split does not exist.
        OSError: The data set cannot be read.
    """
    train = source or load_source(data.location, split=data.split, **data.reading())
    if test_split is None:
        test_split = next((name for name in HELD_OUT_SPLITS if name in train.splits and name != train.split), None)
    test = None if test_split is None else train.with_split(test_split).as_in(train)
    count = int(train.num_rows or 0)
    if images is not None and images > count:
        raise ValueError(f"images is {images}, but split {train.split} of {train.name} has {count:,}: leave it out")
    if images is not None:
        train, count = train.subset(_drawn(count)[:images], f"{images:,} at random"), images
    if not tuning:
        return ComparedImages(train, None, None, test)
    left = min(round(HELD_OUT * count), MOST_HELD_OUT)
    if left < FEWEST_HELD_OUT:
        raise ValueError(
            f"{left} of the {count:,} training images of {train.name} can be held out to choose strengths on, which "
            f"are too few (fewer than {FEWEST_HELD_OUT}): pass a single strength for each arm, as in --strengths "
            "so=1e-3, or --tuning_steps 0"
        )
    order = _drawn(count)
    tuning_images = train.subset(order[left:], f"{count - left:,} at random")
    return ComparedImages(train, tuning_images, train.subset(order[:left], f"the other {left:,}"), test)


def _drawn(count: int) -> np.ndarray:
    """Return the rows of a split in an order that is always the same."""
    return np.random.default_rng(DRAW_SEED).permutation(count)
