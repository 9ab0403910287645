"""The settings of a run: their values from step to step, and which of them may change when the run is resumed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

# Options of the update that an optimizer step makes. A resumed run may change them: the new values hold from its first
# step on, and it must take one.
STEP_OPTIONS = (
    *("learning_rate", "weight_decay", "momentum", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_epochs", "warmup_start_lr"),
    *("gradient_cache", "on_nonfinite"),
)
# Options of what happens around the steps: how many there are, where they run, how images are read, and what is logged,
# measured, saved and published. A resumed run may change them.
OTHER_OPTIONS = (
    *("max_steps", "num_train_epochs"),
    # Only together, so that a step has as many images as before.
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("gradient_checkpointing", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("use_cpu", "ddp_timeout", "ddp_backend", "ddp_find_unused_parameters"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "cache_images", "max_unreadable"),
    *("logging_steps", "disable_tqdm", "report_to"),
    *(
        "spectra_steps",
        "spectra_images",
        "spectra_threshold",
        "stop_on_collapse",
        "knn_steps",
        "linear_probe_steps",
        "knn_images",
    ),
    *("save_strategy", "save_steps", "save_total_limit"),
    *("push_to_hub", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
)
# What is no setting: where a run is, how it is started, and secrets.
NOT_SETTINGS = ("output_dir", "resume", "overwrite_output", "hub_token")
# The data set may be elsewhere than before, if its fingerprint shows that it is the same. Every other option, listed
# here or not, cannot change.
MOVABLE = "dataset"
# The fact of a record that holds the γ in use with `gamma="auto"`.
MEASURED = "measured_gamma"

# What may differ between the processes of one run, each of which reads images in its own way and place.
PER_PROCESS = (
    *(MOVABLE, "cache_images", "disable_tqdm", "report_to", "max_unreadable", "dataloader_num_workers"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    "dataloader_multiprocessing_context",
)


class Timeline:
    """Values by name, each with the optimizer step from which it holds.

    Args:
        spans (`dict`, *optional*): Name → list of `[step, value]`, as [`~Timeline.to_dict`] returns them.

    Example:
        >>> settings = Timeline()
        >>> settings.note(0, {"learning_rate": 0.06, "momentum": 0.9})
        >>> settings.note(100, {"learning_rate": 0.3, "momentum": 0.9})
        >>> settings["learning_rate"], settings.describe("momentum")
        (0.3, 0.9)
        >>> settings.describe("learning_rate")
        '0.06 (steps 0–100), 0.3 (from step 100)'
    """

    def __init__(self, spans: Mapping[str, list[Any]] | None = None):
        self._spans: dict[str, list[tuple[int, Any]]] = {
            name: [(int(step), value) for step, value in held] for name, held in (spans or {}).items()
        }

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the values that hold from optimizer step number `step` on, counted from 0; equal ones add nothing."""
        for name, value in values.items():
            held = [span for span in self._spans.get(name, []) if span[0] < step]
            if not held or held[-1][1] != value:
                held.append((step, value))
            self._spans[name] = held

    def __getitem__(self, name: str) -> Any:
        return self._spans[name][-1][1]

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def values_of(self, name: str) -> list[Any]:
        """Return all values that `name` has had, the current one last."""
        return [value for _, value in self._spans.get(name, [])]

    def describe(self, name: str) -> Any:
        """Return the only value that `name` has had, or text with all of them and their steps."""
        held = self._spans[name]
        if len(held) == 1:
            return held[0][1]
        ends = [f"steps {step}–{after}" for (step, _), (after, _) in pairwise(held)]
        texts = ["none" if value is None else str(value) for _, value in held]
        return ", ".join(
            f"{text} ({when})" for text, when in zip(texts, [*ends, f"from step {held[-1][0]}"], strict=True)
        )

    def to_dict(self) -> dict[str, list[Any]]:
        """Return name → list of `[step, value]`."""
        return {name: [list(span) for span in held] for name, held in self._spans.items()}


@dataclass
class RunRecord:
    """Record what a run was given and what it did, from its first step on; part of every checkpoint.

    Args:
        run (`str`): The id of the run, which is random, and also in its `config.yaml` and history.
        options ([`Timeline`]): The options, with the recipe's value where an option was left open.
        facts ([`Timeline`]): What the steps were seen to use: hyper-parameters of the optimizer, precision of the
            tensors, images per step, processes.
        changes (`dict`): The options that the last resume changed: name → values before and after.
        steps (`int`): Optimizer steps taken.
        skipped_steps (`int`): Those among them that changed nothing, because loss or gradients were not finite.
    """

    run: str = ""
    options: Timeline = field(default_factory=Timeline)
    facts: Timeline = field(default_factory=Timeline)
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    steps: int = 0
    skipped_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, for a checkpoint."""
        return {
            "run": self.run,
            "options": self.options.to_dict(),
            "facts": self.facts.to_dict(),
            "skipped_steps": self.skipped_steps,
        }


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are after a round trip through JSON, in which saved and current ones are compared."""
    return json.loads(json.dumps(dict(settings), default=lambda value: getattr(value, "value", str(value))))


def option_text(value: Any) -> str:
    """Return the text by which an option that is a name, or an `Enum` of transformers, is given."""
    return str(getattr(value, "value", value))


def differences(before: Mapping[str, Any] | Timeline, now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return name → values before and now of each setting in both that differs, without what is no setting."""
    shared = {name: (before[name], now[name]) for name in now if name in before and name not in NOT_SETTINGS}
    # NaN, which is a value of `nodata`, is not equal to itself.
    return {name: (old, new) for name, (old, new) in shared.items() if old != new and (old == old or new == new)}


def check_changes(changes: Mapping[str, tuple[Any, Any]], folder: object, allowed: tuple[str, ...] = ()) -> None:
    """Refuse to resume a run with an option that cannot change.

    Args:
        changes (`dict`): Name → values before and now, from [`differences`].
        folder (`Path`): The run's folder, for the message.
        allowed (`tuple[str, ...]`): Further options that may change.

    Raises:
        ValueError: An option that differs is not among those that may change; the message names all of them.
    """
    refused = {
        name: values for name, values in changes.items() if name not in (*STEP_OPTIONS, *OTHER_OPTIONS, *allowed)
    }
    if refused:
        now = ", ".join(f"{name} is {value!r}" for name, (_, value) in refused.items())
        before = ", ".join(repr(value) for value, _ in refused.values())
        option = "the option" if len(refused) == 1 else "these options"
        raise ValueError(
            f"{now} and the run in {folder} was started with {before}: omit {option} to resume that run, or start a "
            "new one with another --output_dir"
        )
