"""`orthossl pretrain`: images in, a trained encoder that anyone can load out."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from ..data import ImageSource, available_splits, load_source
from ..distributed.collectives import on_main
from ..distributed.launch import end_processes, silence
from ..distributed.sharding import gather_module
from ..encoders import load_encoder
from ..evaluation import KNNMonitor, Result, write_results
from ..hub import write_encoder_folder
from ..hub.publish import Publication, publish_encoder
from ..methods import get_method
from ..modeling import SSLConfig, SSLModel
from ..training import OrthoSSLTrainer, OrthoSSLTrainingArguments, pretrain_loop
from ..training.data import TrainingData
from ..training.loop import STATE as LOOP_STATE
from ..training.publishing import training_record
from ..training.resume import settled_arguments
from ..training.run_folder import begin_folder, check_folder, overwriting
from ..training.trainer import STATE as TRAINER_STATE
from .options import DataArguments, ModelArguments, PretrainArguments
from .parsing import parse, read_config, scan
from .publish import published

# Where a run goes and how it was started is no part of what it is.
NOT_SETTINGS = ("output_dir", "resume", "overwrite_output", "hub_token")
DESCRIPTION = (
    "Train an encoder on unlabelled images with any self-supervised method and an orthogonality penalty. "
    "Without options it trains on scikit-learn's digits in a few minutes."
)


def train_with_trainer(model: SSLModel, data: TrainingData) -> None:
    """The Trainer front, behind `orthossl pretrain`."""
    OrthoSSLTrainer(model, train_dataset=data, write_encoder=False).train()


def train_with_loop(model: SSLModel, data: TrainingData) -> None:
    """The accelerate front, behind `scripts/pretrain.py`."""
    pretrain_loop(model, data, write_encoder=False)


def main(argv: list[str], train: Callable = train_with_trainer, prog: str = "orthossl pretrain") -> None:
    """Reads options, trains, measures, and leaves a run folder.

    Args:
        argv (`list[str]`): Command-line arguments.
        train (`Callable`): The front, called with model, images and training arguments.
        prog (`str`): The command's name in help and messages.
    """
    data, chosen, args, given = read_options(argv, prog)
    is_main = PartialState().is_main_process
    folder = Path(args.output_dir)
    if not is_main:
        silence()
    on_main(lambda: check_folder(folder, args))
    args = settled_arguments(args, LOOP_STATE if train is train_with_loop else TRAINER_STATE)
    set_seed(args.seed)
    # transformers' own bars (one per file written) would tear the training bar apart.
    disable_progress_bar()
    source = load_source(
        data.dataset,
        name=data.dataset_name,
        split=data.split,
        image_column=data.image_column,
        label_column=data.label_column,
        streaming=data.streaming,
    )
    model = build_model(chosen, source)
    dataset = TrainingData(source, model, args.with_recipe(model.method.recipe))
    args.views = dataset.args.views
    # What is wrong with the command may show only in training: until its first step, an earlier run is kept.
    with overwriting(folder) if is_main and args.overwrite_output else contextlib.nullcontext():
        if is_main:
            settings = {k: v for k, v in given.items() if k not in NOT_SETTINGS} | fixed_settings(data, chosen, args)
            begin_folder(folder, args, settings)
            print(describe(model, source, args))
        monitor = knn_monitor(data, source, model, args) if is_main else None
        results = monitor.measure(model.encoder, step=0) if monitor else []
        penalties = [float(model.penalty().detach())] if model.regularizer else []
        train(model, dataset)
    # Of sharded weights each process holds a part: all take part in whatever reads them.
    if model.regularizer:
        penalties.append(float(model.penalty().detach()))
    encoder = gather_module(model.encoder)
    end_processes()
    if not is_main:
        return

    if monitor:
        results += monitor.measure(encoder, step="end")
    write_results(folder / "results.json", results)
    front = "accelerate loop" if train is train_with_loop else "Trainer"
    training = training_record(model, dataset, front=front)
    encoder_folder = write_encoder_folder(
        model, folder / "encoder", source=source, results=results, training=training, encoder=encoder
    )
    print(summary(folder, encoder_folder, results, penalties, model))
    if args.push_to_hub:
        print(published(push(encoder_folder, args)))


def read_options(argv: list[str], prog: str) -> tuple[DataArguments, ModelArguments, PretrainArguments, dict]:
    """The options; with `--resume`, those of the run in the folder, which flags may extend but not change."""
    classes = [DataArguments, ModelArguments, PretrainArguments]
    quick = scan(argv)
    base = Path(quick.output_dir or PretrainArguments.output_dir) / "config.yaml"
    (data, chosen, args), given = parse(
        prog, DESCRIPTION, classes, argv, base=base if quick.resume and base.is_file() else None
    )
    # A file named with --config may say where the run is.
    saved = Path(args.output_dir) / "config.yaml"
    if args.resume and saved.is_file():
        before = read_config(saved)
        for name, value in fixed_settings(data, chosen, args).items():
            # kNN only watches: it may be asked for anew. Runs of earlier releases do not name every option.
            if name in before and before[name] != value and name != "knn_images":
                raise ValueError(
                    f"{name} is {value!r} and the run in {saved.parent} was started with {before[name]!r}: leave "
                    "the option out to resume it, or start another run with another --output_dir"
                )
    return data, chosen, args, given


def fixed_settings(data: DataArguments, chosen: ModelArguments, args: PretrainArguments) -> dict:
    """What a resumed run cannot change."""
    return dataclasses.asdict(data) | dataclasses.asdict(chosen) | {"views": args.views, "seed": args.seed}


def build_model(chosen: ModelArguments, source: ImageSource) -> SSLModel:
    """The encoder with its method and penalty."""
    size = chosen.image_size
    if size is None and source.image_size is not None and min(source.image_size) <= 224:
        size = min(source.image_size)
    # Names are checked before a large backbone is built or fetched.
    config = SSLConfig(
        backbone=chosen.backbone,
        image_size=size,
        backbone_config=chosen.backbone_config,
        method=chosen.method,
        method_config=chosen.method_config,
        regularizer=chosen.regularizer,
        gamma=chosen.gamma,
        regularizer_config=chosen.regularizer_config,
        penalty_every=chosen.penalty_every,
        whitening=chosen.whitening,
    )
    encoder = load_encoder(chosen.backbone, pretrained=chosen.pretrained, image_size=size, **chosen.backbone_config)
    config.image_size = encoder.image_size
    return SSLModel(config, encoder)


def knn_monitor(
    data: DataArguments, source: ImageSource, model: SSLModel, args: OrthoSSLTrainingArguments
) -> KNNMonitor | None:
    """What measures kNN accuracy, if there are labels; queries come from a held-out split where there is one."""
    if source.label_column is None or data.knn_images <= 0 or data.streaming:
        return None
    queries = None
    for split in available_splits(data.dataset, data.dataset_name):
        if split not in ("test", "validation", "valid", "val") or split == source.split:
            continue
        columns = {"image_column": source.image_column, "label_column": source.label_column}
        found = load_source(data.dataset, name=data.dataset_name, split=split, **columns)
        # Some sets publish their test images with the label -1 throughout.
        if set(found.dataset[: data.knn_images][source.label_column]) - {-1, None}:
            queries = found
            break
    return KNNMonitor(source, queries, model.encoder.image_size, images=data.knn_images, seed=args.seed)


def describe(model: SSLModel, source: ImageSource, args: OrthoSSLTrainingArguments) -> str:
    """What is about to happen, in two lines."""
    config, encoder = model.config, model.encoder
    count = "a stream of" if source.num_rows is None else f"{source.num_rows:,}"
    size = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    penalty = "no penalty" if config.regularizer is None else f"{config.regularizer}, γ = {config.gamma:g}"
    return (
        f"data     {source.name}, {count} images, views {args.views} at {encoder.image_size} px\n"
        f"model    {config.backbone} ({size:.1f} M parameters), {get_method(config.method).title}, {penalty}"
    )


def push(encoder_folder: Path, args: OrthoSSLTrainingArguments) -> Publication:
    """Publishes the encoder with its results, which no push during training had.

    Raises:
        OSError: the Hub does not answer, or refuses; the message says how to publish later.
    """
    repo_id, revision, token = args.hub_model_id, args.hub_revision, args.hub_token
    try:
        return publish_encoder(encoder_folder, repo_id, private=args.hub_private_repo, revision=revision, token=token)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{error}. Training has ended and {encoder_folder} is complete: orthossl publish {args.output_dir} "
            f"--repo_id {repo_id} publishes it"
        ) from error


def summary(folder: Path, encoder_folder: Path, results: list[Result], penalties: list[float], model: SSLModel) -> str:
    """What came out of it and where it is."""
    lines = []
    if results:
        top1 = [result.value for result in results if result.metric == "top1"]
        lines.append(f"kNN      top-1 {top1[0]:.3f} before training, {top1[-1]:.3f} after ({results[-1].split})")
    if penalties:
        lines.append(
            f"{model.config.regularizer:<8} {penalties[0]:.5g} before training, {penalties[-1]:.5g} after (before γ)"
        )
    lines += [
        f"results  {folder / 'results.json'}",
        f"encoder  {encoder_folder} (README.md shows how to load it)",
    ]
    return "\n".join(lines)
