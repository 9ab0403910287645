"""Losses and gradients that are not finite: the run stops, or leaves their optimizer step out."""

import torch
from torch import Tensor, nn

from ..distributed.collectives import all_reduce_min, rank
from .watching import say

# So many steps skipped in a row, and the run stops.
PATIENCE = 10


class NonfiniteGuard:
    """Decides, with all processes, whether an optimizer step may be taken.

    With "skip", a step of which one micro-batch's loss or any gradient is not finite is left out: optimizer, target
    networks, queues and centres stay as they were, and so do all buffers, among them the running statistics of batch
    norm, which the forward pass has moved already. Schedules and the data go on. Losses that are large but finite are
    left to `max_grad_norm`.

    Args:
        model (`nn.Module`): What is trained.
        policy (`str`, defaults to "stop"): "stop" or "skip".
    """

    def __init__(self, model: nn.Module, policy: str = "stop"):
        self.model = model
        self.policy = policy
        self.skipped, self.in_a_row = 0, 0
        self._parts: list[dict[str, Tensor]] = []
        self._buffers: list[Tensor] = []

    def begin(self) -> None:
        """Call before the first forward pass of an optimizer step."""
        self._parts.clear()
        if self.policy == "skip":
            self._buffers = [buffer.clone() for buffer in self.model.buffers()]

    def watch(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Takes note of a micro-batch's loss and its parts."""
        self._parts.append({"total": loss.detach(), **parts})

    @torch.no_grad()
    def refuses(self, step: int, *, scaled: bool = False) -> bool:
        """Whether the optimizer must not step; gradients are dropped then, without which no optimizer moves.

        Args:
            step (`int`): Optimizer steps done.
            scaled (`bool`, defaults to `False`): Whether an fp16 scaler watches over the gradients: it leaves out steps
                that overflow by itself, as a part of its search.

        Raises:
            FloatingPointError: on every process: the policy is "stop", or `PATIENCE` steps in a row were skipped.
        """
        finite = torch.isfinite(torch.stack([parts["total"].float() for parts in self._parts])).all()
        if not scaled:
            # Shards of one process at a time: a norm over all of them would cost a message.
            gradients = [_local(p.grad) for p in self.model.parameters() if p.grad is not None]
            finite = finite & torch.isfinite(torch.nn.utils.get_total_norm(gradients)).to(finite.device)
        if all_reduce_min(int(finite)):
            self.in_a_row = 0
            return False
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.policy == "stop":
            raise FloatingPointError(self._blame(step))
        if self.in_a_row == PATIENCE:
            raise FloatingPointError(f"{PATIENCE} optimizer steps in a row were skipped: {self._blame(step)}")
        for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        if not scaled:
            for parameter in self.model.parameters():
                parameter.grad = None
        return True

    def report(self, steps: int) -> None:
        """Says how many of the run's optimizer steps were skipped, if any."""
        if self.skipped and rank() == 0:
            say(f"{self.skipped} of {steps} optimizer steps were skipped: loss or gradients were not finite")

    def _blame(self, step: int) -> str:
        broken = {name for parts in self._parts for name, value in parts.items() if not torch.isfinite(value)}
        named = ", ".join(sorted(broken - {"total"})) or "total"
        what = f"the loss is not finite at step {step} (part: {named})"
        if not broken:
            what = f"gradients are not finite at step {step}, or the loss of another process"
        return (
            f"{what}: lower --learning_rate or --gamma, or train in full precision; "
            "checkpoints saved so far are intact and --resume continues from the newest"
        )


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
