"""Write the encoder folder of a run with a record of its training, and publish it with `push_to_hub`."""

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy

from ..distributed.collectives import rank
from ..distributed.sharding import gather_module
from ..encoders import Encoder
from ..hub.encoder_folder import write_encoder_folder
from ..hub.publish import Publication, check_destination, publish_encoder
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .data import TrainingData

logger = logging.getLogger(__name__)


def training_record(
    model: SSLModel, data: TrainingData, *, front: str, step: int | None = None
) -> dict[str, str | float | int | bool]:
    """Return the settings of a run as JSON values, for the `training` of [`write_encoder_folder`].

    Args:
        model ([`SSLModel`]): The trained model.
        data ([`TrainingData`]): Its data and settings.
        front (`str`): "Trainer" or "accelerate loop".
        step (`int`, *optional*): Optimizer steps taken so far; all steps of the run by default.

    Returns:
        `dict`: `front`, `views`, `epochs` (passes over the data; omitted for a stream), `steps` (taken),
        `planned_steps` (of a run that has not ended), `images_per_step`, `processes`, `optim`, `learning_rate` (peak),
        `lr_scheduler_type`, `weight_decay`, `momentum` (if the optimizer has one), `warmup_steps`, `penalty_every`
        (steps between two penalties, if above 1), `precision`, `seed`,
        `unreadable_images` (if any were left out) and `pretrained` (whether it started from
        published weights; omitted if unknown).
    """
    args, planned = data.args, data.planned_steps()
    steps = planned if step is None else step
    optimizer = str(getattr(args.optim, "value", args.optim))
    record: dict[str, Any] = {
        "front": front,
        "views": args.views,
        "epochs": None if data.steps_per_epoch is None else round(steps / max(data.steps_per_epoch, 1), 3),
        "steps": steps,
        "planned_steps": planned if steps < planned else None,
        "images_per_step": args.images_per_step,
        "processes": args.world_size,
        "optim": optimizer,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "weight_decay": args.weight_decay,
        "momentum": args.momentum if optimizer in ("sgd", "lars") else None,
        "warmup_steps": args.get_warmup_steps(planned),
        "penalty_every": model.config.penalty_every if model.regularizer and model.config.penalty_every > 1 else None,
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "seed": args.seed,
        "unreadable_images": len(data.unreadable_log()) or None,
        # A checkpoint does not record whether it started from published weights.
        "pretrained": None if model.name_or_path else model.encoder.pretrained,
    }
    return {name: value for name, value in record.items() if value is not None}


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
        """Whether the arguments ask for the encoder at the end of the run."""
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
            self._send(self._folder, "End of training")
        except (OSError, ValueError) as error:
            logger.warning(
                "The encoder was not published (%s): publish it with orthossl publish %s --repo_id %s",
                error, self.args.output_dir, self.args.hub_model_id,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait for the push in the background to end."""
        if self.pending is not None:
            self.pending.result()

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir) / "encoder"

    def _encoder(self) -> Encoder | None:
        """Return the encoder with its whole weights on the main process, `None` on the others."""
        encoder = gather_module(self.model.encoder)
        return encoder if rank() == 0 else None

    def _write(self, encoder: Encoder, step: int | None) -> Path:
        record = training_record(self.model, self.data, front=self.front, step=step)
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
