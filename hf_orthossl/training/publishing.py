"""Write the encoder folder of a run with a record of its training, and publish it with `push_to_hub`."""

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy

from ..data.band_rule import BandRule
from ..distributed.collectives import rank
from ..distributed.progress import here
from ..distributed.sharding import gather_module
from ..encoders import Encoder
from ..hub.encoder_folder import write_encoder_folder
from ..hub.publish import Publication, check_destination, publish_encoder
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .data import TrainingData
from .settings import option_text

logger = logging.getLogger(__name__)


# What a card says of the steps, in this order, from the facts of a run's record.
STEP_FACTS = (
    *("images_per_step", "processes", "optimizer", "muon_matrices", "learning_rate", "lr_scheduler_type"),
    *("warmup_steps", "warmup_start_lr"),
    *("weight_decay", "momentum", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "gradient_cache"),
    *("adapt", "layer_decay", "freeze", "freeze_epochs"),
    *("gradient_checkpointing", "precision", "weights_precision", "device", "seed", "pretrained", "base_model"),
    *("started_from", "teacher", "fingerprint", "measured_gamma"),
)


def training_record(model: SSLModel, data: TrainingData, *, front: str) -> dict[str, str | float | int | bool]:
    """Return what a run trained with as JSON values, for the `training` of [`write_encoder_folder`].

    The values are those that the steps were seen to use. One that changed when the run was resumed is text with all
    its values and their steps, as in "0.06 (steps 0–100), 0.3 (from step 100)".

    Args:
        model ([`SSLModel`]): The trained model.
        data ([`TrainingData`]): Its data, with the record of the run.
        front (`str`): "Trainer" or "accelerate loop".

    Returns:
        `dict`: `front`, `taken` (what was taken of the data set), `pixel_range` (the values of each channel that become
        0 and 255, for images that are no RGB), `views`, `views_changed` (what they become for images that are no RGB),
        `normalization` (if asked or measured), `epochs` (passes over the data; omitted for a stream), `steps` (taken),
        `planned_steps` (of a run that has not ended), `skipped_steps` (that changed nothing, if any), `selected`
        (the step of the encoder and by what it was selected, with `select_by`), `stopped` (why the run stopped early,
        if it did), `penalty_every` (steps between two penalties, if above 1), `fused_weights` (how the penalty read
        fused attention layers, if there are any: "split" or "whole"), `optim` (the option), and those of `STEP_FACTS`
        that apply: `optimizer` (its class), `muon_matrices` (how many matrices it orthogonalizes the updates of),
        `learning_rate` (peak), `precision` (that of autocast where it was active, with `weights_precision` beside it),
        `pretrained` (whether the run started from given weights; omitted if unknown), `base_model` (their Hub id, if
        they have one), `started_from` (their name, revision and SHA-256), `teacher` (of distillation, likewise),
        `fingerprint` (of the data), `measured_gamma` (γ by step, with `gamma="auto"`) and `unreadable_images` (if any
        were left out).
    """
    run, facts = data.record, data.record.facts
    shown = {name: facts.describe(name) for name in STEP_FACTS if name in facts}
    planned = facts["planned_steps"]
    penalty_every = model.config.penalty_every if model.regularizer else 1
    record: dict[str, Any] = {
        "front": front,
        "taken": None if data.source is None else data.source.taken,
        "pixel_range": _channel_ranges(data),
        "views": facts["views"],
        "views_changed": data.views.changes,
        "normalization": data.measured or model.config.normalization,
        "epochs": None if data.steps_per_epoch is None else round(run.steps / max(data.steps_per_epoch, 1), 3),
        "steps": run.steps,
        "planned_steps": planned if run.steps < planned else None,
        "skipped_steps": run.skipped_steps or None,
        **data.watch.describe(run.steps),
        "optim": option_text(data.args.optim),
        **shown,
        "unreadable_images": len(data.unreadable_log()) or None,
        "penalty_every": penalty_every if penalty_every > 1 else None,
        "fused_weights": model.regularizer.fused if model.regularizer else None,
    }
    return {name: value for name, value in record.items() if value is not None}


def _channel_ranges(data: TrainingData) -> str | None:
    """Return the range of values of each channel, by which others scale images for the encoder; `None` for RGB."""
    rule = None if data.source is None else data.source.pixels
    return str(rule.settings().get("pixel_range")) if isinstance(rule, BandRule) and rule.low else None


def check_push(args: OrthoSSLTrainingArguments) -> None:
    """Check before training whether the encoder can be published; do nothing without `push_to_hub`.

    Raises:
        ValueError: `hub_model_id` is missing or malformed, or its repository cannot receive the encoder, see
            [`~hub.publish.check_destination`].
        OSError: There is no valid token, or the Hub does not answer.
    """
    if not args.push_to_hub:
        return
    if not args.hub_model_id:
        raise ValueError("push_to_hub needs hub_model_id: pass --hub_model_id user/name")
    check_destination(args.hub_model_id, args.hub_token, args.hub_revision, args.hub_private_repo)


class EncoderOutput:
    """Write the encoder folder of a run, and publish it if `push_to_hub` is set.

    The main process writes and publishes. Call each method on all processes, since each may hold a part of the weights.

    Args:
        model ([`SSLModel`]): The model in training.
        data ([`TrainingData`]): The data of the run; the card names their `source`, if known. In their `args`,
            `push_to_hub`, `hub_model_id`, `hub_token`, `hub_private_repo`, `hub_revision`, `hub_strategy` ("end": not
            at saves) and `hub_always_push` determine what is published.
        front (`str`): "Trainer" or "accelerate loop", for the card.
    """

    def __init__(self, model: SSLModel, data: TrainingData, *, front: str):
        self.model, self.data, self.args, self.front = model, data, data.args, front
        self.pending: Future | None = None
        # The step of the encoder in the folder, and of that on the Hub.
        self.written: int | None = None
        self.pushed: int | None = None

    @property
    def is_wanted(self) -> bool:
        """Return whether the arguments ask for the encoder at the end of the run."""
        return self.args.push_to_hub or self.args.save_strategy != "no"

    def publish(self, message: str | None = None, *, step: int | None = None, **changes: Any) -> Publication | None:
        """Write and publish the encoder now; `changes` replaces arguments of [`publish_encoder`]."""
        encoder = self._encoder()
        return None if encoder is None else self._publish(encoder, message, step, **changes)

    def at_save(self, step: int) -> None:
        """Publish in the background after a checkpoint; a failure is only logged.

        Nothing is published if `hub_strategy` is "end", or while the previous push is still running.
        """
        if not self.args.push_to_hub or self.args.hub_strategy == HubStrategy.END:
            return
        encoder = self._encoder()
        if encoder is None:
            return
        if self.pending is not None and not self.pending.done() and not self.args.hub_always_push:
            logger.warning("Step %d was not published because the push of an earlier step is still running.", step)
            return
        self.wait()
        try:
            folder = self._write(encoder, step)
        except OSError as error:
            _warn(error)
            return
        self.pending = HfApi().run_as_future(self._send_or_warn, folder, step)

    def at_end(self, step: int) -> None:
        """Write the encoder of the last step, and publish it if the Hub does not have it; a failed push is only logged.

        With `save_strategy="no"`, the folder is written only if it is published.

        Raises:
            OSError: The folder cannot be written.
        """
        self.wait()
        encoder = self._encoder() if self.is_wanted else None
        if encoder is None:
            return
        if self.written != step:
            self._write(encoder, step)
        if not self.args.push_to_hub or self.pushed == step:
            return
        try:
            with here.waiting_elsewhere():
                self._send(self._folder, "End of training")
        except (OSError, ValueError) as error:
            logger.warning(
                "The encoder was not published (%s): publish it with orthossl publish %s --repo_id %s",
                error, self.args.output_dir, self.args.hub_model_id,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait for the push in the background to end."""
        if self.pending is not None:
            with here.waiting_elsewhere():
                self.pending.result()

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir) / "encoder"

    def _encoder(self) -> Encoder | None:
        """Return the encoder to write with its whole weights on the main process, `None` on the others."""
        encoder = gather_module(self.model.encoder)
        return self.data.watch.selected(encoder) if encoder is not None and rank() == 0 else None

    def _write(self, encoder: Encoder, step: int | None) -> Path:
        record = training_record(self.model, self.data, front=self.front)
        write_encoder_folder(self.model, self._folder, source=self.data.source, training=record, encoder=encoder)
        self.written = step
        return self._folder

    def _publish(self, encoder: Encoder, message: str | None, step: int | None, **changes: Any) -> Publication:
        self.wait()
        return self._send(self._write(encoder, step), message, **changes)

    def _send(self, folder: Path, message: str | None, **changes: Any) -> Publication:
        settings: dict[str, Any] = {
            "private": self.args.hub_private_repo,
            "revision": self.args.hub_revision,
            "token": self.args.hub_token,
        }
        settings |= {name: value for name, value in changes.items() if value is not None}
        return publish_encoder(folder, str(self.args.hub_model_id), commit_message=message, **settings)

    def _send_or_warn(self, folder: Path, step: int) -> None:
        try:
            self._send(folder, f"Training in progress, step {step}")
            self.pushed = step
        except (OSError, ValueError) as error:
            _warn(error)


def _warn(error: Exception) -> None:
    # A failed push must not end the training; the encoder is pushed again at the end.
    logger.warning("The encoder was not published (%s); training continues.", error)
