"""Options of `orthossl compare`."""

from typing import Any

from ...comparison.options import ARM_OPTIONS, OWN_OPTIONS, ComparisonOptions, refusal
from ...training.options import OPTION_CLASSES, check_given
from ..parsing import parse

DESCRIPTION = (
    "Compare ways to prevent collapse: penalties on the weights (so, so:decoupled, …), orthogonal updates (muon), a "
    "hard constraint (orthogonal), regularizers of the embedding (sigreg, …), whitening, or several joined by +, each "
    "with the same runs from the same seeds. A command that was stopped goes on when it is started again, and several "
    "share the runs out. All other options are those of orthossl pretrain."
)


def read(argv: list[str], prog: str = "orthossl compare") -> tuple[ComparisonOptions, dict[str, Any]]:
    """Return the options of the comparison, and those given for all of its runs.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    kinds = [ComparisonOptions, *OPTION_CLASSES]
    filled, given = parse(prog, DESCRIPTION, kinds, argv, refusal=refusal, without=(*ARM_OPTIONS, *OWN_OPTIONS))
    check_given(given)
    flags = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    if filled[-1].max_steps > 0 and {"max_steps", "num_train_epochs"} <= flags:
        raise ValueError("max_steps and num_train_epochs exclude each other: pass one of them")
    own = vars(filled[0])
    return filled[0], {name: value for name, value in given.items() if name not in own}
