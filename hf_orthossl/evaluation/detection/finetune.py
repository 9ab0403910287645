"""Build a detector on an encoder, fine-tune it, detect objects with it, and score its detections."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler

from ...encoders import Encoder
from ...messages import suggest
from ...terminal import progress_bar
from ..results import Result
from .data import DetectionBatch, DetectionDataset, collate_detection
from .drawing import chosen_images, draw_detections
from .metrics import detection_scores, require_extra
from .models import BATCH_NORM, HEADS, Detector

OPTIMIZERS = ("adamw", "sgd")
# The learning rate of the NeurIPS 2024 paper: 0.01 for 9 images.
_SGD_LEARNING_RATE_PER_IMAGE = 0.01 / 9
# Detectron's schedule for VOC: decay after 18,000 and 22,000 of 24,000 steps, and 100 steps of warm-up.
_DROPS = (3 / 4, 11 / 12)
_WARMUP = 100
_LARGEST_GRADIENT = {"sgd": 10.0, "adamw": 0.1}


def build_detector(
    encoder: Encoder,
    num_classes: int,
    head: str = "fpn",
    *,
    image_size: int = 800,
    batch_norm: str = "trained",
    roi_samples: int = 64,
    fpn_channels: int = 128,
) -> Detector:
    """Build a detector on a copy of a convolutional timm encoder and its weights.

    Args:
        encoder ([`Encoder`]): From [`~hf_orthossl.encoders.load_encoder`]; it does not change.
        num_classes (`int`): Number of classes of the data.
        head (`str`, defaults to "fpn"): "fpn" or "c4" for Faster R-CNN (see [`fpn_detector`], [`c4_detector`]), or
            "detr" for RT-DETR v2 (see [`detr_detector`]).
        image_size (`int`, defaults to 800): Length of the shorter side that images are resized to, in pixels; for
            "detr", both sides.
        batch_norm (`str`, defaults to "trained"): Batch norm of the encoder, "trained" or "frozen", see [`Detector`].
        roi_samples (`int`, defaults to 64): Number of proposals per image that train the second stage of Faster R-CNN;
            512 in Detectron's recipes, which are made for large GPUs.
        fpn_channels (`int`, defaults to 128): Width of "fpn", whose hidden layers are four times as wide; 256 in
            Detectron's recipes.

    Raises:
        ValueError: If a name is unknown, a number is below 1, or the encoder has no feature maps.
    """
    for name, value, known in (("head", head, HEADS), ("batch_norm", batch_norm, BATCH_NORM)):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown: {suggest(value, known)}")
    numbers = {"num_classes": num_classes, "image_size": image_size, "roi_samples": roi_samples}
    for name, number in {**numbers, "fpn_channels": fpn_channels}.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} is {number!r}: it must be an integer of 1 or more")
    frozen = batch_norm == "frozen"
    # Imported when needed: transformers' DETR and torchvision's detectors take seconds to import.
    if head == "detr":
        from .detr import detr_detector

        return detr_detector(encoder, num_classes, image_size=image_size, freeze_batch_norm=frozen)
    from .rcnn import c4_detector, fpn_detector

    if head == "c4":
        return c4_detector(
            encoder, num_classes, image_size=image_size, freeze_batch_norm=frozen, roi_samples=roi_samples
        )
    return fpn_detector(
        encoder,
        num_classes,
        image_size=image_size,
        freeze_batch_norm=frozen,
        roi_samples=roi_samples,
        channels=fpn_channels,
    )


def finetune_detector(
    detector: Detector,
    train: DetectionDataset,
    *,
    steps: int = 200,
    batch_size: int = 8,
    optimizer: str = "adamw",
    learning_rate: float | None = None,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Fine-tune a whole detector, including its encoder.

    The learning rate rises over the first tenth of the steps, at most 100 steps, and is divided by 10 after 3/4 and
    11/12 of the steps.

    Args:
        detector ([`Detector`]): Trained in place, on its device, and left in eval mode.
        train ([`DetectionDataset`]): Images with boxes; it must not have more classes than the head.
        steps (`int`, defaults to 200): Number of optimizer steps.
        batch_size (`int`, defaults to 8): Number of images per step; 9 in the NeurIPS 2024 paper.
        optimizer (`str`, defaults to "adamw"): "adamw", which needs fewer steps, or the paper's "sgd" with momentum
            0.9. The weight decay is 1e-4.
        learning_rate (`float`, *optional*): By default the detector's `learning_rate` for "adamw", and the paper's 0.01
            per 9 images for "sgd".
        seed (`int`, defaults to 0): Seed of order, flips and sampled proposals; the global generator is not used.
        num_workers (`int`, defaults to 0): Number of processes that decode images.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Returns:
        `dict`: The settings that determine the result.

    Raises:
        ValueError: If a setting is out of range, the head has too few classes, or more images than allowed are
            unreadable.
        FloatingPointError: If the loss is not finite.
    """
    if train.num_classes > detector.num_classes:
        raise ValueError(
            f"data set {train.name} has {train.num_classes} classes, the detector's head {detector.num_classes}: build "
            f"it with num_classes={train.num_classes}"
        )
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer {optimizer!r} is unknown: {suggest(optimizer, OPTIMIZERS)}")
    if min(steps, batch_size) < 1:
        raise ValueError(f"steps is {steps} and batch_size {batch_size}: both must be 1 or more")
    if learning_rate is None:
        by_images = _SGD_LEARNING_RATE_PER_IMAGE * batch_size
        learning_rate = by_images if optimizer == "sgd" else detector.learning_rate
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}: it must be above 0")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sampler = RandomSampler(train, num_samples=steps * batch_size)
        loader = DataLoader(train, batch_size, sampler=sampler, collate_fn=collate_detection, num_workers=num_workers)
        _train(detector, train, loader, optimizer, learning_rate, progress)
    detector.eval()
    return {
        **detector.settings,
        "image_size": train.image_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
    }


def _train(
    detector: Detector, train: DetectionDataset, loader: DataLoader, name: str, learning_rate: float, progress: bool
) -> None:
    weights = [weight for weight in detector.parameters() if weight.requires_grad]
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(weights, learning_rate, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.AdamW(weights, learning_rate, weight_decay=1e-4)
    schedule = LambdaLR(optimizer, lambda step: _factor(step, len(loader)))
    detector.train()
    average = None
    for step, batch in enumerate(bar := progress_bar(loader, "fine-tuning", progress)):
        train.note_unreadable(batch.unreadable)
        if not batch.images:
            continue
        loss = sum(detector(*_on_device(batch, detector)).values())
        assert isinstance(loss, Tensor)  # every detector has a loss
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the detector's loss is {value} after {step} steps: lower the learning rate, {learning_rate:g}"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, _LARGEST_GRADIENT[name])
        optimizer.step()
        schedule.step()
        average = value if average is None else 0.9 * average + 0.1 * value
        bar.set_postfix_str(f"loss {average:.3f}")


@torch.no_grad()
def detect(
    detector: Detector, dataset: DetectionDataset, *, batch_size: int = 8, num_workers: int = 0, progress: bool = False
) -> tuple[list[int], list[dict[str, Tensor]]]:
    """Detect objects in every image of a data set that can be decoded.

    Args:
        detector ([`Detector`]): The detector, which is left in eval mode.
        dataset ([`DetectionDataset`]): The images.
        batch_size (`int`, defaults to 8): Number of images per batch.
        num_workers (`int`, defaults to 0): Number of processes that decode images.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Returns:
        `tuple[list[int], list[dict]]`: Positions in the data set, and for each of them `boxes` `(N, 4)` in pixels of
        the original image, `scores` and `labels` `(N,)`, on the CPU.

    Raises:
        ValueError: If more images than allowed cannot be read.
    """
    detector.eval()
    # A separate generator, because even a loader that does not shuffle draws a seed for its workers.
    loader = DataLoader(
        dataset, batch_size, collate_fn=collate_detection, num_workers=num_workers, generator=torch.Generator()
    )
    positions, predictions = [], []
    for batch in progress_bar(loader, "detecting", progress):
        dataset.note_unreadable(batch.unreadable)
        if not batch.images:
            continue
        for target, detections in zip(batch.targets, detector(_on_device(batch, detector)[0]), strict=True):
            detections = {key: part.cpu() for key, part in detections.items()}
            positions.append(target["index"])
            predictions.append({**detections, "boxes": detections["boxes"] * target["scale"]})
    return positions, predictions


def _factor(step: int, steps: int) -> float:
    warmup = max(min(steps // 10, _WARMUP), 1)
    return min((step + 1) / warmup, 1.0) * 0.1 ** sum(step >= drop * steps for drop in _DROPS)


def _on_device(batch: DetectionBatch, detector: Detector) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    device = next(detector.parameters()).device
    targets = [{key: target[key].to(device) for key in ("boxes", "labels")} for target in batch.targets]
    return [image.to(device) for image in batch.images], targets


def detection_results(
    encoder: Encoder,
    train: DetectionDataset,
    test: DetectionDataset,
    *,
    head: str = "fpn",
    batch_norm: str = "trained",
    roi_samples: int = 64,
    fpn_channels: int = 128,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = False,
    figures: str | Path | None = None,
    num_figures: int = 8,
    **training: Any,
) -> list[Result]:
    """Fine-tune a detector on an encoder and score it; test images are used once, at the end.

    Args:
        encoder ([`Encoder`]): The encoder, which does not change.
        train ([`DetectionDataset`]): The training split, from [`detection_splits`].
        test ([`DetectionDataset`]): The test split, from [`detection_splits`].
        head (`str`, defaults to "fpn"): See [`build_detector`].
        batch_norm (`str`, defaults to "trained"): See [`build_detector`].
        roi_samples (`int`, defaults to 64): See [`build_detector`].
        fpn_channels (`int`, defaults to 128): See [`build_detector`].
        seed (`int`, defaults to 0): Seed of the head's initial weights and of training.
        num_workers (`int`, defaults to 0): Number of processes that decode images.
        progress (`bool`, defaults to `False`): Show progress bars.
        figures (`str` or `Path`, *optional*): Folder for drawings of test images; without it, none are drawn.
        num_figures (`int`, defaults to 8): Number of drawings.
        training: Further arguments of [`finetune_detector`].

    Returns:
        `list[Result]`: Results of task "detection": COCO's "AP", "AP50" and "AP75", and "VOC07_AP50" and "VOC12_AP50".

    Raises:
        ValueError: If the [detection] extra is not installed, or one of the steps rejects an argument.
    """
    require_extra()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = build_detector(
            encoder,
            train.num_classes,
            head,
            image_size=train.image_size,
            batch_norm=batch_norm,
            roi_samples=roi_samples,
            fpn_channels=fpn_channels,
        )
    detector.to(next(encoder.parameters()).device)
    settings = finetune_detector(detector, train, seed=seed, num_workers=num_workers, progress=progress, **training)
    positions, predictions = detect(detector, test, num_workers=num_workers, progress=progress)
    scores = detection_scores(predictions, [test.truth(position) for position in positions], test.num_classes)
    settings |= {"train_images": len(train), "test_images": len(positions)}
    if test.box_format.name != "coco":
        settings["box_format"] = test.box_format.name
    if figures is not None:
        for place in chosen_images(num_figures, len(positions)):
            path = Path(figures) / f"test-{positions[place]:05d}.png"
            draw_detections(test, positions[place], predictions[place], path)
    return [Result("detection", test.name, test.split, metric, value, settings) for metric, value in scores.items()]
