"""Intervals between events of a run: a number of steps, or a share of the run; without torch."""

import math


def steps_between(value: float, max_steps: int) -> int:
    """Return the steps between two events, given as a number or, below 1, as a share of the run."""
    return max(math.ceil(value * max_steps) if value < 1 else int(value), 1)


def is_due(step: int, before: int, every: float, max_steps: int) -> bool:
    """Return whether an event every `every` steps is due since step `before`; it always is at the end of the run."""
    interval = steps_between(every, max_steps)
    return step > before and (step >= max_steps or step // interval != before // interval)


def check_interval(name: str, steps: float, *, never: bool = True) -> None:
    """Reject a value that is not a number of steps between two events.

    Args:
        name (`str`): The option.
        steps (`float`): Its value.
        never (`bool`, defaults to `True`): Whether 0 means that there is no such event.

    Raises:
        ValueError: The value is neither a whole number nor a share below 1.
    """
    if not (0 <= steps < 1 or (steps >= 1 and float(steps).is_integer())) or not (steps or never):
        none = ", or 0 for none" if never else ""
        raise ValueError(f"{name} is {steps:g}: it must be a whole number of steps or a share below 1{none}")


def check_threshold(name: str, share: float) -> None:
    """Reject a threshold outside [0, 1).

    Raises:
        ValueError: The threshold is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"{name} is {share}: it must lie in [0, 1), as in 0.1; 0 gives no warnings")
