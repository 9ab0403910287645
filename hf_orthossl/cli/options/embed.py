"""Read the options of `orthossl embed`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..parsing import parse
from .encoder import EncoderArguments

DESCRIPTION = (
    "Write the vectors of all images of a data set to one file: a row per image with path, label if there is one, and "
    "vector. MODEL is a run folder, an encoder folder, a timm name or a Hub id. A command that was killed goes on when "
    "it is repeated; accelerate launch and torchrun share the images out among processes."
)
FORMATS = (".parquet", ".npz", ".npy")


@dataclass
class EmbedArguments(EncoderArguments):
    """Options of `orthossl embed`; the help of each option describes it."""

    _argument_group_name = "vectors"

    split: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "split, as in train+test (default: train)", "group": "data"},
    )
    output: str = field(
        default="features.parquet", metadata={"metavar": "FILE", "help": "new file: .parquet, .npz or .npy"}
    )
    layer: str = field(default="representation", metadata={"metavar": "NAME", "help": "stage of the encoder"})
    tokens: Literal["patch"] | None = field(default=None, metadata={"help": "a vector per patch, or position of a map"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: a GPU if there is one)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.output).suffix.lower() not in FORMATS:
            raise ValueError(f"output is {self.output!r}: its name must end in {', '.join(FORMATS)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: it must be 1 or more")


def read(argv: list[str], prog: str = "orthossl embed") -> tuple[EmbedArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    (args,), _ = parse(prog, DESCRIPTION, [EmbedArguments], argv)
    return (args,)
