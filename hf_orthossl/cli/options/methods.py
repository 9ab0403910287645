"""Options of `orthossl methods`."""

from dataclasses import dataclass, field

from ..parsing import parse


@dataclass
class MethodsArguments:
    """Options of `orthossl methods`."""

    json: bool = field(default=False, metadata={"help": "print JSON, with every hyper-parameter"})


def read(argv: list[str], prog: str = "orthossl methods") -> tuple[MethodsArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown.
    """
    (args,), _ = parse(prog, "List methods, penalties, view recipes and backbones.", [MethodsArguments], argv)
    return (args,)
