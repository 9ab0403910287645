"""`push_to_hub` of the Trainer front."""

from transformers import Trainer

from ..distributed.collectives import on_main
from ..hub.publish import Publication
from .publishing import EncoderPush, check_push


class PublishingTrainer(Trainer):
    """A Trainer whose `push_to_hub` sends the encoder folder in place of checkpoints and arguments.

    Subclasses set `_push` to an [`EncoderPush`], or to `None` where nothing goes out during training.
    """

    _push: EncoderPush | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Finds out whether the encoder can be published; the repository is made with its first commit."""
        on_main(lambda: check_push(self.args))
        self.hub_model_id = self.args.hub_model_id

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        license: str | None = None,
    ) -> Publication | None:
        """Publishes the encoder to `hub_model_id` as it is now, with card and spectra, in one commit.

        Call it on all processes; the main one publishes.

        Args:
            commit_message (`str`, *optional*, defaults to "End of training"): Message of the commit.
            blocking (`bool`, defaults to `True`): Has no effect: the call returns when the commit is made.
            token, revision, private (*optional*): In place of `hub_token`, `hub_revision` and `hub_private_repo`.
            license (`str`, *optional*): Licence for the card, such as "apache-2.0".

        Returns:
            [`~hub.Publication`]: What was published; `None` on other processes than the main one.

        Raises:
            ValueError, OSError: what [`~hub.publish_encoder`] raises.
        """
        if self.is_world_process_zero():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
        push = self._push or EncoderPush(self.model, self.train_dataset, self.args, front="Trainer")
        step = self.state.global_step or None
        changed = {"token": token, "revision": revision, "private": private, "license": license}
        return push.publish(commit_message, step=step, **changed)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: checkpoints stay here, and the encoder goes out once the checkpoint has its final name."""

    def _push_last(self, step: int) -> None:
        if self._push:
            self._push.at_end(step)

    def _finish_current_push(self) -> None:
        if self._push:
            self._push.wait()
