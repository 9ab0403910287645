"""Step the hidden matrices of the encoder by timm's Muon or AdaMuon, and everything else by AdamW.

What is stepped by which follows the advice of Muon's author (github.com/KellerJordan/Muon, README): Muon for hidden
weights, that is the linear layers and convolutions of the encoder but the first, which reads the images; AdamW for that
one, for the heads (projector, predictor, prototypes, decoder), and for norms, biases, tokens and embeddings. His
momentum of 0.95, Nesterov's form and five Newton–Schulz steps are the defaults.

Updates are scaled by 0.2·√max(input, output), to the root mean square of those of AdamW, so that one learning rate and
one weight decay, tuned for AdamW, serve both (Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, §2.2).
AdaMuon, whose paper (Si et al., arXiv 2507.11005) rescales to the same size, has its β2 of 0.95 and no Nesterov; timm's
version does not take the sign of the momentum first, as the later versions of the paper do.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim.muon import adamuon, muon
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ..distributed.sharding import full_tensor, is_sharded, shard_like
from ..encoders import Encoder
from ..encoders.depth import input_layers
from ..regularization.selection import LAYOUTS, WeightMatrix, output_views, select_matrices
from .arguments import OrthoSSLTrainingArguments

# Key of a parameter group → its default, see timm's `Muon`; and those that AdaMuon adds or has otherwise.
SETTINGS: dict[str, Any] = {
    "nesterov": True,
    "ns_steps": 5,
    "ns_coefficients": "quintic",
    "safety_factor": 1.0,
    "eps": 1e-7,
}
ADAMUON: dict[str, Any] = {"nesterov": False, "beta2": 0.95}


class Muon(torch.optim.Optimizer):
    """Orthogonalize the updates of matrices, each matrix of a fused or grouped parameter on its own.

    The arithmetic is timm's; it orthogonalizes in bfloat16. Of parameters that FSDP2 shards, each process gathers
    parameter, gradient and state, one parameter at a time, computes the whole update and keeps its own rows, which is
    what a single process computes.

    Args:
        groups (`list[dict]`): Parameter groups. One with a `layout`, a name in
            [`~regularization.selection.LAYOUTS`], and `matrices`, the number of matrices in each of its parameters, is
            stepped by Muon, with the keys of `SETTINGS` and `momentum`. The others are stepped by AdamW at `lr` times
            `fallback_lr_scale`, with `betas` and `eps`.
        lr (`float`): Learning rate.
        weight_decay (`float`): Weight decay, decoupled from the gradient.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Make one step with the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if "layout" not in group:
                self._step_adamw(group, trained)
                continue
            for parameter in trained:
                self._step_parameter(group, parameter)
        return loss

    def describe(self) -> str:
        """Return in one line what Muon steps and what AdamW does."""
        orthogonalized = [group for group in self.param_groups if "layout" in group]
        weights = sum(len(group["params"]) for group in orthogonalized)
        others = sum(len(group["params"]) for group in self.param_groups) - weights
        return (
            f"{type(self).__name__} on {weights} hidden weights of the encoder ({self.matrices} matrices), AdamW on "
            f"the {others} other parameters"
        )

    @property
    def matrices(self) -> int:
        """Return the number of matrices whose updates are orthogonalized."""
        return sum(len(group["params"]) * group["matrices"] for group in self.param_groups if "layout" in group)

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter that Muon steps, before its first step."""
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[list[Tensor]]
    ) -> None:
        """Step matrices of shape `(output, input, *kernel)` and their states in place.

        Args:
            group (`dict`): The parameter group.
            weights (`list[torch.Tensor]`): The matrices.
            gradients (`list[torch.Tensor]`): Their gradients.
            states (`list[list[torch.Tensor]]`): For each entry of [`new_state`] those of the matrices.
        """
        (momentum,) = states
        muon(weights, gradients, momentum, **self._arguments(group))

    def _arguments(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that timm's two functions share."""
        names = ("lr", "weight_decay", "momentum", *SETTINGS)
        # A convolution is one matrix (output, input · kernel), as the selection reads it.
        fixed = {"adjust_lr_fn": "match_rms_adamw", "conv_mode": "flatten", "normalize_spatial": False}
        return {name: group[name] for name in names} | fixed | {"scale_eps": False}

    def _step_parameter(self, group: dict[str, Any], parameter: Tensor) -> None:
        """Step one parameter by its matrices."""
        state = self.state[parameter]
        if not state:
            state |= self.new_state(parameter)
        held = [parameter, *state.values()]
        whole = [full_tensor(tensor.detach()) for tensor in held]
        assert parameter.grad is not None
        gradient = full_tensor(parameter.grad).to(parameter.dtype)
        layout, count = LAYOUTS[group["layout"]], group["matrices"]
        weights, *states = (output_views(layout, tensor, count) for tensor in whole)
        self.update(group, weights, output_views(layout, gradient, count), states)
        if is_sharded(parameter):
            for shard, tensor in zip(held, whole, strict=True):
                shard.copy_(shard_like(tensor, parameter))

    def _step_adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Step the parameters of one group by AdamW."""
        for parameter in parameters:
            if not self.state[parameter]:
                averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] |= {"step": torch.tensor(0.0), **averages}
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"] * group["fallback_lr_scale"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class AdaMuon(Muon):
    """Muon whose orthogonalized updates are divided by the root of their second moment, entry by entry.

    Its groups have `beta2` too.
    """

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter that AdaMuon steps, before its first step."""
        return super().new_state(parameter) | {"exp_avg_sq": torch.zeros_like(parameter)}

    def update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], states: list[list[Tensor]]
    ) -> None:
        """Step matrices of shape `(output, input, *kernel)` and their states in place."""
        momentum, squares = states
        # The number of the step, by which other rescalings correct the bias of the second moment, cancels in this one.
        steps = [torch.zeros(()) for _ in weights]
        adamuon(weights, gradients, momentum, squares, steps, beta2=group["beta2"], **self._arguments(group))


def hidden_matrices(model: nn.Module) -> list[WeightMatrix]:
    """Return the matrices that Muon steps: those of the encoder that are trained, without what reads the images.

    Raises:
        ValueError: The model has no [`Encoder`], or its encoder no such matrix.
    """
    encoder = next((module for module in model.modules() if isinstance(module, Encoder)), None)
    if encoder is None:
        raise ValueError(
            "Muon steps the hidden matrices of an encoder, and the model has no Encoder: pass --optim adamw_torch"
        )
    inputs = input_layers(encoder)
    matrices = [
        matrix
        for matrix in select_matrices(encoder.backbone)
        if matrix.name.partition("[")[0] not in inputs and matrix.parameter.requires_grad
    ]
    if not matrices:
        raise ValueError(
            f"{encoder.name!r} has no trained matrix but the one that reads the images, and Muon steps none but hidden "
            "ones: pass --optim adamw_torch"
        )
    return matrices


def split_groups(
    model: nn.Module, args: OrthoSSLTrainingArguments
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the parameter groups of Muon, one for each way in which parameters hold matrices, and those of AdamW.

    Args:
        model (`nn.Module`): The model, whose parameters that require a gradient are optimized.
        args ([`OrthoSSLTrainingArguments`]): The settings of the optimizer, with `optim_args`.
    """
    members: dict[tuple[str, int], list[Tensor]] = {}
    for matrix in hidden_matrices(model):
        if not matrix.index:
            layout = matrix.layout.__name__  # type: ignore[attr-defined]  # a function
            members.setdefault((layout, matrix.count), []).append(matrix.parameter)
    settings = SETTINGS | (ADAMUON if args.optim == "adamuon" else {}) | args.optimizer_arguments
    scale = settings.pop("fallback_lr_scale", 1.0)
    orthogonalized: list[dict[str, Any]] = [
        {"params": parameters, "layout": layout, "matrices": count, "momentum": args.momentum, **settings}
        for (layout, count), parameters in members.items()
    ]
    own = {id(parameter) for group in orthogonalized for parameter in group["params"]}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    fallback = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon, "fallback_lr_scale": scale}
    decayed, kept = [p for p in others if p.ndim > 1], [p for p in others if p.ndim <= 1]
    return orthogonalized, [{"params": decayed, **fallback}, {"params": kept, **fallback, "weight_decay": 0.0}]
