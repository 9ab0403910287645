"""Read the names of arms, such as "so", "so:decoupled" or "muon+so", as options of `orthossl pretrain`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..messages import suggest
from ..methods import EMBEDDING_REGULARIZERS
from ..regularization import PENALTIES
from ..training.choices import MUONS

# The arm without any remedy.
NONE = "none"
# How a penalty acts, besides as a term of the loss whose γ is chosen: after the optimizer, or with a γ that is found.
DECOUPLED, AUTO = "decoupled", "auto"
CONSTRAINT, WHITENING = "orthogonal", "whitening"
# The steps of the paper's runs on CIFAR, for which the default γ of a penalty and of whitening is meant. What a penalty
# achieves goes by γ times the number of steps.
PAPER_STEPS = 195_000
# No γ is scaled up by more: the steps of very short runs would overshoot.
LARGEST_PULL = 1000.0
# The γ that the paper tuned whitening over, in the middle.
WHITENING_GAMMA = 1e-4
# Candidates, as multiples of the default. A shorter run needs more than the paper's pull.
MULTIPLES = {"gamma": (1.0, 10.0, 100.0), "strength": (0.2, 1.0, 4.0), "embedding_weight": (0.1, 1.0, 10.0)}
MULTIPLES["whitening"] = MULTIPLES["embedding_weight"]
# Symbols of the strengths, for tables.
SYMBOLS = {"gamma": "γ", "strength": "λ", "embedding_weight": "w", "whitening": "γ", "learning_rate": "lr"}


@dataclass(frozen=True)
class Arm:
    """One way to prevent collapse.

    Args:
        name (`str`): As tables show it.
        options (`dict`): The options of `orthossl pretrain` that distinguish it from the other arms.
        strength (`str`, *optional*): The option that its strength is given by; `None` if there is none.
        strengths (tuple of `float`): What its strength is chosen from; one is taken as it is.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    strength: str | None = None
    strengths: tuple[float, ...] = ()

    @property
    def folder(self) -> str:
        """Return the name of its folder, which all file systems allow."""
        return self.name.replace(":", "-")

    def settings(self, strength: float | None) -> dict[str, Any]:
        """Return its options with a strength."""
        return {**self.options, **({} if self.strength is None or strength is None else {self.strength: strength})}


def known_parts() -> list[str]:
    """Return the names that an arm can be made of."""
    modes = [f"{name}:{mode}" for name in PENALTIES for mode in (DECOUPLED, AUTO)]
    return [NONE, *PENALTIES, *modes, *MUONS, CONSTRAINT, WHITENING, *EMBEDDING_REGULARIZERS]


def parse_arm(name: str, steps: int) -> Arm:
    """Return the arm of a name: parts joined by "+", at most one of each kind.

    A penalty is a term of the loss ("so"), acts after the optimizer ("so:decoupled"), or finds its own γ ("so:auto").
    Its strength is the one that is chosen, in an arm of several parts that have one; those of the others are their
    defaults.

    Args:
        name (`str`): The name, such as "muon+so".
        steps (`int`): Optimizer steps of a run, by which the candidates for γ are scaled.

    Raises:
        ValueError: A part is unknown, or two are of the same kind.
    """
    kinds: dict[str, str] = {}
    options: dict[str, Any] = {"regularizer": "none"}
    # Option → its default, the first being the one that is tuned.
    defaults: dict[str, float] = {}
    for part in name.split("+"):
        kind, chosen, default = _part(name, part, steps)
        if kind in kinds:
            raise ValueError(f"arm {name}: {kinds[kind]} and {part} are both {kind}: pass an arm with one of them")
        kinds[kind] = part
        options |= chosen
        defaults |= default
    if NONE in kinds.values() and len(kinds) > 1:
        raise ValueError(f"arm {name}: none excludes all others: pass it as an arm of its own")
    strength = next((option for option in MULTIPLES if option in defaults), None)
    if strength is None:
        return Arm(name, options)
    # Whitening has no default of its own: without a weight there is none.
    options |= {option: _rounded(value) for option, value in defaults.items() if option == WHITENING != strength}
    grid = tuple(_rounded(defaults[strength] * multiple) for multiple in MULTIPLES[strength])
    return Arm(name, options, strength, grid)


def _part(arm: str, part: str, steps: int) -> tuple[str, dict[str, Any], dict[str, float]]:
    """Return the kind of a part of an arm, its options, and the default of the option that gives its strength."""
    base, _, mode = part.partition(":")
    pull = min(PAPER_STEPS / steps, LARGEST_PULL)
    if base in PENALTIES and mode in ("", DECOUPLED, AUTO):
        options: dict[str, Any] = {"regularizer": base}
        if mode == DECOUPLED:
            return "penalties", options | {"penalty_mode": DECOUPLED}, {"strength": PENALTIES[base].default_strength}
        if mode == AUTO:
            return "penalties", options | {"gamma": AUTO}, {}
        return "penalties", options, {"gamma": PENALTIES[base].default_gamma * pull}
    if part in MUONS:
        return "optimizers", {"optim": part}, {}
    if part == CONSTRAINT:
        return "constraints", {"constrain": CONSTRAINT}, {}
    if part in EMBEDDING_REGULARIZERS:
        weight = float(EMBEDDING_REGULARIZERS[part].default_weight)
        return "regularizers of the embedding", {"embedding_regularizer": part}, {"embedding_weight": weight}
    if part == WHITENING:
        return "whitening", {}, {WHITENING: WHITENING_GAMMA * pull}
    if part == NONE:
        return "no remedy", {}, {}
    raise ValueError(f"arm {arm}: {part!r} is unknown: {suggest(part, known_parts())}")


def parse_arms(names: Sequence[str], steps: int, strengths: Mapping[str, Sequence[float]]) -> list[Arm]:
    """Return the arms of a comparison.

    Args:
        names (sequence of `str`): Their names; the others are compared with the first.
        steps (`int`): Optimizer steps of a run.
        strengths (mapping): Name of an arm → what its strength is chosen from, instead of the default candidates.

    Raises:
        ValueError: There are fewer than two arms, one is given twice or unknown, or strengths are given for one that
            is not compared, or that has none.
    """
    arms = {name: parse_arm(name, steps) for name in names}
    if len(arms) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"arms has {twice} twice: pass each arm once")
    if len(arms) < 2:
        raise ValueError(f"arms is {' '.join(names)}: a comparison needs two or more, as in --arms none so")
    same: dict[tuple[str, ...], str] = {}
    for name in arms:
        parts = tuple(sorted(name.split("+")))
        if parts in same:
            raise ValueError(f"arms {same[parts]} and {name} are the same: pass one of them")
        same[parts] = name
    for name, values in strengths.items():
        if name not in arms:
            raise ValueError(f"strengths has {name!r}, which is none of the arms: {suggest(name, arms)}")
        arm = arms[name]
        # The rate of an optimizer that orthogonalizes updates is what its effect goes by.
        option = arm.strength or ("learning_rate" if arm.options.get("optim") in MUONS else None)
        if option is None:
            raise ValueError(f"strengths has {name}, an arm without a strength: leave it out")
        arms[name] = Arm(name, arm.options, option, tuple(values))
    return list(arms.values())


def _rounded(value: float) -> float:
    """Return a number with one significant digit."""
    return float(f"{value:.0e}")
