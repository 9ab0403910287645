"""Build the optimizer of a run and its schedule, and change them when it is resumed, for the Trainer and the loop."""

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from timm.optim import Lars
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel, Trainer, get_scheduler

from ..encoders import Encoder
from ..encoders.depth import layer_scales
from .arguments import OrthoSSLTrainingArguments
from .choices import MUONS
from .muon import AdaMuon, Muon, split_groups

SOLO_LEARN_LARS = {"trust_coeff": 0.02, "trust_clip": True}
# Option → its key in the parameter groups of an optimizer.
GROUP_KEYS = {
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "adam_epsilon": "eps",
}


def build_optimizer(model: nn.Module, args: OrthoSSLTrainingArguments) -> torch.optim.Optimizer:
    """Return LARS, SGD with momentum or Adam as in SSL frameworks, Muon, or any optimizer of the Trainer.

    Weight decay and the layer-wise scaling of LARS exclude parameters with one dimension (norms, biases), as in
    solo-learn. SGD and Adam decay every parameter through its gradient, as in the recipes of solo-learn and LightlySSL.
    With `layer_decay` below 1 each layer of the encoder has its own rate, see [`~encoders.depth.layer_scales`].

    Args:
        model (`nn.Module`): The model; its parameters that require a gradient are optimized.
        args ([`OrthoSSLTrainingArguments`]): The settings, with `optim`, `learning_rate` and `weight_decay`.
            `optim_args` applies to LARS as well: `trust_coeff=0.001,trust_clip=False` is LARS as in the ImageNet runs
            of the BYOL and SimCLR papers.

    Raises:
        ValueError: The model has no matrix that Muon can step.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The recipe has set them.
    assert args.learning_rate is not None
    assert args.weight_decay is not None
    betas = args.adam_beta1, args.adam_beta2
    if args.optim == "sgd":
        groups = _by_depth({"params": trained}, model, args)
        return torch.optim.SGD(
            groups, lr=args.learning_rate, momentum=cast(float, args.momentum), weight_decay=args.weight_decay
        )
    if args.optim == "adam":
        groups = _by_depth({"params": trained}, model, args)
        return torch.optim.Adam(
            groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, weight_decay=args.weight_decay
        )
    if args.optim in MUONS:
        orthogonalized, others = split_groups(model, args)
        groups = [part for group in (*orthogonalized, *others) for part in _by_depth(group, model, args)]
        kind = AdaMuon if args.optim == "adamuon" else Muon
        return kind(groups, lr=args.learning_rate, weight_decay=args.weight_decay)
    matrices: dict[str, Any] = {"params": [p for p in trained if p.ndim > 1], "weight_decay": args.weight_decay}
    if args.optim == "lars":
        # timm scales a group layer by layer only if it has weight decay, which excludes the right parameters; with a
        # decay of zero it would scale none, so `always_adapt` keeps the scaling for the matrices.
        matrices["always_adapt"] = True
    vectors = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
    groups = [*_by_depth(matrices, model, args), *_by_depth(vectors, model, args)]
    if args.optim == "lars":
        settings: dict[str, Any] = SOLO_LEARN_LARS | args.optimizer_arguments
        return Lars(groups, lr=args.learning_rate, momentum=args.momentum, **settings)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, cast(PreTrainedModel, model))
    return optimizer_class(groups, **settings)


def build_schedule(
    optimizer: torch.optim.Optimizer, args: OrthoSSLTrainingArguments, warmup: int, steps: int
) -> LambdaLR:
    """Return the schedule that is named, after a linear warm-up from `warmup_start_lr` to the peak.

    Args:
        optimizer (`Optimizer`): The optimizer. Groups of a lower rate start lower in proportion.
        args ([`OrthoSSLTrainingArguments`]): The settings, with `learning_rate` and `warmup_start_lr`.
        warmup (`int`): Steps of warm-up.
        steps (`int`): Steps of the whole run.
    """
    schedule: Any = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        # Text was parsed by the arguments.
        scheduler_specific_kwargs=cast(dict, args.lr_scheduler_kwargs),
    )
    if args.warmup_start_lr and warmup:
        start = args.warmup_start_lr / cast(float, args.learning_rate)
        schedule.lr_lambdas = [_raised(factor, start, warmup) for factor in schedule.lr_lambdas]
        _set_rates(schedule)
    return schedule


def schedule_factor(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate of the current step as a share of its peak, which is the same for all groups.

    A scheduler writes both into the groups: the peak of a group, with its own scale for `layer_decay`, and its rate.
    Without one the factor is 1, and 0 if the learning rate is 0 throughout.
    """
    for group in optimizer.param_groups:
        peak = float(group.get("initial_lr", group["lr"]))
        if peak:
            return float(group["lr"]) / peak
    return 0.0


def _raised(factor: Callable[[int], float], start: float, warmup: int) -> Callable[[int], float]:
    """Return a schedule's factor of each step, with a warm-up that begins at `start` instead of 0."""
    return lambda step: start + (1 - start) * step / warmup if step < warmup else factor(step)


def _set_rates(schedule: LambdaLR) -> None:
    """Set the rates of an optimizer to those of its schedule, whose peaks or factors have changed, at the same step."""
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    schedule._last_lr = [peak * factor for peak, factor in zip(schedule.base_lrs, factors, strict=True)]
    groups = schedule.optimizer.param_groups
    for group, peak, rate in zip(groups, schedule.base_lrs, schedule._last_lr, strict=True):
        group["initial_lr"], group["lr"] = peak, rate


def _by_depth(group: dict[str, Any], model: nn.Module, args: OrthoSSLTrainingArguments) -> list[dict[str, Any]]:
    """Return a parameter group as one group for each learning rate, the largest first; heads have the whole rate."""
    factor, rate = args.layer_decay, args.learning_rate
    if factor in (None, 1) or rate is None or factor is None:
        return [group]
    scales: dict[int, float] = {}
    for encoder in (module for module in model.modules() if isinstance(module, Encoder)):
        known = layer_scales(encoder, factor)
        scales |= {id(parameter): known[name] for name, parameter in encoder.backbone.named_parameters()}
    if not scales:
        raise ValueError(f"layer_decay is {factor}, but the model has no Encoder, whose layers are known: leave it out")
    members: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        members.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    return [group | {"params": members[scale], "lr": rate * scale} for scale in sorted(members, reverse=True)]


class GivenSettings:
    """The hyper-parameters that an optimizer and its schedule were built with, to outlast the loading of their states.

    A saved state holds the hyper-parameters of the run so far, which would replace those given now.

    Args:
        optimizer (`Optimizer`): The optimizer, as built from the arguments.
        scheduler (`LRScheduler`): Its schedule, as built from the arguments.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler):
        self.optimizer, self.scheduler = optimizer, scheduler
        self._groups = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
        self._rates = list(scheduler.base_lrs) if isinstance(scheduler, LambdaLR) else []

    def restore(self, changed: Collection[str]) -> None:
        """Apply the options that differ from those of the saved state, which has been loaded.

        The rate of the next step is that of the current schedule at this step: of another peak, another shape or
        another length of the run, if these have changed. Momentum buffers and other states are kept.

        Args:
            changed (collection of `str`): The options that differ.
        """
        keys = [key for option, key in GROUP_KEYS.items() if option in changed]
        for group, given in zip(self.optimizer.param_groups, self._groups, strict=True):
            group.update({key: given[key] for key in keys if key in given})
        scheduler = self.scheduler
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = self._rates
            _set_rates(scheduler)


def optimizer_facts(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> dict[str, Any]:
    """Return what an optimizer steps with, by name of the option, as JSON values; `None` for what it does not have."""
    groups = optimizer.param_groups
    betas = next((group["betas"] for group in groups if "betas" in group), (None, None))
    kind = getattr(optimizer, "optimizer", optimizer)
    return {
        "optimizer": type(kind).__name__,
        # The peak of the schedule.
        "learning_rate": max(map(float, getattr(scheduler, "base_lrs", [group["lr"] for group in groups]))),
        # Groups of norms and biases are exempt from it.
        "weight_decay": max(
            (float(group["weight_decay"]) for group in groups if "weight_decay" in group), default=None
        ),
        "momentum": next((float(group["momentum"]) for group in groups if "momentum" in group), None),
        "adam_beta1": betas[0],
        "adam_beta2": betas[1],
        "adam_epsilon": next((float(group["eps"]) for group in groups if "betas" in group), None),
        "muon_matrices": kind.matrices if isinstance(kind, Muon) else None,
    }
