"""`orthossl evaluate`: how good any encoder's representations are, as one table."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..encoders import Encoder, load_encoder
from ..evaluation import Result, write_results
from ..evaluation.cache import FeatureCache
from ..evaluation.frozen import LabelledFeatures, knn_results, labelled_splits, linear_results
from ..evaluation.linear_probe import PROTOCOLS
from ..evaluation.tables import results_table
from ..methods import nearest
from .parsing import parse

TASKS = ("knn", "linear")
DESCRIPTION = (
    "Measure frozen encoders on labelled images: kNN and linear probes on features that are extracted once and kept. "
    "MODEL is a run folder, an encoder folder, a timm name or a Hub id; several give one table."
)


@dataclass
class EvaluateArguments:
    """What to measure on what."""

    models: list[str] = field(
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"}
    )
    task: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": f"one or more of {', '.join(TASKS)} (default: all)"}
    )
    dataset: str = field(
        default="digits", metadata={"help": "Hub id, folder of images or of parquet files, or 'digits'"}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    train_split: str | None = field(default=None, metadata={"help": "what probes learn from (default: train)"})
    test_split: str | None = field(
        default=None, metadata={"help": "what they are scored on (default: test, else validation)"}
    )
    image_column: str | None = field(default=None, metadata={"help": "column of images (default: found by type)"})
    label_column: str | None = field(default=None, metadata={"help": "column of labels (default: found by type)"})
    image_size: int | None = field(
        default=None, metadata={"help": "side of the input in pixels (default: the model's)"}
    )
    untrained: bool = field(default=False, metadata={"help": "random weights instead of the model's, to compare with"})
    k: int = field(default=200, metadata={"help": "neighbours that vote"})
    protocol: str = field(
        default="sgd", metadata={"help": "linear probe: sgd (the paper's) or lbfgs (logistic regression, λ chosen)"}
    )
    epochs: int = field(default=100, metadata={"help": "passes of the sgd probe"})
    learning_rate: float = field(default=0.1, metadata={"help": "of the sgd probe; the paper takes 0.2 for ImageNet"})
    probe_batch_size: int = field(default=256, metadata={"help": "of the sgd probe; the paper takes 128 for ImageNet"})
    label_noise: float = field(
        default=0.0, metadata={"help": "repeat the linear probe with this share of wrong training labels, as in 0.2"}
    )
    imbalance: float = field(
        default=1.0,
        metadata={"help": "repeat the linear probe with classes of uneven size, largest over smallest, as in 100"},
    )
    seeds: int = field(default=1, metadata={"help": "linear probes, each from another seed"})
    seed: int = field(default=0, metadata={"help": "the first seed; also that of untrained weights"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda (default: cuda where there is one)"}
    )
    cache: str | None = field(
        default=None, metadata={"help": "folder of extracted features, or none (default: in the Hugging Face home)"}
    )
    output_dir: str = field(default="runs/evaluate", metadata={"help": "where results.json goes"})

    def __post_init__(self):
        for task in self.task:
            if task not in TASKS:
                raise ValueError(f"task {task!r} is unknown: {nearest(task, list(TASKS))}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol {self.protocol!r} is unknown: {nearest(self.protocol, list(PROTOCOLS))}")
        if self.seeds < 1 or self.batch_size < 1:
            raise ValueError(f"seeds is {self.seeds} and batch_size {self.batch_size}: both must be 1 or more")


def main(argv: list[str], prog: str = "orthossl evaluate") -> None:
    (args,), _ = parse(prog, DESCRIPTION, [EvaluateArguments], argv)
    columns = {"name": args.dataset_name, "image_column": args.image_column, "label_column": args.label_column}
    train, test = labelled_splits(args.dataset, train_split=args.train_split, test_split=args.test_split, **columns)
    cache = FeatureCache(None if args.cache == "none" else args.cache, enabled=args.cache != "none")
    print(f"data     {train.name}: {train.num_rows:,} images of {train.split}, {test.num_rows:,} of {test.split}")
    results, notes = [], []
    # All are opened first: a misspelt name must not cost the measurements before it.
    encoders = {name: open_encoder(name, args) for name in args.models}
    for name, encoder in encoders.items():
        features = LabelledFeatures.extract(
            encoder, train, test, cache, progress=True, batch_size=args.batch_size, num_workers=args.num_workers
        )
        notes += [note for note in features.notes if note not in notes]
        shown = f"{name} (untrained)" if args.untrained else name
        results += [
            dataclasses.replace(result, settings={"model": shown, **result.settings})
            for result in measure(features, args)
        ]
    path = write_results(Path(args.output_dir) / "results.json", results)
    print()
    print("\n".join([results_table(results), *(f"Note: {note}" for note in notes), "", f"results  {path}"]))


def open_encoder(name: str, args: EvaluateArguments) -> Encoder:
    """The encoder, on the device, in eval mode."""
    torch.manual_seed(args.seed)
    encoder = load_encoder(name, pretrained=not args.untrained, image_size=args.image_size)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return encoder.to(device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}): pass --device cpu"
        ) from error


def measure(features: LabelledFeatures, args: EvaluateArguments) -> list[Result]:
    """All tasks of one encoder; the linear probe again for each kind of worse labels."""
    results = knn_results(features, k=args.k) if "knn" in args.task else []
    if "linear" in args.task:
        settings = {}
        if args.protocol == "sgd":
            settings = {"epochs": args.epochs, "learning_rate": args.learning_rate, "batch_size": args.probe_batch_size}
        worse = [{}]
        worse += [{"label_noise": args.label_noise}] if args.label_noise else []
        worse += [{"imbalance": args.imbalance}] if args.imbalance != 1 else []
        seeds = range(args.seed, args.seed + args.seeds)
        for kind in worse:
            results += linear_results(features, protocol=args.protocol, seeds=seeds, progress=True, **kind, **settings)
    return results
