"""`orthossl evaluate`: measure the representations of encoders, in one table."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from ..distributed.collectives import on_main
from ..distributed.environment import is_main_process, is_multi_process
from ..distributed.launch import init_processes
from ..encoders.channels import common_channels, match_channels, require_colour
from ..evaluation import Result, Transfer, read_results, transfer_sets, transfer_suite, write_results
from ..evaluation.features import FeatureCache
from ..evaluation.frozen import LabelledFeatures, knn_results, labelled_splits, linear_results
from ..evaluation.labels import check_labels
from ..evaluation.segmentation import segmentation_splits
from ..evaluation.segmentation.data import describe_masks
from ..evaluation.tables import results_table
from ..evaluation.transfer import with_earlier
from ..files import require_writable
from ..hub.adding_results import publish_results, results_repo
from ..locks import locked
from .evaluate_tasks import (
    boxed_splits,
    describe_boxes,
    finetuning_arguments,
    measure_detection,
    measure_finetune,
    measure_segmentation,
    transfer_summary,
)
from .inputs import open_encoder
from .options.evaluate import (
    FROZEN,
    SHARED,
    DetectionArguments,
    EvaluateArguments,
    FineTuneOptions,
    SegmentationArguments,
    TransferOptions,
)


def main(
    args: EvaluateArguments,
    finetune: FineTuneOptions,
    transfer: TransferOptions,
    detection: DetectionArguments,
    segmentation: SegmentationArguments,
) -> None:
    """Run the command.

    Args:
        args ([`EvaluateArguments`]): The options of all tasks.
        finetune ([`FineTuneOptions`]): Those of fine-tuning.
        transfer ([`TransferOptions`]): Those of the transfer suite.
        detection ([`DetectionArguments`]): Those of detection.
        segmentation ([`SegmentationArguments`]): Those of segmentation.
    """
    if is_multi_process() and (alone := [task for task in args.task if task not in SHARED]):
        raise ValueError(f"task {alone[0]!r} runs in one process only: start it without a launcher")
    init_processes(args.device)
    with locked(args.output_dir):
        evaluate(args, finetune, transfer, detection, segmentation)


def evaluate(
    args: EvaluateArguments,
    finetune: FineTuneOptions,
    transfer: TransferOptions,
    detection: DetectionArguments,
    segmentation: SegmentationArguments,
) -> None:
    """Measure, print and write the results of all models, in a folder that no other command uses."""
    seeds, path = range(args.seed, args.seed + args.seeds), Path(args.output_dir) / "results.json"
    for name in args.models if args.push_to_hub else ():
        results_repo(name)
    on_main(lambda: check_output(path))
    splits = {"train_split": args.train_split, "test_split": args.test_split}
    frozen = any(task in args.task for task in FROZEN)
    common: dict[str, Any] = {"output_dir": args.output_dir, "device": args.device, "num_workers": args.num_workers}
    runs = [finetuning_arguments(finetune, seed=seed, **common) for seed in seeds if "finetune" in args.task]
    sets = transfer_sets(transfer.transfer_sets, transfer.transfer_data) if "transfer" in args.task else []
    results: list[Result] = []
    notes: list[str] = []
    transferred: dict[str, Transfer] = {}
    # All encoders are opened first, so that a misspelt name fails before the first measurement.
    encoders = {name: open_encoder(name, args) for name in args.models}
    reading = args.reading() | {"channels": args.channels or common_channels(encoders)}
    for encoder in encoders.values():
        for task in ("transfer", "detection", "segmentation"):
            if task in args.task:
                require_colour(encoder, f"task {task}")
    if frozen or runs:
        train, test = labelled_splits(args.location, exclude=[args.output_dir], **splits, **reading)
        print(f"data     {train.describe(test)}")
        for name, encoder in encoders.items():
            if measured_by := match_channels(encoder, train):
                print(f"pixels   {name}: {measured_by}")
        labelled = check_labels(train, test)
        if "knn" in args.task and args.k > labelled:
            notes.append(f"k is {args.k} and {train.split} has {labelled:,} labelled images: all of them vote.")
    if "detection" in args.task:
        columns = {"name": args.dataset_name, "image_column": args.image_column}
        boxed = boxed_splits(args.location, args.image_size, box_format=detection.box_format, **splits, **columns)
        print("data     " + describe_boxes(boxed))
    if "segmentation" in args.task:
        masked = segmentation_splits(
            args.location,
            name=args.dataset_name,
            image_column=args.image_column,
            mask_column=segmentation.mask_column,
            ignore_values=segmentation.ignore_values,
            progress=True,
            **splits,
        )
        print("data     " + describe_masks(*masked))
    extraction: dict[str, Any] = {"batch_size": args.batch_size, "num_workers": args.num_workers, "shared": True}
    cache = FeatureCache(None if args.cache == "none" else args.cache, enabled=args.cache != "none")
    for name, encoder in encoders.items():
        measured: list[Result] = []
        if frozen:
            features = LabelledFeatures.extract(encoder, train, test, cache, progress=True, **extraction)
            notes += [note for note in features.notes if note not in notes]
            measured += measure(features, args)
        if runs:
            tuned, tuning_notes = measure_finetune(encoder, train, test, runs)
            measured += tuned
            notes += [note for note in tuning_notes if note not in notes]
        if "detection" in args.task:
            figures = drawings(args, "detections", name)
            measured += measure_detection(
                encoder, boxed, detection, seeds=seeds, num_workers=args.num_workers, figures=figures
            )
            notes += [note for split in boxed for note in split.notes if note not in notes]
        if "segmentation" in args.task:
            figures = drawings(args, "segmentations", name)
            measured += measure_segmentation(
                encoder, masked, segmentation, seeds=seeds, figures=figures, num_figures=detection.drawn_images
            )
            notes += [note for split in masked for note in split.notes if note not in notes]
        shown = f"{name} (untrained)" if args.untrained else name
        if sets:
            transferred[shown] = transfer_suite(
                encoder,
                sets,
                model=shown,
                results_file=path,
                cache=cache,
                probes=transfer.probes,
                seeds=seeds,
                progress=True,
                say=print,
                extraction=extraction,
                k=args.k,
                **linear_settings(args),
            )
        results += [dataclasses.replace(result, protocol={"model": shown, **result.protocol}) for result in measured]
    if not is_main_process():
        return
    complete = report(path, results, notes, transferred)
    for task, place in (("detection", "detections"), ("segmentation", "segmentations")):
        if task in args.task and detection.drawn_images:
            print(f"drawings {Path(args.output_dir) / place}")
    if args.push_to_hub:
        push(args.models, results + [r for outcome in transferred.values() for r in outcome.results], path)
    if not complete:
        raise SystemExit(1)


def drawings(args: EvaluateArguments, place: str, name: str) -> Path:
    """Return the folder for a model's drawings of a task."""
    return Path(args.output_dir) / place / re.sub(r"[^\w.-]+", "_", name).strip("_.")


def check_output(path: Path) -> None:
    """Check before anything is measured that the results can be written, next to those that are already there.

    Raises:
        ValueError: A file is in the way, or the file of results cannot be read.
        OSError: The folder cannot be written.
    """
    require_writable(path.parent, [path.name])
    if path.exists():
        read_results(path)


def report(path: Path, results: list[Result], notes: list[str], transferred: dict[str, Transfer]) -> bool:
    """Write and print the results, and return whether all transfer sets succeeded.

    Args:
        path (`Path`): The file of results.
        results (`list[Result]`): Results of all models, without those of transfer.
        notes (`list[str]`): Sentences to print.
        transferred (`dict[str, Transfer]`): Outcome of the transfer suite for each model.
    """
    print()
    if results:
        print("\n".join([results_table(results), *(f"Note: {note}" for note in notes), ""]))
    if transferred:
        print(f"{transfer_summary(transferred)}\n")
    measured = results + [result for outcome in transferred.values() for result in outcome.results]
    if measured:
        print(f"results  {write_results(path, with_earlier(path, measured))}")
    failed = list(dict.fromkeys(name for outcome in transferred.values() for name in outcome.failures))
    if failed:
        print(
            f"orthossl evaluate: {len(failed)} transfer sets failed ({', '.join(failed)}): run the same command "
            "again to measure them",
            file=sys.stderr,
        )
    return not failed


def push(models: list[str], results: list[Result], path: Path) -> None:
    """Add each model's results to its Hub repository.

    Raises:
        OSError: If the Hub does not answer or rejects the results; the message names the file of results.
    """
    for model in models:
        own = [result for result in results if result.protocol["model"] == model]
        if not own:
            continue
        try:
            published = publish_results(model, own)
        except (OSError, ValueError) as error:
            raise OSError(f"{error}. The results are in {path}") from error
        print(f"published  {published.url} ({len(published.results)} results, read back)")


def measure(features: LabelledFeatures, args: EvaluateArguments) -> list[Result]:
    """Return the kNN and linear results of one encoder.

    The linear probe runs on the main process, and again for label noise and for imbalance if requested.
    """
    results = knn_results(features, k=args.k, shared=True) if "knn" in args.task else []
    if "linear" in args.task and is_main_process():
        corruptions: list[dict[str, float]] = [{}]
        corruptions += [{"label_noise": args.label_noise}] if args.label_noise else []
        corruptions += [{"imbalance": args.imbalance}] if args.imbalance != 1 else []
        seeds = range(args.seed, args.seed + args.seeds)
        for corruption in corruptions:
            settings = {**corruption, **linear_settings(args)}
            results += linear_results(features, seeds=seeds, progress=True, **settings)
    return results


def linear_settings(args: EvaluateArguments) -> dict[str, Any]:
    """Return the settings of the linear probe."""
    if args.protocol == "lbfgs":
        return {"protocol": "lbfgs"}
    settings = {"epochs": args.epochs, "learning_rate": args.learning_rate, "batch_size": args.probe_batch_size}
    return {"protocol": args.protocol, **settings}
