"""The orthogonality penalty in any `transformers.Trainer`."""

import torch
from torch import nn

from ...distributed.collectives import all_reduce_mean, rank, world_size
from ...methods import Progress
from ...regularization import OrthogonalityRegularizer, get_penalty
from .reporting import ReportingCallback


class OrthogonalityCallback(ReportingCallback):
    """Add γ·Σ OR(W) to the training of any plain `transformers.Trainer`, without subclassing it.

    The gradient of the penalty is written before the first backward pass of each optimizer step. It therefore
    counts once regardless of gradient accumulation, and is clipped and scaled for fp16 together with the other
    gradients. The value, with γ
    applied, is logged as `orthogonality`, as the mean over the steps that computed it. DeepSpeed, which does not expose
    its gradients, is not supported. It has no decoupled penalty: for that, call [`OrthogonalityRegularizer.step`] after
    the optimizer, or train with [`OrthoSSLTrainer`].

    The result does not depend on the number of processes: under FSDP2 each process computes the gradient of its shard;
    under DDP each computes the whole gradient or, with `ddp_find_unused_parameters=False`, that of a share of the
    matrices.

    Args:
        kind (`str`, defaults to "so"): The name of a penalty, see `PENALTIES`.
        gamma (`float`, *optional*): Weight γ ≥ 0; by default the `default_gamma` of the penalty.
        module (`nn.Module`, *optional*): The part to regularize, such as `model.vit`; the whole model by default.
        seed (`int`, defaults to 0): Seed of the random vectors of SRIP and sketched SO.
        every (`int`, defaults to 1): Compute the penalty at every `every`-th optimizer step, starting with the first,
            and multiply its gradient by `every`, as `penalty_every` of [`SSLConfig`] does.
        kwargs: Further arguments of [`OrthogonalityRegularizer`], such as `include` and `exclude`.

    Raises:
        ValueError: γ < 0, `every` < 1, an argument that [`OrthogonalityRegularizer`] rejects, or, when a run is
            resumed, a penalty that keeps the weights of the start.

    Example:
        ```python
        Trainer(model, args, train_dataset=ds, callbacks=[OrthogonalityCallback(kind="so")]).train()
        ```

        To see the values in TensorBoard or another integration, attach the callback to the trainer:

        ```python
        trainer = Trainer(model, args, train_dataset=ds)
        OrthogonalityCallback(kind="so").attach(trainer)
        trainer.train()
        ```
    """

    def __init__(
        self,
        kind: str = "so",
        gamma: float | None = None,
        module: nn.Module | None = None,
        seed: int = 0,
        every: int = 1,
        **kwargs,
    ):
        gamma = get_penalty(kind).default_gamma if gamma is None else gamma
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}: the penalty's weight must be 0 or more, as in 1e-6")
        if every < 1 or every != int(every):
            raise ValueError(f"every is {every}: it must be a whole number of optimizer steps, 1 or more")
        self.kind, self.gamma, self.module, self.seed, self.kwargs = kind, gamma, module, seed, kwargs
        self.every = every
        self.regularizer: OrthogonalityRegularizer | None = None
        self._regularized: nn.Module | None = None
        self._sum, self._count = torch.zeros(()), 0
        self.processes = 1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Select the matrices of the model that is about to be trained."""
        super().on_train_begin(args, state, control, **kwargs)
        # At each call of `train`, since the callback may be reused for another model.
        self._regularized = model if self.module is None else self.module
        self.regularizer = OrthogonalityRegularizer(self._regularized, self.kind, **self.kwargs)
        if self.regularizer.references is not None and state.global_step:
            raise ValueError(
                f"penalty {self.kind!r} keeps the weights of the start, which a checkpoint of this Trainer does not "
                "hold: resume with OrthoSSLTrainer, or choose another kind"
            )
        # DDP with `find_unused_parameters` does not average every gradient, so each process needs the whole one.
        averages_all = args.ddp_find_unused_parameters is False and not args.ddp_static_graph
        self.processes = world_size() if averages_all else 1

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        """Write the gradient of the penalty."""
        if state.global_step % self.every:
            return
        device = next(self._regularized.parameters()).device
        generator = Progress(step=state.global_step, seed=self.seed).generator(device)
        # fp16 gradients are scaled until the optimizer, or clipping, unscales them all.
        scaler = getattr(optimizer, "scaler", None)
        weight = self.gamma * self.every * (scaler.get_scale() if scaler is not None else 1.0)
        process = rank() if self.processes > 1 else 0
        value = self.regularizer.add_gradients(weight, generator, process=process, processes=self.processes)
        self._sum, self._count = self._sum.to(value.device) + self.gamma * value, self._count + 1

    def scalars(self, state, logs):
        """Return the mean penalty since the last log entry, as `orthogonality`."""
        if not self._count or "loss" not in logs:
            return {}
        mean = self._sum / self._count
        self._sum, self._count = torch.zeros(()), 0
        return {"orthogonality": (all_reduce_mean(mean) if self.processes > 1 else mean).item()}
