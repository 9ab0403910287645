"""Read the options of `orthossl report`."""

from dataclasses import dataclass, field

from ..parsing import parse

DESCRIPTION = (
    "Write one HTML page about a run: whether it is healthy or has collapsed, where and what to try, curves, spectra, "
    "nearest neighbours, a map, views and settings. It needs no network and no scripts. Every run writes it at its "
    "end; of a run under way it shows what there is so far."
)


@dataclass
class ReportArguments:
    """Options of `orthossl report`."""

    run: str = field(metadata={"positional": True, "help": "folder of a run, as in runs/default"})
    output: str | None = field(
        default=None,
        metadata={"metavar": "FILE", "short": "o", "help": "file to write (default: report.html in RUN)"},
    )
    images: int = field(default=300, metadata={"help": "images of map and neighbours; 0 for no pictures"})

    def __post_init__(self) -> None:
        if self.images < 0 or self.images == 1:
            raise ValueError(f"images is {self.images}: it must be 2 or more, or 0 for no pictures")


def read(argv: list[str], prog: str = "orthossl report") -> tuple[ReportArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    (args,), _ = parse(prog, DESCRIPTION, [ReportArguments], argv)
    return (args,)
