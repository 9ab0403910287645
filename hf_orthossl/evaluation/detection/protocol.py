"""From an encoder to detection results: build, fine-tune, detect, score, draw."""

from pathlib import Path
from typing import Any

import torch

from ...encoders import Encoder
from ..results import Result
from .data import DetectionDataset
from .drawing import chosen_images, draw_detections
from .finetune import detect, finetune_detector
from .metrics import detection_scores, require_extra
from .models import build_detector


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
    """Fine-tunes a detector on an encoder and scores it; test images are seen once, at the end.

    Args:
        encoder ([`Encoder`]): Left as it is.
        train, test ([`DetectionDataset`]): From [`detection_splits`].
        head, batch_norm, roi_samples, fpn_channels: Of the detector, see [`build_detector`].
        seed (`int`, defaults to 0): Of the head's first weights and of training.
        num_workers (`int`, defaults to 0): Processes that decode images.
        progress (`bool`, defaults to `False`): Show progress bars.
        figures (`str` or `Path`, *optional*): Folder for drawings of test images; none by default.
        num_figures (`int`, defaults to 8): How many.
        training: Further arguments of [`finetune_detector`].

    Returns:
        results of task "detection": "AP", "AP50" and "AP75" as COCO has them, "VOC07_AP50" and "VOC12_AP50".

    Raises:
        ValueError: the [detection] extra is not installed, or what the steps refuse.
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
    positions, found = detect(detector, test, num_workers=num_workers, progress=progress)
    scores = detection_scores(found, [test.truth(position) for position in positions], test.num_classes)
    settings |= {"train_images": len(train), "test_images": len(positions)}
    if figures is not None:
        for place in chosen_images(num_figures, len(positions)):
            draw_detections(test, positions[place], found[place], Path(figures) / f"test-{positions[place]:05d}.png")
    return [Result("detection", test.name, test.split, metric, value, settings) for metric, value in scores.items()]
