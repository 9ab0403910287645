"""Options of `orthossl leaderboard` and of its actions."""

from dataclasses import dataclass, field
from typing import Any

from ...messages import suggest
from ..parsing import parse

ACTIONS = {
    "build": "collect all encoders with the tag orthossl into a folder, and publish it as a data set",
    "serve": "show a board in the browser, from a folder or a data set",
    "deploy": "create or update a Space that shows a data set's board, updated from the Hub every hour",
    "verify": "measure an encoder's kNN, linear probes and spectra again, and compare with its author's claims",
}
DEFAULT_BOARD = "runs/leaderboard"
USAGE = "\n".join(
    [
        "usage: orthossl leaderboard ACTION [options]",
        "",
        "The board of encoders that were published with orthossl.",
        "",
        "actions:",
        *(f"  {name:<7} {text}" for name, text in ACTIONS.items()),
        "",
        "orthossl leaderboard ACTION --help lists an action's options.",
    ]
)


@dataclass
class BuildArguments:
    """The output folder of `build`, and the data set that it publishes."""

    output_dir: str = field(default=DEFAULT_BOARD, metadata={"help": "folder of the board and its cache"})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "publish it as this data set", "metavar": "USER/NAME"}
    )


@dataclass
class ServeArguments:
    """The board that `serve` shows, and its address."""

    board: str = field(default=DEFAULT_BOARD, metadata={"help": "folder or data set of a board"})
    port: int = field(default=7860, metadata={"help": "port to listen on, 1–65535"})
    host: str = field(
        default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 for all addresses of this machine"}
    )


@dataclass
class DeployArguments:
    """The Space that `deploy` creates or updates, and the board that it shows."""

    space: str | None = field(default=None, metadata={"help": "the Space", "metavar": "USER/NAME"})
    board: str | None = field(default=None, metadata={"help": "data set of the board", "metavar": "USER/NAME"})
    private: bool = field(default=False, metadata={"help": "make a new Space private"})
    package: str | None = field(
        default=None,
        metadata={
            "help": "pip requirement of this package in the Space (default: the release on PyPI), as in "
            "'hf-orthossl[leaderboard] @ git+https://…'",
            "metavar": "REQUIREMENT",
        },
    )


@dataclass
class VerifyArguments:
    """The encoder that `verify` measures again, and the data."""

    model: str = field(metadata={"positional": True, "metavar": "MODEL", "help": "Hub id, optionally with @revision"})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id, folder or 'digits' (default: what the claims name)"}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    train_split: str | None = field(default=None, metadata={"help": "split to train probes on (default: train)"})
    test_split: str | None = field(default=None, metadata={"help": "split to score them on (default: as claimed)"})
    image_column: str | None = field(default=None, metadata={"help": "column of images (default: found by type)"})
    label_column: str | None = field(default=None, metadata={"help": "column of labels (default: found by type)"})
    device: str | None = field(default=None, metadata={"help": "such as cpu or cuda (default: cuda if there is a GPU)"})
    max_minutes: float = field(default=120.0, metadata={"help": "when to stop without a result"})
    output_dir: str = field(
        default=DEFAULT_BOARD, metadata={"help": "folder of the board; the result is added to its verified.json"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "add the result to this board's data set", "metavar": "USER/NAME"}
    )


def read(argv: list[str], prog: str = "orthossl leaderboard") -> tuple[str, Any]:
    """Return the action and its options.

    Raises:
        ValueError: The action or an option is unknown, or an option cannot be used.
        SystemExit: The help was asked for and is printed.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0)
    kinds = {"build": BuildArguments, "serve": ServeArguments, "deploy": DeployArguments, "verify": VerifyArguments}
    action = argv[0]
    if action not in kinds:
        raise ValueError(f"unknown action {action!r}: {suggest(action, ACTIONS)}")
    (args,), _ = parse(f"{prog} {action}", ACTIONS[action].capitalize() + ".", [kinds[action]], argv[1:])
    return action, args
