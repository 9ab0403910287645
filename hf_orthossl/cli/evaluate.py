"""`orthossl evaluate`: measure the representations of encoders, in one table."""

import dataclasses
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.options import ImageOptions
from ..distributed.launch import init_processes, is_main_process, is_multi_process
from ..encoders import Encoder, load_encoder
from ..evaluation import Result, Transfer, read_results, transfer_suite, write_results
from ..evaluation.features import FeatureCache
from ..evaluation.frozen import LabelledFeatures, knn_results, labelled_splits, linear_results
from ..evaluation.linear_probe import PROTOCOLS
from ..evaluation.tables import results_table
from ..evaluation.transfer import with_earlier
from ..hub.adding_results import publish_results, results_repo
from ..messages import first_line, suggest
from .evaluate_tasks import (
    DetectionArguments,
    FineTuneOptions,
    TransferOptions,
    boxed_splits,
    describe_boxes,
    measure_detection,
    measure_finetune,
    transfer_summary,
)
from .parsing import parse

FROZEN = ("knn", "linear")
# Tasks that run in several processes.
SHARED = (*FROZEN, "transfer")
TASKS = (*FROZEN, "finetune", "transfer", "detection")
DESCRIPTION = (
    "Measure encoders on labelled images: kNN and linear probes on features that are extracted once and cached, "
    "fine-tuning, transfer to other data sets, and detection. "
    "MODEL is a run folder, an encoder folder, a timm name or a Hub id; several models are compared in one table."
)


@dataclass
class EvaluateArguments(ImageOptions):
    """Options of the measurements: models, tasks, data and probes."""

    models: list[str] = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"},
    )
    task: list[str] = field(
        default_factory=lambda: list(FROZEN),
        metadata={"help": f"one or more of {', '.join(TASKS)} (default: {' and '.join(FROZEN)})"},
    )
    train_split: str | None = field(default=None, metadata={"help": "split to train probes on (default: train)"})
    test_split: str | None = field(
        default=None, metadata={"help": "split to score them on (default: test, else validation)"}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "side of the input in pixels (default: the model's; detection: the images' shorter side)"},
    )
    untrained: bool = field(default=False, metadata={"help": "use random weights, for comparison"})
    k: int = field(default=200, metadata={"help": "number of neighbours that vote"})
    protocol: str = field(
        default="sgd",
        metadata={"help": "linear probe: sgd (the paper's) or lbfgs (logistic regression)"},
    )
    epochs: int = field(default=100, metadata={"help": "passes over the data with sgd"})
    learning_rate: float = field(default=0.1, metadata={"help": "learning rate of sgd; 0.2 for ImageNet in the paper"})
    probe_batch_size: int = field(default=256, metadata={"help": "batch size of sgd; 128 for ImageNet in the paper"})
    label_noise: float = field(
        default=0.0, metadata={"help": "repeat the linear probe with this share of wrong training labels, as in 0.2"}
    )
    imbalance: float = field(
        default=1.0,
        metadata={"help": "repeat the linear probe with classes of uneven size, largest over smallest, as in 100"},
    )
    seeds: int = field(default=1, metadata={"help": "number of seeds, one for each probe, fine-tuning and detector"})
    seed: int = field(default=0, metadata={"help": "the first seed; also the seed of untrained weights"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "number of processes that decode images"})
    device: str | None = field(default=None, metadata={"help": "such as cpu or cuda (default: cuda if there is a GPU)"})
    cache: str | None = field(
        default=None, metadata={"help": "folder of cached features, or none (default: in the Hugging Face home)"}
    )
    push_to_hub: bool = field(
        default=False,
        metadata={"help": "add the results to card and .eval_results of the models' repositories"},
    )
    output_dir: str = field(default="runs/evaluate", metadata={"help": "folder of results.json"})

    def __post_init__(self):
        super().__post_init__()
        for task in self.task:
            if task not in TASKS:
                raise ValueError(f"task {task!r} is unknown: {suggest(task, TASKS)}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol {self.protocol!r} is unknown: {suggest(self.protocol, PROTOCOLS)}")
        if self.push_to_hub and self.untrained:
            raise ValueError("push_to_hub and untrained exclude each other: leave out one of them")
        if self.seeds < 1 or self.batch_size < 1:
            raise ValueError(f"seeds is {self.seeds} and batch_size {self.batch_size}: both must be 1 or more")


def main(argv: list[str], prog: str = "orthossl evaluate") -> None:
    """Measure, print and write the results of all models."""
    groups = [EvaluateArguments, FineTuneOptions, TransferOptions, DetectionArguments]
    (args, finetune, transfer, detection), _ = parse(prog, DESCRIPTION, groups, argv)
    if is_multi_process() and (alone := [task for task in args.task if task not in SHARED]):
        raise ValueError(f"task {alone[0]!r} runs in one process only: start it without a launcher")
    init_processes(args.device)
    seeds, path = range(args.seed, args.seed + args.seeds), Path(args.output_dir) / "results.json"
    for name in args.models if args.push_to_hub else ():
        results_repo(name)
    if path.exists():
        # Earlier transfer results are preserved: if they cannot be read, fail before measuring anything.
        read_results(path)
    splits = {"train_split": args.train_split, "test_split": args.test_split}
    frozen = any(task in args.task for task in FROZEN)
    common = {"output_dir": args.output_dir, "device": args.device, "num_workers": args.num_workers}
    runs = [finetune.arguments(seed=seed, **common) for seed in seeds if "finetune" in args.task]
    sets = transfer.sets if "transfer" in args.task else []
    results: list[Result] = []
    notes: list[str] = []
    transferred: dict[str, Transfer] = {}
    if frozen or runs:
        train, test = labelled_splits(args.location, **splits, **args.reading())
        print(f"data     {train.describe(test)}")
    if "detection" in args.task:
        columns = {"name": args.dataset_name, "image_column": args.image_column}
        boxed = boxed_splits(args.location, args.image_size, **splits, **columns)
        print("data     " + describe_boxes(boxed))
    extraction = {"batch_size": args.batch_size, "num_workers": args.num_workers, "shared": True}
    cache = FeatureCache(None if args.cache == "none" else args.cache, enabled=args.cache != "none")
    # All encoders are opened first, so that a misspelt name fails before the first measurement.
    encoders = {name: open_encoder(name, args) for name in args.models}
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
            figures = Path(args.output_dir) / "detections" / re.sub(r"[^\w.-]+", "_", name).strip("_.")
            measured += measure_detection(
                encoder, boxed, detection, seeds=seeds, num_workers=args.num_workers, figures=figures
            )
            notes += [note for split in boxed for note in split.notes if note not in notes]
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
    if "detection" in args.task and detection.drawn_images:
        print(f"drawings {Path(args.output_dir) / 'detections'}")
    if args.push_to_hub:
        push(args.models, results + [r for outcome in transferred.values() for r in outcome.results], path)
    if not complete:
        raise SystemExit(1)


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


def open_encoder(name: str, args: EvaluateArguments) -> Encoder:
    """Return an encoder on the device, in eval mode.

    Raises:
        ValueError: If the encoder or the device cannot be used.
    """
    torch.manual_seed(args.seed)
    encoder = load_encoder(name, pretrained=not args.untrained, image_size=args.image_size)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return encoder.to(device).eval()
    except RuntimeError as error:
        raise ValueError(f"device {device!r} cannot be used ({first_line(error)}): pass --device cpu") from error


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
