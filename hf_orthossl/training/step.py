"""One optimizer step, shared by the Trainer and the loop: views, losses, averages for the log, a check for NaN."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..configuration import AUTO
from ..data import UnreadableLog, Views
from ..distributed.collectives import all_reduce_mean, all_reduce_min, rank, world_size
from ..distributed.progress import here
from ..messages import warn_above_bars
from ..methods import Progress
from ..modeling import SSLModel
from .auto_gamma import AutoGamma
from .data import TrainingData
from .freezing import Freezing
from .settings import RunRecord

logger = logging.getLogger(__name__)

# Number of consecutive skipped steps after which the run stops.
PATIENCE = 10


class SSLStep:
    """Compute the losses of batches, and advance the model's state once per optimizer step.

    A training loop calls `begin`, then `loss` for every micro-batch, `after_backward` after the backward pass of the
    last one, `before_optimizer` once the gradients are final, and `end` after the optimizer. `drain` returns the
    averages collected for the log.

    Args:
        model ([`SSLModel`]): The bare model, not its distributed wrapper.
        views ([`Views`]): Makes views on the device of the batch.
        seed (`int`): Seed of the run. Together with the step and the position of an image in the step it determines
            every view, however the step is divided into processes and micro-batches: micro-batch j of process p is
            batch j·P + p of the step, as accelerate's data loaders distribute them.
        process_index (`int`, defaults to 0): This process's rank.
        unreadable ([`UnreadableLog`], *optional*): Counts images that could not be decoded.
        images_per_step (`int`, *optional*): Images of a full optimizer step over all processes and micro-batches; by
            default, the sum over the batches of the current step.
        on_nonfinite (`str`, defaults to "stop"): "stop" or "skip", see [`NonfiniteGuard`].
        freezing ([`Freezing`], *optional*): Says what is frozen at which epoch.
        record ([`RunRecord`], *optional*): Receives the steps taken and skipped, and the precision that is seen.
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
        freezing: Freezing | None = None,
        record: RunRecord | None = None,
    ):
        self.model = model
        self.record = record or RunRecord()
        self.views = views
        self.seed = seed
        self.process_index = process_index
        self.unreadable = unreadable
        self.freezing = freezing
        self.images_per_step = images_per_step
        self._images_seen, self._total = 0, 0
        self.guard = NonfiniteGuard(model, on_nonfinite)
        self.auto_gamma = AutoGamma(model, self.record) if model.config.gamma == AUTO else None
        self._averages = Averages()
        self._waiting: list[tuple[str, Tensor, int]] = []
        self._rejected = False

    def begin(self, step: int, max_steps: int, steps_per_epoch: int) -> None:
        """Begin optimizer step number `step`, counted from 0."""
        self._images_seen = 0
        self._waiting.clear()
        self.guard.begin()
        here.step = step + 1
        progress = Progress(step, max_steps, steps_per_epoch, self.seed)
        if self.freezing is not None:
            self.freezing.begin_step(self.model, progress)
        self.model.begin_step(progress)
        if self.auto_gamma is not None:
            self.auto_gamma.begin(step)

    def loss(self, model: nn.Module, batch: dict[str, Any], *, last: bool, accumulation: int) -> Tensor:
        """Return the loss of one micro-batch.

        Args:
            model (`nn.Module`): The model as wrapped by the engine.
            batch (`dict`): A batch from [`collate`], on the training device.
            last (`bool`): Whether the optimizer steps after this micro-batch; only then is the penalty computed.
            accumulation (`int`): Micro-batches in this optimizer step, by which the training loop divides the loss.
        """
        if self.unreadable is not None:
            self.unreadable.add(batch["unreadable"], seen=len(batch["labels"]))
        views = self._make_views(batch, accumulation)
        output = model(views, penalty_weight=accumulation if last else 0)
        self.record.facts.note(self.model.method.progress.step, getattr(self.model, "precision", {}))
        self.guard.watch(output.loss, output.parts)
        # The loss of a step is the mean over its micro-batches, and only the last of them includes the penalty.
        self._waiting.append(("loss", output.loss.detach() / accumulation, int(last)))
        self._waiting += [(name, value, 1) for name, value in output.parts.items()]
        return output.loss

    def after_backward(self, scale: float = 1.0) -> None:
        """Look at the gradients of a step before they are clipped; call it on every process.

        Args:
            scale (`float`, defaults to 1.0): The factor by which an fp16 scaler has multiplied them.
        """
        if self.auto_gamma is not None:
            self.auto_gamma.after_backward(scale)

    def before_optimizer(self, *, scaled: bool = False) -> None:
        """Check loss and gradients once they are final, and discard them if the optimizer must not step.

        Args:
            scaled (`bool`, defaults to `False`): Whether an fp16 scaler checks the gradients.

        Raises:
            FloatingPointError: Loss or gradients are not finite, and `on_nonfinite` is "stop" or 10 consecutive
                steps were skipped; the message names the step and the part.
        """
        self._rejected = self.guard.rejects(self.model.method.progress.step, scaled=scaled)
        self.model.before_optimizer_step()

    def end(self, skipped: bool = False, schedule: float = 1.0) -> None:
        """Advance the state of the model after the optimizer, and before the schedule.

        Args:
            skipped (`bool`, defaults to `False`): Whether mixed precision made the optimizer skip the step.
            schedule (`float`, defaults to 1.0): The learning rate of the step as a share of its peak.
        """
        if not self._rejected:
            for name, value, count in self._waiting:
                self._averages.add(name, value, count)
        for name, value in self.model.end_step(skipped or self._rejected, schedule).items():
            self._averages.add(name, value)
        if self.auto_gamma is not None:
            self.auto_gamma.end(self.model.method.progress.step, skipped or self._rejected)
        self.record.steps = self.model.method.progress.step + 1
        self.record.skipped_steps += int(skipped or self._rejected)

    def drain(self) -> dict[str, float]:
        """Return the averages of loss and parts since the last call over all processes; call it on all of them.

        Skipped steps are excluded. With `on_nonfinite="skip"`, `skipped_steps` counts them since the run began. A γ
        that was measured is part of one entry, the first after that.
        """
        count = {"skipped_steps": self.guard.skipped} if self.guard.policy == "skip" else {}
        measured = {} if self.auto_gamma is None else self.auto_gamma.drain()
        return self._averages.drain() | count | measured

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts of this process, as JSON values."""
        return {
            "averages": self._averages.state_dict(),
            "skipped": [self.guard.skipped, self.guard.in_a_row],
            "auto_gamma": None if self.auto_gamma is None else self.auto_gamma.state_dict(),
        }

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Restore the state of this process, or combine those of all processes if their number has changed."""
        self._averages.load_state_dicts([state["averages"] for state in states])
        self.guard.skipped, self.guard.in_a_row = states[0]["skipped"]
        if self.auto_gamma is not None:
            self.auto_gamma.load_state_dict(states[0]["auto_gamma"])

    def _make_views(self, batch: dict[str, Any], accumulation: int) -> list[Tensor]:
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
        # The zeros preserve the seeds of published runs, which were derived from four numbers.
        parts = (self.seed, self.model.method.progress.step, 0, 0)
        return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def build_step(model: SSLModel, data: TrainingData) -> SSLStep:
    """Return the optimizer step of a run on this process."""
    args = data.args
    return SSLStep(
        model,
        data.views,
        args.seed,
        args.process_index,
        data.unreadable_log(),
        images_per_step=args.images_per_step,
        on_nonfinite=args.on_nonfinite,
        freezing=Freezing.of(model, args),
        record=data.record,
    )


class Averages:
    """Average scalars by name over steps and processes since the last log entry; can be saved in a checkpoint."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor, count: int = 1) -> None:
        """Add a scalar to a sum.

        Args:
            name (`str`): Name of the scalar.
            value (`Tensor`): The scalar, which is detached.
            count (`int`, defaults to 1): The contribution to the divisor of the mean; 0 for all but one part of a
                scalar that is added in parts.
        """
        value = value.detach().float()
        if name in self._sums:
            value = self._sums[name].to(value.device) + value
        self._sums[name] = value
        self._counts[name] = self._counts.get(name, 0) + count

    def drain(self) -> dict[str, float]:
        """Return the averages since the last call over all processes, by name; call it on all of them."""
        means = {name: all_reduce_mean(total / self._counts[name]).item() for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return means

    def state_dict(self) -> dict[str, list[float]]:
        """Return sum and count by name, as JSON values."""
        return {name: [total.item(), self._counts[name]] for name, total in self._sums.items()}

    def load_state_dicts(self, states: Iterable[dict[str, list[float]]]) -> None:
        """Restore the sums of one process, or the mean of the sums of several."""
        states = list(states)
        self._counts = {name: int(count) for name, (_, count) in states[0].items()}
        self._sums = {
            name: torch.tensor(sum(state[name][0] for state in states) / len(states)) for name in self._counts
        }


class NonfiniteGuard:
    """Decide, together with all processes, whether an optimizer step may be taken.

    With "skip", a step is skipped if the loss of a micro-batch or a gradient is not finite: optimizer, target networks,
    queues and centres do not change, and buffers that the forward pass has already changed, such as the running
    statistics of batch norm, are restored. Schedules and data advance. Large but finite losses are not skipped; limit
    their effect with `max_grad_norm`.

    Args:
        model (`nn.Module`): The model in training.
        policy (`str`, defaults to "stop"): "stop" or "skip".
    """

    def __init__(self, model: nn.Module, policy: str = "stop"):
        self.model = model
        self.policy = policy
        self.skipped, self.in_a_row = 0, 0
        self._parts: list[dict[str, Tensor]] = []
        self._buffers: list[Tensor] = []

    def begin(self) -> None:
        """Prepare for an optimizer step, before its first forward pass."""
        self._parts.clear()
        if self.policy == "skip":
            self._buffers = [buffer.clone() for buffer in self.model.buffers()]

    def watch(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Record the loss of a micro-batch and its parts."""
        self._parts.append({"total": loss.detach(), **parts})

    @torch.no_grad()
    def rejects(self, step: int, *, scaled: bool = False) -> bool:
        """Return whether the optimizer must not step, and discard the gradients in that case.

        Args:
            step (`int`): Optimizer steps taken.
            scaled (`bool`, defaults to `False`): Whether an fp16 scaler checks the gradients; it skips overflowing
                steps as part of its search for a scale.

        Raises:
            FloatingPointError: On every process, if the policy is "stop" or `PATIENCE` consecutive steps were skipped.
        """
        finite = torch.isfinite(torch.stack([parts["total"].float() for parts in self._parts])).all()
        if not scaled:
            # Each process checks only its shards: a norm over all of them would need communication.
            gradients = [_local(p.grad) for p in self.model.parameters() if p.grad is not None]
            finite = finite & torch.isfinite(torch.nn.utils.get_total_norm(gradients)).to(finite.device)
        if all_reduce_min(int(finite)):
            self.in_a_row = 0
            return False
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.policy == "stop":
            raise FloatingPointError(self._error_text(step))
        if self.in_a_row == PATIENCE:
            raise FloatingPointError(f"{PATIENCE} consecutive optimizer steps were skipped: {self._error_text(step)}")
        for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        if not scaled:
            for parameter in self.model.parameters():
                parameter.grad = None
        return True

    def report(self, steps: int) -> None:
        """Warn how many optimizer steps of the run were skipped, if any."""
        if self.skipped and rank() == 0:
            warn_above_bars(
                logger, f"{self.skipped} of {steps} optimizer steps were skipped: loss or gradients were not finite"
            )

    def _error_text(self, step: int) -> str:
        broken = {name for parts in self._parts for name, value in parts.items() if not torch.isfinite(value)}
        named = ", ".join(sorted(broken - {"total"})) or "total"
        what = f"the loss is not finite at step {step} (part: {named})"
        if not broken:
            what = f"gradients are not finite at step {step}, or the loss of another process"
        return (
            f"{what}: lower --learning_rate, --gamma or --embedding_weight, or train in full precision; "
            "checkpoints saved so far are intact and --resume continues from the newest"
        )


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
