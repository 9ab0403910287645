"""`gamma="auto"`: choose the weight of the penalty by the norms of two gradients over the first steps of a run."""

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from ..configuration import AUTO
from ..distributed.collectives import all_reduce_sum, world_size
from ..distributed.sharding import full_tensor, is_sharded
from ..modeling import SSLModel
from .data import TrainingData
from .freezing import Freezing
from .settings import MEASURED, RunRecord

# Optimizer steps that are measured.
STEPS = 10
# ‖γ·∇OR‖ / ‖∇L‖ at the median of these steps.
RATIO = 1.0


class AutoGamma:
    """Measure γ over the first optimizer steps of a run, and keep it for the rest.

    At each of the first `STEPS` steps the penalty is left out (γ is 0), so that the gradients of a step are those of
    the loss L alone, and the gradient of Σ OR(W) is computed from the weights, without a pass through the encoder. Both
    norms are over all regularized weights together, after accumulation and averaging over processes and before
    clipping. From then on

        γ = `RATIO` · median over the steps of ‖∇L‖ / ‖∇ Σ OR(W)‖,

    so that loss and penalty pull at these weights with equal force at the start. The median is that of the ratios,
    which one unusual step does not move. Steps that mixed precision or `on_nonfinite` skips do not count, nor do those
    at which every regularized weight is frozen. Each measured step computes the penalty, whatever `penalty_every` is.

    The value in use is `config.measured_gamma` of the model and, with the steps from which it holds, a fact of the
    record; it is logged once as `gamma`.

    Args:
        model ([`SSLModel`]): The bare model, whose config has `gamma="auto"`.
        record ([`RunRecord`]): Receives the γ in use.

    Source: The ratio of 1 is that of the adaptive weight of Esser, Rombach, Ommer, "Taming Transformers for
    High-Resolution Image Synthesis", CVPR 2021, equation 7, which weighs two losses by their gradients at one layer.
    """

    def __init__(self, model: SSLModel, record: RunRecord):
        self.model, self.record = model, record
        self._ratios: list[float] = []
        self._pending: float | None = None
        self._logged = False

    def begin(self, step: int) -> None:
        """Set the γ of an optimizer step."""
        self._pending = None
        self._use(step)

    @torch.no_grad()
    def after_backward(self, scale: float = 1.0) -> None:
        """Compare the gradients of a step, if it is one of the first; call it on every process.

        Args:
            scale (`float`, defaults to 1.0): The factor of the gradients, that of an fp16 scaler.

        Raises:
            ValueError: The penalty has no gradient, so that no weight gives it any.
        """
        if len(self._ratios) == STEPS:
            return
        norms = gradient_norms(self.model)
        if norms is None:
            return
        loss, penalty = norms[0] / scale, norms[1]
        if penalty == 0:
            raise ValueError(
                f"gamma is {AUTO}, but the gradient of the penalty {self.model.config.regularizer} is 0 at step "
                f"{self.model.method.progress.step}, because the weights are orthogonal already: pass a number"
            )
        self._pending = RATIO * loss / penalty

    def end(self, step: int, skipped: bool) -> None:
        """Keep what a step has measured unless it was skipped, and choose γ after the last of them.

        Raises:
            ValueError: The loss has no gradient at most of the steps.
        """
        if self._pending is not None and not skipped and math.isfinite(self._pending):
            self._ratios.append(self._pending)
            if len(self._ratios) == STEPS:
                self._use(step + 1)
        self._pending = None

    def drain(self) -> dict[str, float]:
        """Return γ as `gamma` once, for the first log entry after it was chosen."""
        if self._logged or len(self._ratios) < STEPS:
            return {}
        self._logged = True
        return {"gamma": self.model.gamma}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, equal on all processes."""
        return {"ratios": self._ratios, "logged": self._logged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._ratios, self._logged = list(state["ratios"]), state["logged"]

    def _use(self, step: int) -> None:
        """Use 0, or the median once there are enough steps, from a step on."""
        gamma = statistics.median(self._ratios) if len(self._ratios) == STEPS else 0.0
        if gamma == 0 and self._ratios[STEPS - 1 :]:
            raise ValueError(
                f"gamma is {AUTO}, but the loss has no gradient at the weights of the encoder: they have collapsed, or "
                "do not depend on the images; pass a number, and look at the embeddings"
            )
        self.model.config.measured_gamma = gamma
        self.record.facts.note(step, {MEASURED: gamma})


def gradient_norms(model: SSLModel) -> tuple[float, float] | None:
    """Return the norms of the current gradients and of the penalty's, over the regularized weights that are trained.

    Call it on every process, after the backward pass of a step without the penalty. It leaves `.grad` as it is.

    Args:
        model ([`SSLModel`]): The bare model, with a penalty; its weights may be sharded by FSDP2.

    Returns:
        `tuple[float, float]`: In float64, equal on all processes up to rounding; `None` if no regularized weight is
        trained.
    """
    weights = [weight for weight in model.encoder.parameters() if weight.requires_grad]
    with torch.enable_grad():
        # This process's share, times the number of processes, with 0 for the weights of the others.
        penalty = model.shared_penalty()
    if not penalty.requires_grad:
        return None
    gradients = torch.autograd.grad(penalty, weights, allow_unused=True)
    # Of each weight: how many processes have a gradient of its penalty, and both squared norms.
    table = torch.zeros(len(weights), 3, dtype=torch.float64)
    for row, weight, gradient in zip(table, weights, gradients, strict=True):
        if gradient is not None:
            # A shard's gradient is that of the whole penalty, and each process finds the norm of all shards.
            share = world_size() if is_sharded(gradient) else world_size() ** 2
            loss = 0.0 if weight.grad is None else _squares(weight.grad)
            row.copy_(torch.tensor([1.0, loss, _squares(gradient) / share], dtype=torch.float64))
    processes, losses, penalties = all_reduce_sum(table).unbind(1)
    return float((losses / processes.clamp(min=1)).sum().sqrt()), float(penalties.sum().sqrt())


def _squares(gradient: Tensor) -> float:
    """Return the sum of squares of a gradient, of all its shards."""
    return float(full_tensor(gradient.double().square().sum()))


def gamma_text(gamma: float | str) -> str:
    """Return γ as a line about a run shows it."""
    return f"{AUTO}, measured by the first {STEPS} steps" if isinstance(gamma, str) else f"{gamma:g}"


def check_auto_gamma(model: SSLModel, data: TrainingData) -> None:
    """Refuse `gamma="auto"` in a run that ends before it is measured, or that trains no regularized weight.

    Raises:
        ValueError: With what to change.
    """
    if model.config.gamma != AUTO or model.regularizer is None:
        return
    freezing, first = Freezing.of(model, data.args), 0
    if freezing is not None:
        held = {matrix.path.removeprefix("backbone.") for matrix in model.regularizer.matrices}
        if held <= freezing.names:
            if not freezing.epochs:
                raise ValueError(
                    f"gamma is {AUTO}, but every regularized weight is frozen by --freeze: leave one of them out"
                )
            first = math.ceil(freezing.epochs * (data.steps_per_epoch or 0))
    planned = data.planned_steps()
    if planned <= first + STEPS:
        after = f", after {first} in which the encoder is frozen" if first else ""
        raise ValueError(
            f"gamma is {AUTO}, which the first {STEPS} steps measure{after}, and the run has {planned}: train for "
            "longer, or pass a number"
        )
