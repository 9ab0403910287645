"""Options of `orthossl publish`."""

from dataclasses import dataclass, field

from ..parsing import parse

DESCRIPTION = (
    "Publish the encoder of a run on the Hugging Face Hub, with card and spectra, in one commit. It needs an access "
    "token with write permission: run hf auth login once, or set HF_TOKEN."
)


@dataclass
class PublishArguments:
    """Options of `orthossl publish`."""

    run: str = field(metadata={"positional": True, "help": "folder of a run, or its encoder folder"})
    repo_id: str | None = field(default=None, metadata={"help": "repository to publish to", "metavar": "USER/NAME"})
    private: bool = field(default=False, metadata={"help": "make a new repository private"})
    revision: str | None = field(default=None, metadata={"help": "branch to commit to (default: main)"})
    license: str | None = field(default=None, metadata={"help": "licence to state in the card, such as apache-2.0"})
    dry_run: bool = field(
        default=False, metadata={"help": "list the files and show the card, without sending anything"}
    )


def read(argv: list[str], prog: str = "orthossl publish") -> tuple[PublishArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown, or the repository is missing.
    """
    (args,), _ = parse(prog, DESCRIPTION, [PublishArguments], argv)
    if args.repo_id is None:
        raise ValueError("--repo_id is missing: pass one of the form user/name")
    return (args,)
