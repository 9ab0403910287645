"""Read the options of `orthossl neighbours`."""

from dataclasses import dataclass, field

from ..parsing import parse
from .encoder import EncoderArguments

# The rows of a sheet: image libraries take no pictures of 65,536 pixels and more.
MOST_ROWS = 40
DESCRIPTION = (
    "Show which images of a data set are nearest to which, by the cosine similarity of an encoder's representations: "
    "as a sheet of pictures and as JSON, with duplicates and outliers of the data set. MODEL is a run folder, an "
    "encoder folder, a timm name or a Hub id."
)


@dataclass
class NeighboursArguments(EncoderArguments):
    """Options of `orthossl neighbours`; the help of each option describes it."""

    _argument_group_name = "neighbours"

    split: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "split, as in train+test (default: train)", "group": "data"},
    )
    query: list[str] | None = field(
        default=None, metadata={"metavar": "IMAGE", "help": "image files (default: some of the data set)"}
    )
    k: int = field(default=8, metadata={"help": "neighbours of each image"})
    shown: int = field(default=8, metadata={"help": "rows of a sheet of pictures"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    cache: str | None = field(default=None, metadata={"help": "folder of features, or none (default: in HF_HOME)"})
    output_dir: str = field(default="runs/neighbours", metadata={"metavar": "DIR", "help": "folder of sheets and JSON"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: a GPU if there is one)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("k", "shown", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if self.shown > MOST_ROWS:
            raise ValueError(f"shown is {self.shown}: a sheet has at most {MOST_ROWS} rows")


def read(argv: list[str], prog: str = "orthossl neighbours") -> tuple[NeighboursArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    (args,), _ = parse(prog, DESCRIPTION, [NeighboursArguments], argv)
    return (args,)
