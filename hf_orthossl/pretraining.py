"""Run a whole pretraining from Python: from images to a trained encoder with model card, spectra and results."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from accelerate import PartialState
from torch import nn
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from .configuration import AUTO
from .data import ImageSource, load_source
from .data.listing import HELD_OUT, split_kind
from .distributed.collectives import on_main
from .distributed.launch import end_processes, silence
from .distributed.sharding import gather_module
from .encoders import Encoder
from .evaluation import KNNMonitor, Result, read_results, write_results
from .hub import write_encoder_folder
from .hub.encoder_folder import SPECTRA_IMAGES
from .hub.publish import Publication, publish_encoder
from .locks import locked
from .messages import suggest
from .modeling import SSLModel
from .options import convert, default_of, forms, overridden, read_config, unknown
from .reporting import write_report
from .spectra import FeatureSpectrum, SpectralReport
from .spectra.covariance import MAX_DIM, covariance_for
from .terminal import replace_characters
from .training import OrthoSSLTrainer, OrthoSSLTrainingArguments, TrainingData, pretrain_loop
from .training.adaptation import OPTIONS as ADAPTED
from .training.building import build_model, check_resumed, fixed_settings, settled_model
from .training.callbacks.measuring import error_text
from .training.callbacks.reporting import read_history
from .training.inherited import refusal
from .training.loop import STATE as LOOP_STATE
from .training.options import OPTION_CLASSES, DataArguments, ModelArguments, TrainingOptions, check_given
from .training.printing import Spent, describe, next_command, summarize
from .training.publishing import training_record
from .training.rehearsal import rehearse
from .training.resume import begin_record, settled_arguments
from .training.run_folder import REPORT, begin_folder, check_folder, overwriting, update_settings
from .training.settings import NOT_SETTINGS, option_text
from .training.starting import drift_results, measure_start, read_start
from .training.trainer import STATE as TRAINER_STATE

Front = Literal["trainer", "loop"]

# The `dataset` of a run that was started from Python with a data set in memory.
IN_MEMORY = "(data set in memory)"


@dataclass(frozen=True)
class PretrainingRun:
    """A pretraining run: its folder and the files in it.

    Args:
        output_dir (`Path`): The folder, as `orthossl pretrain` or [`pretrain`] leaves it.
        publication ([`~hub.Publication`], *optional*): Where the encoder was published, with `push_to_hub`.
        stopped (`int`, *optional*): The step after which the run stopped early, with `stop_on_collapse`.

    Example:
        ```python
        run = PretrainingRun(Path("runs/a"))
        [entry["loss"] for entry in run.history if "loss" in entry]
        ```
    """

    output_dir: Path
    publication: Publication | None = None
    stopped: int | None = None

    @property
    def encoder(self) -> Path:
        """Return the encoder folder: weights, card, spectra and results, loadable without this package."""
        return self.output_dir / "encoder"

    @property
    def report(self) -> Path:
        """Return the page that says what the run came to, for a browser."""
        return self.output_dir / REPORT

    @property
    def config(self) -> dict[str, Any]:
        """Return the settings of the run; `orthossl pretrain --config` starts it again."""
        return read_config(self.output_dir / "config.yaml")

    @property
    def history(self) -> list[dict[str, Any]]:
        """Return the log entries, each with its `step`."""
        return read_history(self.output_dir)

    @property
    def results(self) -> list[Result]:
        """Return kNN accuracies before and after training, if there are labels, and the drift from given weights."""
        return read_results(self.output_dir / "results.json")


def pretrain(
    data: Any = "digits",
    *,
    front: Front = "trainer",
    **options: Any,
) -> PretrainingRun:
    """Pretrain an encoder on unlabelled images and write the same run folder as `orthossl pretrain`.

    The folder holds `config.yaml`, `history.jsonl`, `results.json`, checkpoints, and `encoder/` with weights, card,
    spectra and results. From the same options and seed, function and command train the same weights, bit for bit.

    Args:
        data (`str`, `PathLike`, a list of them, or a data set, defaults to "digits"): Folders, a list or table of
            paths, shards, a Hub id, "digits" (built in), or a data set of the `datasets` library; everything that
            [`load_source`] accepts.
        front (`str`, defaults to "trainer"): "trainer" trains with [`OrthoSSLTrainer`], "loop" with [`pretrain_loop`];
            the results are the same.
        options: The options of `orthossl pretrain`, by the same names: `backbone`, `method`, `regularizer`, `gamma`,
            `output_dir`, `max_steps`, … Those that end in `_config` are dictionaries;
            `config` names a YAML file of options.

    Returns:
        [`PretrainingRun`]: The folder of the run, with its encoder, history and results.

    Raises:
        ValueError: An option is unknown or has a value that cannot be used, or `output_dir` holds another run.
        OSError: The data cannot be read, or the folder cannot be written.
        FloatingPointError: The loss is not finite, see `on_nonfinite`.

    Example:
        ```python
        from hf_orthossl import load_encoder, pretrain

        run = pretrain("path/to/images", backbone="resnet50", method="byol", regularizer="so", output_dir="runs/a")
        encoder = load_encoder(run.encoder, pretrained=True)
        run.history[-1], run.results
        ```
    """
    if front not in ("trainer", "loop"):
        raise ValueError(f"front {front!r} is unknown: {suggest(front, ['trainer', 'loop'])}")
    if isinstance(options.get("backbone"), nn.Module):
        raise ValueError(
            f"backbone is a {type(options['backbone']).__name__}: pass the name of a backbone, or train a network of "
            "your own by OrthoSSLTrainer(SSLModel(SSLConfig(method=…), encoder=network), args, train_dataset=…)"
        )
    if "dataset" in options:
        raise ValueError("dataset is given as an option: pass the data set as the first argument of pretrain")
    if {"max_steps", "num_train_epochs"} <= set(options) and options["max_steps"] != -1:
        raise ValueError("max_steps and num_train_epochs exclude each other: pass one of them")
    settings = _settings(options)
    paths = [data] if isinstance(data, str | os.PathLike) else data
    in_memory = not (isinstance(paths, list | tuple) and all(isinstance(path, str | os.PathLike) for path in paths))
    settings["dataset"] = [IN_MEMORY] if in_memory else [os.fspath(path) for path in paths]
    data_args = DataArguments(**_chosen(settings, DataArguments))
    model_args = ModelArguments(**_chosen(settings, ModelArguments))
    args = OrthoSSLTrainingArguments(**_chosen(settings, TrainingOptions))
    model_args = settled_model(model_args, args)
    check_resumed(data_args, model_args, args)
    defaults = {spec.name: default_of(spec) for kind in OPTION_CLASSES for spec in dataclasses.fields(kind)}
    given = {name: value for name, value in settings.items() if value != defaults[name]}
    check_given(given)
    return run_pretraining(data_args, model_args, args, given, front=front, images=data if in_memory else None)


def run_pretraining(
    data_args: DataArguments,
    model_args: ModelArguments,
    args: OrthoSSLTrainingArguments,
    given: dict[str, Any],
    *,
    front: Front = "trainer",
    images: datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | ImageSource | None = None,
    brief: bool = False,
) -> PretrainingRun:
    """Train, measure, and write the run folder; every process of a run must call it.

    Args:
        data_args ([`DataArguments`]): What to train on.
        model_args ([`ModelArguments`]): What to train.
        args ([`OrthoSSLTrainingArguments`]): How to train.
        given (`dict`): The options that the user set, for `config.yaml`.
        front (`str`, defaults to "trainer"): "trainer" or "loop".
        images (data set or [`ImageSource`], *optional*): A data set in memory, or one that is open already, which
            replaces that of `data_args`.
        brief (`bool`, defaults to `False`): Leave out the rehearsal and the spectra beside the encoder, which take
            seconds: for one of many runs that are alike and measured elsewhere. The weights are the same, bit for bit.
    """
    replace_characters()
    is_main = PartialState().is_main_process
    folder = Path(args.output_dir)
    if not is_main:
        silence()
    with locked(folder):
        on_main(lambda: check_folder(folder, args))
        args = settled_arguments(args, LOOP_STATE if front == "loop" else TRAINER_STATE)
        set_seed(args.seed)
        source = _load_source(data_args, images, folder)
        model = build_model(model_args, source, args.views, resume=args.resume)
        options = fixed_settings(data_args, model_args, args)
        data = TrainingData(source, model, args.with_recipe(model.method.recipe), options)
        begin_record(model, data)
        args, trained_by = data.args, "accelerate loop" if front == "loop" else "Trainer"
        if not brief:
            with _without_library_bars():
                rehearse(model, data, front=trained_by)
        # Some errors appear only in training: an earlier run is kept until the first step.
        with overwriting(args), _without_library_bars():
            if is_main:
                settings = {k: v for k, v in given.items() if k not in NOT_SETTINGS}
                settings |= fixed_settings(data_args, model_args, args)
                if args.adapt:
                    values = {name: getattr(args, name) for name in ADAPTED}
                    settings |= values | {"optim": option_text(args.optim)}
                begin_folder(folder, args, settings, data.record.run)
            monitor = knn_monitor(data_args, source, model, args) if is_main else None
            if is_main:
                print(describe(model, source, data, monitor))
            beginning = None
            ranks: list[tuple[float, int]] = []
            if model.config.pretrained is not None and args.resume:
                # The model that was built here does not have the weights of the start.
                beginning = read_start(folder)
                results = beginning.results if beginning else []
                penalties = [beginning.penalty] if beginning and beginning.penalty is not None else []
            else:
                results, ranks = _measured(monitor, model.encoder, 0)
                penalties = [float(model.penalty().detach())] if model.regularizer else []
                if model.config.pretrained is not None and is_main:
                    penalty = penalties[0] if penalties else None
                    beginning = measure_start(folder, model.encoder, source, results=results, penalty=penalty)
            began, done = time.monotonic(), data.record.steps
            if front == "loop":
                pretrain_loop(model, data, write_encoder=False)
            else:
                OrthoSSLTrainer(model, train_dataset=data, write_encoder=False).train()
        images = (data.record.steps - done) * args.images_per_step
        spent = Spent.of(time.monotonic() - began, images)
        # Each process holds a part of sharded weights, so all processes must take part in reading them.
        if model.regularizer:
            penalties.append(float(model.penalty().detach()))
        encoder = gather_module(model.encoder)
        end_processes()
        run = PretrainingRun(folder, stopped=data.watch.stopped)
        if not is_main or encoder is None:
            return run
        encoder = data.watch.selected(encoder)

        with _without_library_bars():
            measured, last = _measured(monitor, encoder, "end")
            results, ranks = results + measured, [*ranks, *last]
            if beginning:
                results = results + drift_results(encoder, source, beginning)
            write_results(folder / "results.json", results)
            if model.config.gamma == AUTO:
                update_settings(folder, data.record)
            record = training_record(model, data, front=trained_by)
            spectra = beginning and beginning.spectra
            write_encoder_folder(
                model,
                run.encoder,
                source=source,
                results=results,
                training=record,
                spectra_images=None if brief else SPECTRA_IMAGES,
                encoder=encoder,
                start=spectra,
            )
            if brief:
                return run
            watched = data.watch.describe(data.record.steps)
            report = SpectralReport.load(run.encoder)
            print(summarize(folder, results, penalties, model, report, watched, ranks, spent))
            print(_report(run, encoder, source))
            if stopped := watched.get("stopped"):
                print(f"stopped  {stopped}; --resume with --stop_on_collapse no goes on")
            else:
                named = None if data_args.location == IN_MEMORY else data_args.dataset
                print(next_command(folder, named, bool(report.complete_collapse())))
            return dataclasses.replace(run, publication=publish_run(run, args)) if args.push_to_hub else run


def knn_monitor(
    data_args: DataArguments, source: ImageSource, model: SSLModel, args: OrthoSSLTrainingArguments
) -> KNNMonitor | None:
    """Return the monitor of kNN accuracy, or `None` without labels.

    Queries come from a held-out split if there is one.

    Args:
        data_args ([`DataArguments`]): The data set and `knn_images`.
        source ([`ImageSource`]): The images that the model trains on.
        model ([`SSLModel`]): The model whose encoder is measured.
        args ([`OrthoSSLTrainingArguments`]): The training arguments; `seed` determines the images.
    """
    if source.label_column is None or data_args.knn_images <= 0 or data_args.streaming:
        return None
    queries = None
    for split in source.splits:
        if split_kind(split) not in HELD_OUT or split in source.split.split("+"):
            continue
        held_out = source.with_split(split)
        # Some data sets publish their test images with the label -1 throughout.
        labels = held_out.dataset.select_columns([source.label_column])[: data_args.knn_images][source.label_column]
        if any(held_out.class_index(label) >= 0 for label in labels):
            queries = held_out
            break
    return KNNMonitor(source, queries, model.encoder.image_size, images=data_args.knn_images, seed=args.seed)


def _measured(
    monitor: KNNMonitor | None, encoder: Encoder, step: int | str
) -> tuple[list[Result], list[tuple[float, int]]]:
    """Return kNN accuracies, and the effective rank of the representations that they are of, with the largest one.

    Both are empty without labels; the rank too if the representations are not finite.
    """
    if monitor is None:
        return [], []
    bank, queries = monitor.features(encoder)
    results, vectors = monitor.results(bank, queries, step), bank.representations
    if len(vectors) < 2 or not torch.isfinite(vectors).all():
        return results, []
    covariance = covariance_for(vectors.shape[1], MAX_DIM, vectors.device)
    covariance.update(vectors)
    spectrum = FeatureSpectrum.from_covariance(covariance)
    return results, [(spectrum.effective_rank, spectrum.most_positive)]


def _report(run: PretrainingRun, encoder: Encoder, source: ImageSource) -> str:
    """Write the report of a run that has ended, and return the line that says where it is, or why there is none."""
    try:
        return f"report   {write_report(run.output_dir, encoder=encoder, source=source)}"
    except Exception as error:  # whatever a picture fails by, the run is complete
        return f"report   not written ({error_text(error)}); orthossl report {run.output_dir} writes it"


def publish_run(run: PretrainingRun, args: OrthoSSLTrainingArguments) -> Publication:
    """Publish the encoder with its results, which pushes during training do not include.

    Raises:
        OSError: The Hub does not answer, or rejects the encoder; the message says how to publish it later.
    """
    repo_id, revision, token = args.hub_model_id, args.hub_revision, args.hub_token
    try:
        return publish_encoder(run.encoder, str(repo_id), private=args.hub_private_repo, revision=revision, token=token)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{error}. Training has ended and {run.encoder} is complete: publish it with "
            f"orthossl publish {run.output_dir} --repo_id {repo_id}"
        ) from error


def _chosen(settings: dict[str, Any], kind: type) -> dict[str, Any]:
    return {name: settings[name] for name in forms(kind) if name in settings}


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, completed from the file that `config` names or from the run that `resume` continues."""
    known = {name: form for kind in OPTION_CLASSES for name, form in forms(kind).items()}
    options = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    for name in options:
        if name not in (*known, "config"):
            raise ValueError(unknown(name, [*known, "config"], refusal))
    path = options.pop("config", None)
    options = {name: convert(name, value, known[name]) for name, value in options.items()}
    saved = Path(options.get("output_dir", TrainingOptions.output_dir)) / "config.yaml"
    if path is None and options.get("resume") and saved.is_file():
        path = saved
    settings = {}
    for name, value in ({} if path is None else read_config(path)).items():
        if name not in known:
            raise ValueError(unknown(name, known, refusal, where=f"{path}: "))
        settings[name] = convert(f"{path}: {name}", value, known[name])
    return overridden(settings, options)


def _load_source(
    data_args: DataArguments,
    images: datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | ImageSource | None,
    folder: Path,
) -> ImageSource:
    if isinstance(images, ImageSource):
        return images
    if images is None and data_args.location == IN_MEMORY:
        raise ValueError(
            "the run was started from Python with a data set in memory: continue it with "
            "hf_orthossl.pretrain(data, output_dir=…, resume=True)"
        )
    for name in data_args.dataset:
        if images is None and Path(name).is_dir() and folder.exists() and folder.samefile(name):
            raise ValueError(f"output_dir {folder} is the folder of the images: pass another --output_dir")
    source = load_source(
        data_args.location if images is None else images,
        split=data_args.split,
        streaming=data_args.streaming,
        exclude=[folder],
        **data_args.reading(),
    )
    # Images without labels are for training too, unless the user chose.
    if data_args.split is None and source.split == "train" and "unlabeled" in source.splits and not data_args.streaming:
        return source.with_split("train+unlabeled")
    return source


@contextlib.contextmanager
def _without_library_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, one per file written, which would break up the bar of the training."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()
