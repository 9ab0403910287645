"""Train a linear classifier of the places in frozen features, and score it by mean intersection over union."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...data.decoding import to_tensor
from ...encoders import Encoder
from ...spectra.layers import evaluation_mode
from ...terminal import progress_bar
from ..detection.drawing import chosen_images
from ..results import Result, unreadable_counts
from .data import SegmentationDataset
from .drawing import draw_segmentation

# Features of training images are kept if they fill at most this share of the free memory.
KEPT_SHARE = 0.25
# The share of the steps in which the learning rate rises, as in DINOv2's protocol.
WARMUP = 0.04
# Scores of pixels held at a time, so that large images of many classes fit in memory.
MOST_SCORES = 2**26


class SegmentationProbe(nn.Module):
    """Classify the places of a feature map: batch norm and a 1×1 convolution.

    Args:
        width (`int`): Channels d of the map.
        num_classes (`int`): Number of classes C.
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return scores `(B, C, h, w)` of maps `(B, d, h, w)`."""
        return self.classify(self.norm(maps))

    def predict(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class `(H, W)` of each pixel of one image, from scores interpolated to its size.

        Args:
            maps (`Tensor` of shape `(1, d, h, w)`): Its features.
            size (`tuple[int, int]`): H and W.
        """
        scores = self(maps)
        best = classes = None
        first = 0
        # A part of the classes at a time: the scores of all would not fit for large images.
        for part in scores.split(max(MOST_SCORES // (size[0] * size[1]), 1), dim=1):
            values, places = F.interpolate(part, size, mode="bilinear")[0].max(dim=0)
            if best is None or classes is None:
                best, classes = values, places
            else:
                higher = values > best
                best, classes = torch.where(higher, values, best), torch.where(higher, places + first, classes)
            first += part.shape[1]
        assert classes is not None
        return classes


class _Maps:
    """The frozen features of the images of a data set, each computed once as long as memory allows."""

    def __init__(self, encoder: Encoder, dataset: SegmentationDataset):
        self.encoder, self.dataset = encoder, dataset
        self.device = next(encoder.parameters()).device
        self._mean, self._std = (
            torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (encoder.mean, encoder.std)
        )
        self._kept: dict[int, tuple[Tensor, Tensor] | None] = {}
        self._room = KEPT_SHARE * psutil.virtual_memory().available

    def __call__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Return maps `(B, d, h, w)` and targets `(B, S, S)` of the readable images among some; `None` without any."""
        missing = [index for index in indices if index not in self._kept]
        found = dict(zip(missing, self._compute(missing), strict=True))
        items = [self._kept[index] if index in self._kept else found[index] for index in indices]
        for index, item in found.items():
            size = 0 if item is None else sum(part.nbytes for part in item)
            if size <= self._room:
                self._kept[index], self._room = item, self._room - size
        readable = [item for item in items if item is not None]
        if not readable:
            return None
        maps, targets = (torch.stack(parts).to(self.device) for parts in zip(*readable, strict=True))
        return maps, targets.long()

    def _compute(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor] | None]:
        read = [self.dataset[index] for index in indices]
        images = [item[0] for item in read if item is not None]
        if not images:
            return [None] * len(read)
        maps = iter(self.of(images).cpu())
        return [None if item is None else (next(maps), self._target(item[1])) for item in read]

    def of(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the maps `(B, d, h, w)` of images, each resized to the side of the encoder's input."""
        side = self.encoder.image_size
        pixels = [to_tensor(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images]
        batch = torch.stack(pixels).to(self.device).float() / 255
        with torch.no_grad(), evaluation_mode(self.encoder):
            return self.encoder.feature_map((batch - self._mean) / self._std).float()

    def _target(self, mask: Tensor) -> Tensor:
        side = self.encoder.image_size
        return F.interpolate(mask[None, None].double(), (side, side), mode="nearest-exact")[0, 0].to(torch.int16)


def train_probe(
    encoder: Encoder,
    train: SegmentationDataset,
    *,
    steps: int = 1000,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    progress: bool = False,
) -> tuple[SegmentationProbe, dict[str, Any]]:
    """Train a probe on frozen features, by AdamW with cross-entropy of every pixel that counts.

    Images are resized to the side of the encoder's input without keeping their proportions, so that all of an image
    counts. The learning rate rises over 4 % of the steps and falls to 0.

    Source: the linear protocol of DINOv2, Oquab et al. 2023, without its random crops.

    Args:
        encoder ([`Encoder`]): The frozen encoder.
        train ([`SegmentationDataset`]): Images and masks.
        steps (`int`, defaults to 1000): Number of optimizer steps.
        batch_size (`int`, defaults to 16): Images per step.
        learning_rate (`float`, defaults to 1e-3): The highest learning rate.
        weight_decay (`float`, defaults to 1e-4): Weight decay.
        seed (`int`, defaults to 0): Seed of initial weights and of the order of images.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Returns:
        `tuple[SegmentationProbe, dict]`: The probe, in eval mode on the encoder's device, and the settings that
        determine its score.

    Raises:
        ValueError: A setting is out of range, or the encoder has no map.
        FloatingPointError: The features are not finite.
    """
    if steps < 1 or batch_size < 2 or not learning_rate > 0 or not weight_decay >= 0:
        raise ValueError(
            f"steps is {steps}, batch_size {batch_size}, learning_rate {learning_rate} and weight_decay "
            f"{weight_decay}: they must be at least 1, at least 2, above 0, and 0 or more"
        )
    maps = _Maps(encoder, train)
    generator = torch.Generator().manual_seed(seed)
    probe = optimizer = None
    order = _batches(len(train), batch_size, generator)
    for step in progress_bar(range(steps), "segmentation probe", progress):
        batch = maps(next(order))
        if batch is None:
            continue
        features, targets = batch
        if not torch.isfinite(features).all():
            raise FloatingPointError(f"features of {encoder.name!r} are not finite: the encoder has diverged")
        if probe is None or optimizer is None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                probe = SegmentationProbe(features.shape[1], train.num_classes).to(features.device)
            optimizer = torch.optim.AdamW(probe.parameters(), lr=learning_rate, weight_decay=weight_decay)
        warmup = max(round(WARMUP * steps), 1)
        rate = learning_rate * min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        scores = F.interpolate(probe(features), targets.shape[1:], mode="bilinear")
        counted = (targets >= 0).sum().clamp(min=1)
        loss = F.cross_entropy(scores, targets, ignore_index=-1, reduction="sum") / counted
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if probe is None:
        raise ValueError(f"no image of {train.name}, split {train.split}, can be read: pass another split")
    settings = {"image_size": encoder.image_size, "steps": steps, "batch_size": batch_size, "seed": seed}
    return probe.eval(), settings | {"learning_rate": learning_rate, "weight_decay": weight_decay}


def _batches(images: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield positions without end: each image once per pass, and a batch may reach into the next pass."""
    positions: list[int] = []
    while True:
        while len(positions) < batch_size:
            positions += torch.randperm(images, generator=generator).tolist()
        yield positions[:batch_size]
        positions = positions[batch_size:]


@torch.no_grad()
def confusion_matrix(
    probe: SegmentationProbe,
    encoder: Encoder,
    test: SegmentationDataset,
    *,
    progress: bool = False,
    figures: Path | None = None,
    num_figures: int = 8,
) -> np.ndarray:
    """Return how many pixels of each class are predicted as each class, `(C, C)`, at the masks' own sizes.

    Args:
        probe ([`SegmentationProbe`]): The probe.
        encoder ([`Encoder`]): Its encoder.
        test ([`SegmentationDataset`]): Images and masks.
        progress (`bool`, defaults to `False`): Show a progress bar.
        figures (`Path`, *optional*): Folder for drawings of test images; without it, none are drawn.
        num_figures (`int`, defaults to 8): Number of drawings.
    """
    maps, classes = _Maps(encoder, test), test.num_classes
    matrix = np.zeros((classes, classes), np.int64)
    drawn = set(chosen_images(num_figures, len(test))) if figures is not None else set()
    for index in progress_bar(range(len(test)), "segmenting", progress):
        item = test[index]
        if item is None:
            continue
        image, mask = item
        predicted = probe.predict(maps.of([image]), (image.height, image.width)).cpu()
        counts = mask >= 0
        pairs = mask[counts] * classes + predicted[counts]
        matrix += torch.bincount(pairs, minlength=classes**2).view(classes, classes).numpy()
        if figures is not None and index in drawn:
            draw_segmentation(image, mask, predicted, test.class_names, figures / f"test-{index:05d}.png")
    return matrix


def intersection_over_union(matrix: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class, NaN for one that neither occurs nor is predicted.

    Args:
        matrix (`np.ndarray` of shape `(C, C)`): Pixels by true and by predicted class.
    """
    right = matrix.diagonal().astype(float)
    union = matrix.sum(0) + matrix.sum(1) - right
    return np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)


def segmentation_results(
    encoder: Encoder,
    train: SegmentationDataset,
    test: SegmentationDataset,
    *,
    seed: int = 0,
    progress: bool = False,
    figures: str | Path | None = None,
    num_figures: int = 8,
    **training: Any,
) -> list[Result]:
    """Train a probe and score it; test images are used once, at the end.

    Args:
        encoder ([`Encoder`]): The encoder, which does not change.
        train ([`SegmentationDataset`]): The training split, from [`segmentation_splits`].
        test ([`SegmentationDataset`]): The test split, from [`segmentation_splits`].
        seed (`int`, defaults to 0): Seed of the probe.
        progress (`bool`, defaults to `False`): Show progress bars.
        figures (`str` or `Path`, *optional*): Folder for drawings of test images; without it, none are drawn.
        num_figures (`int`, defaults to 8): Number of drawings.
        training: Further arguments of [`train_probe`].

    Returns:
        `list[Result]`: Results of task "segmentation": "mIoU", the mean over classes that occur or are predicted in
        the test masks, with the value of each in `per_class`; and "pixel_accuracy".
    """
    probe, settings = train_probe(encoder, train, seed=seed, progress=progress, **training)
    folder = None if figures is None else Path(figures)
    matrix = confusion_matrix(probe, encoder, test, progress=progress, figures=folder, num_figures=num_figures)
    if not matrix.sum():
        raise ValueError(f"split {test.split} of {test.name} has no pixel that counts: pass another test_split")
    found = intersection_over_union(matrix)
    settings |= {"ignored_values": " ".join(map(str, test.ignored))} if test.ignored else {}
    settings |= {"train_images": len(train), "test_images": len(test) - test.num_unreadable}
    settings |= unreadable_counts(train.num_unreadable, test.num_unreadable)
    named = {n: round(float(v), 4) for n, v in zip(test.class_names, found, strict=True) if not np.isnan(v)}
    mean, accuracy = float(np.nanmean(found)), float(matrix.trace() / matrix.sum())
    about = (test.name, test.split)
    return [
        Result("segmentation", *about, "mIoU", mean, settings | {"per_class": named}),
        Result("segmentation", *about, "pixel_accuracy", accuracy, settings),
    ]
