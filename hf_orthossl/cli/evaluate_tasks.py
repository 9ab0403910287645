"""Run the tasks of `orthossl evaluate` with options of their own: fine-tuning, transfer, detection, segmentation."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..data import ImageSource
from ..encoders import Encoder
from ..evaluation import (
    FineTuningArguments,
    Result,
    Transfer,
    finetune_encoder,
    transfer_table,
)
from ..evaluation.detection import DetectionDataset, detection_results, detection_splits
from ..evaluation.detection.metrics import require_extra
from ..evaluation.segmentation import SegmentationDataset, segmentation_results
from .options.evaluate import DetectionArguments, FineTuneOptions, SegmentationArguments


def finetuning_arguments(
    options: FineTuneOptions, *, output_dir: str, device: str | None, num_workers: int, seed: int
) -> FineTuningArguments:
    """Return the settings of [`finetune_encoder`].

    Args:
        options ([`FineTuneOptions`]): The options of the command.
        output_dir (`str`): Folder of the best weights until training has ended.
        device (`str`, *optional*): The device; "cpu" does not use a GPU.
        num_workers (`int`): Number of processes that decode images.
        seed (`int`): Seed of training.

    Raises:
        ValueError: If an option is out of range.
    """
    return FineTuningArguments(
        output_dir,
        num_train_epochs=options.finetune_epochs,
        learning_rate=options.finetune_lr,
        per_device_train_batch_size=options.finetune_batch_size,
        layer_decay=options.layer_decay,
        mixup=options.mixup,
        cutmix=options.cutmix,
        label_smoothing_factor=options.label_smoothing,
        validation_share=options.validation_share,
        patience=options.patience,
        bf16=options.bf16,
        use_cpu=device == "cpu",
        dataloader_num_workers=num_workers,
        seed=seed,
        report_to=[],
    )


def measure_finetune(
    encoder: Encoder, train: ImageSource, test: ImageSource, runs: Sequence[FineTuningArguments]
) -> tuple[list[Result], list[str]]:
    """Fine-tune once for each element of `runs`, and return results and notes."""
    results: list[Result] = []
    notes: list[str] = []
    for args in runs:
        tuned = finetune_encoder(encoder, train, test, args)
        results += tuned.results
        notes = tuned.notes
    return results, notes


def transfer_summary(outcomes: dict[str, Transfer]) -> str:
    """Return the table of all models, each note once, and the failures.

    Args:
        outcomes (`dict[str, Transfer]`): Outcome of each model.
    """
    failures = {(model, name): why for model, one in outcomes.items() for name, why in one.failures.items()}
    notes = dict.fromkeys(note for one in outcomes.values() for note in one.notes)
    table = transfer_table([result for one in outcomes.values() for result in one.results], failures)
    reasons = dict.fromkeys(f"Failed: {name}: {why}" for (_, name), why in failures.items())
    return "\n".join([table, *(f"Note: {note}" for note in notes), *reasons])


def boxed_splits(
    dataset: str | list[str], image_size: int | None, **columns: str | None
) -> tuple[DetectionDataset, DetectionDataset]:
    """Open the two splits of a detection set.

    Raises:
        ValueError: If the [detection] extra is not installed, or as in [`detection_splits`].
    """
    require_extra()
    return detection_splits(dataset, image_size=image_size, progress=True, **columns)


def describe_boxes(splits: tuple[DetectionDataset, DetectionDataset]) -> str:
    """Describe the two splits, and how their boxes are read."""
    train, test = splits
    parts = (f"{split.num_boxes:,} boxes in {len(split):,} images of {split.split}" for split in splits)
    first = f"{train.name}: {train.num_classes} classes, {', '.join(parts)}, shorter side {test.image_size} px"
    return f"{first}\n         boxes: {train.box_format.describe()}"


def measure_detection(
    encoder: Encoder,
    splits: tuple[DetectionDataset, DetectionDataset],
    args: DetectionArguments,
    *,
    seeds: range,
    num_workers: int,
    figures: Path,
) -> list[Result]:
    """Fine-tune and score a detector for each seed; the first one's detections are drawn.

    Args:
        encoder ([`Encoder`]): The encoder.
        splits (`tuple[DetectionDataset, DetectionDataset]`): The training and the test split.
        args (`DetectionArguments`): The options.
        seeds (`range`): The seeds.
        num_workers (`int`): Number of processes that decode images.
        figures (`Path`): Folder for drawings.
    """
    return _for_each(
        seeds,
        figures,
        lambda **repeated: detection_results(
            encoder,
            *splits,
            head=args.detector,
            batch_norm=args.batch_norm,
            roi_samples=args.roi_samples,
            fpn_channels=args.fpn_channels,
            steps=args.steps,
            batch_size=args.detection_batch_size,
            optimizer=args.detection_optimizer,
            learning_rate=args.detection_lr,
            num_workers=num_workers,
            progress=True,
            num_figures=args.drawn_images,
            **repeated,
        ),
    )


def measure_segmentation(
    encoder: Encoder,
    splits: tuple[SegmentationDataset, SegmentationDataset],
    args: SegmentationArguments,
    *,
    seeds: range,
    figures: Path,
    num_figures: int,
) -> list[Result]:
    """Train and score a probe for each seed; the first one's predictions are drawn.

    Args:
        encoder ([`Encoder`]): The frozen encoder.
        splits (`tuple[SegmentationDataset, SegmentationDataset]`): The training and the test split.
        args (`SegmentationArguments`): The options.
        seeds (`range`): The seeds.
        figures (`Path`): Folder for drawings.
        num_figures (`int`): Number of drawings.
    """
    return _for_each(
        seeds,
        figures,
        lambda **repeated: segmentation_results(
            encoder,
            *splits,
            steps=args.segmentation_steps,
            batch_size=args.segmentation_batch_size,
            learning_rate=args.segmentation_lr,
            progress=True,
            num_figures=num_figures,
            **repeated,
        ),
    )


def _for_each(seeds: range, figures: Path, measure: Callable[..., list[Result]]) -> list[Result]:
    """Return the results of all seeds; the first one's outputs are drawn."""
    return [r for seed in seeds for r in measure(seed=seed, figures=figures if seed == seeds[0] else None)]
