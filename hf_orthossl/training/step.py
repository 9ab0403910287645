"""One optimizer step of an [`SSLModel`]: the one place where both fronts make views, losses and state advance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..data import UnreadableLog, Views
from ..distributed.collectives import world_size
from ..methods import Progress
from ..modeling import SSLModel
from .averages import Averages
from .nonfinite import NonfiniteGuard


class SSLStep:
    """Turns batches into losses and keeps everything that advances once per optimizer step in order.

    The front calls `begin`, then `loss` for every micro-batch, then (with final gradients) `before_optimizer`, and
    after the optimizer `end`. `drain` empties the averages collected for the log.

    Args:
        model ([`SSLModel`]): The bare model, not its distributed wrapper.
        views ([`Views`]): Makes views on the device the batch is on.
        seed (`int`): Seed of the run. With the step, and an image's place among the images of the step, it determines
            every view, however processes and micro-batches share the step out: micro-batch j of process p holds batch
            j·P + p of it, as accelerate's data loaders deal them.
        process_index (`int`, defaults to 0): This process's rank.
        unreadable ([`UnreadableLog`], *optional*): Is told of images that could not be decoded.
        images_per_step (`int`, *optional*): Images of a full optimizer step over all processes and micro-batches; by
            default, what the batches of the step at hand come to.
        on_nonfinite (`str`, defaults to "stop"): "stop" or "skip", see [`NonfiniteGuard`].
    """

    def __init__(
        self,
        model: SSLModel,
        views: Views,
        seed: int,
        process_index: int = 0,
        unreadable: UnreadableLog | None = None,
        images_per_step: int | None = None,
        on_nonfinite: str = "stop",
    ):
        self.model = model
        self.views = views
        self.seed = seed
        self.process_index = process_index
        self.unreadable = unreadable
        self.images_per_step = images_per_step
        self._images_seen, self._total = 0, 0
        self.guard = NonfiniteGuard(model, on_nonfinite)
        self._averages = Averages()
        self._waiting: list[tuple[str, Tensor, int]] = []
        self._refused = False

    def begin(self, step: int, max_steps: int, steps_per_epoch: int) -> None:
        """Starts optimizer step number `step`, counted from 0."""
        self._images_seen = 0
        self._waiting.clear()
        self.guard.begin()
        self.model.begin_step(Progress(step, max_steps, steps_per_epoch, self.seed))

    def loss(self, model: nn.Module, batch: dict[str, Any], *, last: bool, accumulation: int) -> Tensor:
        """The loss of one micro-batch.

        Args:
            model (`nn.Module`): The model as the engine wrapped it.
            batch (`dict`): From [`collate`], on the training device.
            last (`bool`): Whether the optimizer steps after this micro-batch; the penalty is computed then only.
            accumulation (`int`): Micro-batches in this optimizer step, by which the front divides the loss.
        """
        if self.unreadable is not None:
            self.unreadable.add(batch["unreadable"], seen=len(batch["labels"]))
        views = self._views(batch, accumulation)
        output = model(views, penalty_weight=accumulation if last else 0)
        self.guard.watch(output.loss, output.parts)
        # A step's loss is the mean of its micro-batches', the last of which alone holds the penalty.
        self._waiting.append(("loss", output.loss.detach() / accumulation, int(last)))
        self._waiting += [(name, value, 1) for name, value in output.parts.items()]
        return output.loss

    def before_optimizer(self, *, scaled: bool = False) -> None:
        """Call when the gradients are final; drops them where the optimizer must not step.

        Args:
            scaled (`bool`, defaults to `False`): Whether an fp16 scaler watches over the gradients.

        Raises:
            FloatingPointError: loss or gradients are not finite, and `on_nonfinite` is "stop" or has had enough; names
                the step and the part.
        """
        self._refused = self.guard.refuses(self.model.method.progress.step, scaled=scaled)
        self.model.before_optimizer_step()

    def end(self, skipped: bool = False) -> None:
        """Call after the optimizer; `skipped` says that mixed precision made it skip the step."""
        if not self._refused:
            for name, value, count in self._waiting:
                self._averages.add(name, value, count)
        self.model.end_step(skipped or self._refused)

    def drain(self) -> dict[str, float]:
        """Averages of loss and parts since the last call over all processes, by name; call it on all of them.

        Skipped steps are left out of them, and counted since the run began in `skipped_steps` where that is a choice.
        """
        count = {"skipped_steps": self.guard.skipped} if self.guard.policy == "skip" else {}
        return self._averages.drain() | count

    def state_dict(self) -> dict[str, Any]:
        """What this process has collected and counted, as JSON values."""
        return {
            "averages": self._averages.state_dict(),
            "skipped": [self.guard.skipped, self.guard.in_a_row],
        }

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Goes on from this process's state, or from those of all processes when others take over."""
        self._averages.load_state_dicts([state["averages"] for state in states])
        self.guard.skipped, self.guard.in_a_row = states[0]["skipped"]

    def _views(self, batch: dict[str, Any], accumulation: int) -> list[Tensor]:
        images, processes = len(batch["labels"]), world_size()
        first = self._images_seen + self.process_index * images
        if not self._images_seen:
            self._total = self.images_per_step or accumulation * processes * images
        self._images_seen += processes * images
        return self.views(
            batch["crops"] if "crops" in batch else batch["pixel_values"],
            seed=self._view_seed(),
            first=first,
            total=self._total,
        )

    def _view_seed(self) -> int:
        # Two zeros more, where micro-batch and process once were: a run of one process keeps the views it had.
        parts = (self.seed, self.model.method.progress.step, 0, 0)
        return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
