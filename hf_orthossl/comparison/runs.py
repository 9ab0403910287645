"""Train a run of a comparison by the code of `orthossl pretrain`, then measure it; each is done once."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..data import ImageSource
from ..encoders import load_encoder
from ..files import replace_file
from ..hub.encoder_record import EncoderRecord
from ..pretraining import PretrainingRun, run_pretraining
from ..spectra.stages import REPRESENTATION
from ..training import OrthoSSLTrainingArguments, TrainingData
from ..training.building import build_model, settled_model
from ..training.checkpoints import checkpoints, newest_checkpoint
from ..training.loop import STATE
from ..training.options import OPTION_CLASSES, DataArguments, ModelArguments, check_given
from ..training.rehearsal import check_batches
from ..training.resume import begin_record
from .arms import Arm
from .costs import StepCosts, machine
from .images import ComparedImages
from .measuring import measure_encoder, score

# The name of the encoders that have not been trained.
UNTRAINED = "untrained"
# Files of a run's folder, besides those of `orthossl pretrain`.
MEASURED, COSTS, LOG, SPECTRA = "measured.json", "costs.json", "log.txt", "spectra"
# Options of all runs, unless others are given. The collapse that a run would warn of is what the report is about.
RUN_OPTIONS: dict[str, Any] = {
    "knn_images": 0,
    "save_steps": 0.25,
    "save_total_limit": 1,
    # Ranks over time are part of log entries.
    "logging_steps": 0.05,
    "disable_tqdm": True,
    "spectra_threshold": 0.0,
}


class MeasuredOnce:
    """Keep what was measured as a row in a folder; that it is there says that nothing is left to do."""

    folder: Path

    @property
    def is_measured(self) -> bool:
        """Return whether nothing is left to do."""
        return (self.folder / MEASURED).is_file()

    @property
    def row(self) -> dict[str, Any]:
        """Return what was measured, see `complete`."""
        return json.loads((self.folder / MEASURED).read_text(encoding="utf-8"))

    def keep(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write what was measured, and return it."""
        replace_file(self.folder / MEASURED, json.dumps(row, indent=2) + "\n", durable=True)
        return row


@dataclass(frozen=True)
class Run(MeasuredOnce):
    """One arm from one seed, in a folder of its own.

    Args:
        arm ([`Arm`]): What is run.
        strength (`float`, *optional*): Its strength.
        seed (`int`): Of weights, order and views.
        options (`dict`): The options of `orthossl pretrain` that all runs share.
        folder (`Path`): Where everything of the run goes.
        choose_by (`str`, *optional*): The measure on held-out images, of a run that chooses a strength and learns from
            the others; `None` for one that counts.
    """

    arm: Arm
    strength: float | None
    seed: int
    options: Mapping[str, Any]
    folder: Path
    choose_by: str | None = None

    @property
    def trained(self) -> PretrainingRun:
        """Return the run as `orthossl pretrain` leaves it."""
        return PretrainingRun(self.folder)

    @property
    def spectra(self) -> Path:
        """Return the folder of the spectra of weights and features, on the images that are measured."""
        return self.folder / SPECTRA

    @property
    def given(self) -> dict[str, Any]:
        """Return all options that are given to the run."""
        own = {"seed": self.seed, "output_dir": str(self.folder)}
        given = {**RUN_OPTIONS, **self.options, **self.arm.settings(self.strength), **own}
        # What is given for penalties, or for regularizers of the embedding, is for the arms that have one.
        for part, belonging in (("regularizer", "regularizer_config"), ("embedding_regularizer", "embedding_config")):
            if given.get(part, "none") == "none":
                given.pop(belonging, None)
        return given

    def arguments(self, **changes: Any) -> tuple[DataArguments, ModelArguments, OrthoSSLTrainingArguments]:
        """Return the options of the run, checked.

        Args:
            changes: Options that replace others.

        Raises:
            ValueError: An option cannot be used; the message begins with the name of the arm.
        """
        given = self.given | changes
        try:
            chosen = [
                {spec.name: given[spec.name] for spec in dataclasses.fields(kind) if spec.name in given}
                for kind in OPTION_CLASSES
            ]
            known = {spec.name for kind in OPTION_CLASSES for spec in dataclasses.fields(kind)}
            if missing := sorted(set(self.arm.options) - known):
                raise ValueError(f"this version has no option {missing[0]}")
            check_given(given)
            data, model = DataArguments(**chosen[0]), ModelArguments(**chosen[1])
            args = OrthoSSLTrainingArguments(**chosen[2])
            return data, settled_model(model, args), args
        except ValueError as error:
            raise ValueError(f"arm {self.arm.name}: {error}") from error

    def check(self, images: ComparedImages) -> int:
        """Build the model of the run and train on a batch, without leaving a trace, to find what the arm cannot have.

        Args:
            images ([`ComparedImages`]): The images of the comparison.

        Returns:
            `int`: The optimizer steps of the run.

        Raises:
            ValueError: Method, backbone or data do not allow the arm; the message begins with its name.
        """
        _, model_args, args = self.arguments()
        set_seed(self.seed)
        source = self._source(images)
        try:
            model = build_model(model_args, source, args.views)
            data = TrainingData(source, model, args.with_recipe(model.method.recipe))
            begin_record(model, data)
            check_batches(model, data)
            return data.planned_steps()
        except ValueError as error:
            raise ValueError(f"arm {self.arm.name}: {error}") from error

    def complete(self, images: ComparedImages) -> dict[str, Any]:
        """Train the run, or go on where it was stopped, measure it, and keep the row.

        Args:
            images ([`ComparedImages`]): The images of the comparison.

        Returns:
            `dict`: JSON values: `arm`, `seed`, `strength`, `settings` (the record of what ran), `machine`,
            `seconds_per_step`, `peak_bytes`, and those of [`measure_encoder`]; of a run that chooses a strength, its
            `score`. `failed` says why a run has no measures: its loss was not finite.

        Raises:
            OSError: A file cannot be read or written.
            Interrupted: A signal or the time limit ended the training, with a checkpoint.
        """
        about = {"arm": self.arm.name, "seed": self.seed, "strength": self.strength}
        try:
            self._train(images)
            row = about | self._measured(images)
        except ArithmeticError as error:
            row = about | {"failed": str(error)}
        self.keep(row)
        # The encoder and its history stay.
        for checkpoint in checkpoints(self.folder):
            shutil.rmtree(checkpoint, ignore_errors=True)
        return row

    def _source(self, images: ComparedImages) -> ImageSource:
        """Return the images that the run learns from."""
        if self.choose_by is None:
            return images.train
        assert images.tuning is not None
        return images.tuning

    def _train(self, images: ComparedImages) -> None:
        """Train until the encoder is written; a run that has ended stays as it is."""
        if (self.trained.encoder / "README.md").is_file():
            return
        resume = True
        try:
            newest_checkpoint(self.folder, STATE, lambda checkpoint: None)
        except FileNotFoundError:
            # What a killed run left before its first checkpoint is replaced.
            resume = False
        data, model, args = self.arguments(resume=resume, overwrite_output=not resume)
        with (
            (self.folder / LOG).open("a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            StepCosts() as costs,
        ):
            run_pretraining(data, model, args, self.given, front="loop", images=self._source(images), brief=True)
        replace_file(self.folder / COSTS, json.dumps(costs.to_dict()) + "\n")

    def _measured(self, images: ComparedImages) -> dict[str, Any]:
        """Return what is measured of the trained encoder, and what ran."""
        record = EncoderRecord.read(self.trained.encoder)
        views = self.options.get("views") or record.training["views"]
        encoder = load_encoder(str(self.trained.encoder), pretrained=True).to(self._device).eval()
        settings = {name: value for name, value in record.to_dict().items() if name not in ("mean", "std")}
        row: dict[str, Any] = {"settings": settings, "machine": machine(self._device)}
        # A run that was killed between its last step and its encoder has none.
        costs = self.folder / COSTS
        row |= json.loads(costs.read_text(encoding="utf-8")) if costs.is_file() else StepCosts().to_dict()
        if self.choose_by is not None:
            return row | {"score": score(encoder, images, views, self.choose_by)}
        row |= measure_encoder(encoder, images, views, self.spectra, name=self.arm.name)
        return row | {"over_time": self._over_time()}

    def _over_time(self) -> dict[str, list[list[float]]]:
        """Return the ranks that the run logged, as `[step, value]`, by the names that the row has for them."""
        logged = {
            "weights_relative_rank": "spectra/weights/relative_rank_mean",
            "effective_rank": f"spectra/features/{REPRESENTATION}/effective_rank",
        }
        history = self.trained.history
        return {
            name: [[entry["step"], entry[key]] for entry in history if key in entry] for name, key in logged.items()
        }

    @property
    def _device(self) -> str:
        return self.arguments()[2].device.type


@dataclass(frozen=True)
class UntrainedRun(MeasuredOnce):
    """The encoder that all arms of a seed begin with, measured like those that they end with.

    Args:
        run ([`Run`]): The run of the first arm from that seed.
        folder (`Path`): Where what is measured goes.
    """

    run: Run
    folder: Path

    def complete(self, images: ComparedImages) -> dict[str, Any]:
        """Measure the encoder, and return `arm`, `seed` and the values of [`measure_encoder`]."""
        _, model_args, args = self.run.arguments()
        set_seed(self.run.seed)
        model = build_model(model_args, images.train, args.views)
        data = TrainingData(images.train, model, args.with_recipe(model.method.recipe))
        encoder = model.encoder.to(args.device).eval()
        measured = measure_encoder(encoder, images, data.args.views, self.folder / SPECTRA, name=UNTRAINED)
        return self.keep({"arm": UNTRAINED, "seed": self.run.seed} | measured)
