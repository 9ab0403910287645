"""`push_to_hub` of both fronts: the encoder folder goes out, and nothing else of the run."""

import logging
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import HfApi
from torch.utils.data import Dataset
from transformers.trainer_utils import HubStrategy

from ..distributed.collectives import rank
from ..distributed.sharding import gather_module
from ..encoders import Encoder
from ..hub.encoder_folder import write_encoder_folder
from ..hub.publish import Publication, check_destination, publish_encoder
from ..modeling import SSLModel
from .arguments import OrthoSSLTrainingArguments
from .record import training_record

logger = logging.getLogger(__name__)


def check_push(args: OrthoSSLTrainingArguments) -> None:
    """Finds out before training whether its encoder can be published; does nothing without `push_to_hub`.

    Raises:
        ValueError: no or a malformed `hub_model_id`, or a repository that cannot take the encoder, see
            [`~hub.publish.check_destination`].
        OSError: no valid token, or the Hub does not answer.
    """
    if not args.push_to_hub:
        return
    if not args.hub_model_id:
        raise ValueError("push_to_hub needs hub_model_id: pass --hub_model_id user/name")
    check_destination(args.hub_model_id, args.hub_token, args.hub_revision, args.hub_private_repo)


class EncoderPush:
    """Publishes the encoder of a run: in the background at every save, at the end, and when asked.

    The main process does. Call it on all, for where weights are sharded each holds a part.

    Args:
        model ([`SSLModel`]): The model in training.
        dataset (`Dataset`): What it is trained on; its `source`, if it has one, names the data in the card.
        args ([`OrthoSSLTrainingArguments`]): `hub_model_id`, `hub_token`, `hub_private_repo`, `hub_revision`,
            `hub_strategy` ("end": not at saves) and `hub_always_push` say how.
        front (`str`): "Trainer" or "accelerate loop", for the card.
    """

    def __init__(self, model: SSLModel, dataset: Dataset, args: OrthoSSLTrainingArguments, *, front: str):
        self.model, self.dataset, self.args, self.front = model, dataset, args, front
        self.source = getattr(dataset, "source", None)
        self.pending: Future | None = None
        # The step whose encoder the Hub has.
        self.pushed: int | None = None

    def publish(self, message: str | None = None, *, step: int | None = None, **changed) -> Publication | None:
        """Writes and publishes the encoder now; `changed` replaces arguments of [`publish_encoder`]."""
        encoder = self._encoder()
        return None if encoder is None else self._publish(encoder, message, step, **changed)

    def at_save(self, step: int) -> None:
        """Starts to publish, unless `hub_strategy` is "end" or the last push still runs; a failure is only logged."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        encoder = self._encoder()
        if encoder is None:
            return
        if self.pending is not None and not self.pending.done() and not self.args.hub_always_push:
            logger.warning("Step %d was not published, as the push of an earlier step still runs.", step)
            return
        self.wait()
        try:
            folder = self._write(encoder, step)
        except OSError as error:
            _warn(error)
            return
        self.pending = HfApi().run_as_future(self._send_or_warn, folder, step)

    def at_end(self, step: int) -> None:
        """Publishes the encoder of the last step, unless the Hub has it; a failure is only logged."""
        encoder = self._encoder()
        self.wait()
        if encoder is None or self.pushed == step:
            return
        try:
            self._publish(encoder, "End of training", step)
        except (OSError, ValueError) as error:
            logger.warning(
                "The encoder was not published (%s): orthossl publish %s --repo_id %s publishes it.",
                error, self.args.output_dir, self.args.hub_model_id,
            )  # fmt: skip

    def wait(self) -> None:
        """Until the push in the background has ended."""
        if self.pending is not None:
            self.pending.result()

    def _encoder(self) -> Encoder | None:
        """The encoder with its weights whole, on the main process."""
        encoder = gather_module(self.model.encoder)
        return encoder if rank() == 0 else None

    def _write(self, encoder: Encoder, step: int | None) -> Path:
        record = training_record(self.model, self.dataset, self.args, front=self.front, step=step)
        folder = Path(self.args.output_dir) / "encoder"
        return write_encoder_folder(self.model, folder, source=self.source, training=record, encoder=encoder)

    def _publish(self, encoder: Encoder, message: str | None, step: int | None, **changed) -> Publication:
        self.wait()
        return self._send(self._write(encoder, step), message, **changed)

    def _send(self, folder: Path, message: str | None, **changed) -> Publication:
        settings = {
            "private": self.args.hub_private_repo,
            "revision": self.args.hub_revision,
            "token": self.args.hub_token,
        }
        settings |= {name: value for name, value in changed.items() if value is not None}
        return publish_encoder(folder, self.args.hub_model_id, commit_message=message, **settings)

    def _send_or_warn(self, folder: Path, step: int) -> None:
        try:
            self._send(folder, f"Training in progress, step {step}")
            self.pushed = step
        except (OSError, ValueError) as error:
            _warn(error)


def _warn(error: Exception) -> None:
    # Hours of training do not end because the Hub is away; the last push comes with the results.
    logger.warning("The encoder was not published (%s); training goes on.", error)
