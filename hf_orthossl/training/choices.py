"""The names that options of training take, the packages these need, and the settings they read; without torch.

All of them work in the Trainer and in the accelerate loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ..messages import suggest

MOMENTUM, BETAS, ADAM = ("momentum",), ("adam_beta1", "adam_beta2"), ("adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass(frozen=True)
class Optimizer:
    """List what an optimizer needs and reads.

    Attributes:
        settings (`tuple[str, ...]`): The options that it reads, besides learning rate and weight decay.
        arguments (`tuple[str, ...]`): The names that `optim_args` can give.
        module (`str`, *optional*): The module that must be installed.
        package (`str`, *optional*): The name under which pip installs it, if it is another.
        momentum (`float`): The default of `momentum`, if it reads that.
        values (mapping): Argument → the values that it takes, in words, and whether a value is one of them.
    """

    settings: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    module: str | None = None
    package: str | None = None
    momentum: float = 0.9
    values: Mapping[str, tuple[str, Callable[[Any], bool]]] = field(default_factory=dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# The coefficients of the Newton–Schulz iteration that timm's Muon knows by name.
_COEFFICIENTS = ("original", "quintic", "polar_express", "polar_express_safer")
_MUON: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "nesterov": ("true or false", lambda value: isinstance(value, bool)),
    "ns_steps": ("a whole number of 1 or more, as in 5", lambda value: type(value) is int and value >= 1),
    "ns_coefficients": (f"one of {', '.join(_COEFFICIENTS)}", lambda value: value in _COEFFICIENTS),
    "safety_factor": ("a number of 1 or more, as in 1.01", lambda value: _is_number(value) and value >= 1),
    "eps": ("a number above 0, as in 1e-7", lambda value: _is_number(value) and value > 0),
    "fallback_lr_scale": ("a number above 0, as in 0.5", lambda value: _is_number(value) and value > 0),
}
_ADAMUON = _MUON | {"beta2": ("a number in [0, 1), as in 0.95", lambda value: _is_number(value) and 0 <= value < 1)}


_ADAMW_8BIT = Optimizer(ADAM, module="bitsandbytes")
_LION = Optimizer(BETAS, module="bitsandbytes")
_ADEMAMIX = Optimizer(ADAM, ("beta3", "alpha", "t_alpha", "t_beta3"), module="bitsandbytes")
_LOW_BITS = Optimizer(ADAM, ("block_size", "bf16_stochastic_round"), module="torchao")

# LARS, SGD with momentum and Adam are ours, as in SSL frameworks, and so are Muon and AdaMuon, which are told what to
# orthogonalize; the others are those of transformers. GaLore, APOLLO and LOMO are made for language models, and the
# schedule-free optimizers must know when the model is measured.
OWN_OPTIMIZERS = {
    "lars": Optimizer(MOMENTUM, ("trust_coeff", "trust_clip", "nesterov", "dampening", "eps")),
    "sgd": Optimizer(MOMENTUM),
    "adam": Optimizer(ADAM),
    # The settings of Adam are those of AdamW, which steps what they leave.
    "muon": Optimizer((*MOMENTUM, *ADAM), (*_MUON,), momentum=0.95, values=_MUON),
    "adamuon": Optimizer((*MOMENTUM, *ADAM), (*_ADAMUON,), momentum=0.95, values=_ADAMUON),
}
MUONS = ("muon", "adamuon")
# Rate and weight decay of Adam and its kind, whatever the batch, where a method's recipe is for LARS or SGD: those of
# torch's AdamW, among what methods published with AdamW take for 256 images (1.25e-4 to 2e-3). They are not tuned.
ADAM_RATE, ADAM_WEIGHT_DECAY = 1e-3, 1e-2
# The scale of their rates, Muon's included, see `rate_scale`.
ADAM_SCALE = "adam"
OPTIMIZERS = OWN_OPTIMIZERS | {
    "adamw_torch": Optimizer(ADAM),
    "adamw_torch_fused": Optimizer(ADAM),
    "adafactor": Optimizer(),
    "adagrad": Optimizer((), ("lr_decay", "eps")),
    "rmsprop": Optimizer((), ("momentum", "alpha", "eps", "centered")),
    "adamw_8bit": _ADAMW_8BIT,
    "adamw_bnb_8bit": _ADAMW_8BIT,
    "paged_adamw_8bit": _ADAMW_8BIT,
    "paged_adamw_32bit": _ADAMW_8BIT,
    "lion_8bit": _LION,
    "lion_32bit": _LION,
    "paged_lion_8bit": _LION,
    "paged_lion_32bit": _LION,
    "ademamix": _ADEMAMIX,
    "ademamix_8bit": _ADEMAMIX,
    "paged_ademamix_8bit": _ADEMAMIX,
    "paged_ademamix_32bit": _ADEMAMIX,
    "adamw_torch_4bit": _LOW_BITS,
    "adamw_torch_8bit": _LOW_BITS,
    "stable_adamw": Optimizer(ADAM, ("max_lr", "kahan_sum", "decouple_lr"), module="optimi", package="torch-optimi"),
}

# Schedule → the arguments of which it needs one. `reduce_lr_on_plateau` and `greedy` need labels to evaluate with.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "cosine": (),
    "linear": (),
    "constant": (),
    "constant_with_warmup": (),
    "cosine_with_restarts": (),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "polynomial": (),
    "inverse_sqrt": (),
    "warmup_stable_decay": ("num_decay_steps",),
}

# Tracker → the modules of which one must be installed.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "clearml": ("clearml",),
    "comet_ml": ("comet_ml",),
    "dvclive": ("dvclive",),
    "swanlab": ("swanlab",),
}


def rate_scale(name: str) -> str:
    """Return the scale of an optimizer's learning rates, which Adam and its kind share; others have their own."""
    return ADAM_SCALE if set(ADAM) <= set(OPTIMIZERS[name].settings) else name


def check_optimizer(name: str) -> None:
    """Reject an optimizer that is unknown or not installed.

    Raises:
        ValueError: With the nearest name, or the package to install.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optim is {name!r}: {suggest(name, OPTIMIZERS)}")
    optimizer = OPTIMIZERS[name]
    if optimizer.module and not find_spec(optimizer.module):
        package = optimizer.package or optimizer.module
        raise ValueError(f"optim {name} needs the package {package}: pip install {package}")


def check_settings(name: str, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Reject a setting that an optimizer does not read.

    Args:
        name (`str`): The optimizer.
        given (mapping): The settings of optimizers that differ from their default.
        arguments (mapping): The assignments of `optim_args`.

    Raises:
        ValueError: The optimizer has no such setting or argument, or an argument has a value that it does not take.
    """
    optimizer = OPTIMIZERS[name]
    for setting, value in given.items():
        if setting not in optimizer.settings:
            able = ", ".join(other for other, one in OPTIMIZERS.items() if setting in one.settings and not one.module)
            raise ValueError(f"{setting} is {value}, but {name} does not read it: leave it out, or pass --optim {able}")
    for argument, value in arguments.items():
        if not optimizer.arguments:
            raise ValueError(f"optim_args is given, but {name} has no further arguments: leave it out")
        if argument not in optimizer.arguments:
            raise ValueError(f"optim_args has no {argument!r} for {name}: {suggest(argument, optimizer.arguments)}")
        words, fits = optimizer.values.get(argument, ("", None))
        if fits is not None and not fits(value):
            raise ValueError(f"optim_args has {argument}={value}: for {name} it must be {words}")


def check_schedule(name: str, arguments: Mapping[str, Any] | None, warmup: Mapping[str, float | None]) -> None:
    """Reject a schedule that is unknown, lacks an argument, or does not read what is given.

    Args:
        name (`str`): The schedule.
        arguments (mapping, *optional*): Its `lr_scheduler_kwargs`.
        warmup (mapping): The options of the warm-up, `None` where they are not given.

    Raises:
        ValueError: With what to pass.
    """
    if name not in SCHEDULES:
        why = "; it needs labels to evaluate with" if name in ("reduce_lr_on_plateau", "greedy") else ""
        raise ValueError(f"lr_scheduler_type is {name!r}{why}: {suggest(name, SCHEDULES)}")
    if SCHEDULES[name] and not set(SCHEDULES[name]) & set(arguments or {}):
        raise ValueError(
            f"lr_scheduler_type {name} needs {' or '.join(SCHEDULES[name])}: pass --lr_scheduler_kwargs "
            f"{SCHEDULES[name][0]}={'1e-4' if 'lr' in SCHEDULES[name][0] else '100'}"
        )
    if arguments and name in ("constant", "constant_with_warmup"):
        raise ValueError(f"lr_scheduler_kwargs is given, but {name} has no arguments: leave it out")
    for option, value in warmup.items():
        if value and name == "constant":
            raise ValueError(
                f"{option} is {value:g}, but the schedule constant has no warm-up: pass --lr_scheduler_type "
                "constant_with_warmup"
            )


def checked_trackers(names: list[str] | None) -> list[str]:
    """Return the trackers to report to, once each of them is known and installed.

    Raises:
        ValueError: With the nearest name, or the package to install.
    """
    names = [] if names in (None, ["none"]) else list(names or [])
    if "none" in names:
        raise ValueError(f"report_to is {' '.join(names)}: none excludes the others, leave it out")
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"report_to is {name!r}: {suggest(name, ['none', *TRACKERS])}")
        if not any(find_spec(module) for module in TRACKERS[name]):
            package = TRACKERS[name][0].replace("_", "-")
            raise ValueError(f"report_to {name} needs the package {package}: pip install {package}")
    return names
