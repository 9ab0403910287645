"""Options of `orthossl embed`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...data.options import ImageOptions
from ..parsing import parse
from . import check_seed

DESCRIPTION = (
    "Write the vectors of all images of a data set to one file: a row per image with path, label if there is one, and "
    "vector. MODEL is a run folder, an encoder folder, a timm name or a Hub id. A command that was killed goes on when "
    "it is repeated; accelerate launch and torchrun share the images out among processes."
)
FORMATS = (".parquet", ".npz", ".npy")


@dataclass
class EmbedArguments(ImageOptions):
    """Options of `orthossl embed`; the help of each option describes it."""

    _argument_group_name = "vectors"

    model: str = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"},
    )
    split: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "split, as in train+test (default: train)", "group": "data"},
    )
    output: str = field(
        default="features.parquet", metadata={"metavar": "FILE", "help": "new file: .parquet, .npz or .npy"}
    )
    layer: str = field(default="representation", metadata={"metavar": "NAME", "help": "stage of the encoder"})
    tokens: Literal["patch"] | None = field(default=None, metadata={"help": "a vector per patch, or position of a map"})
    image_size: int | None = field(default=None, metadata={"help": "side of the input (default: the model's)"})
    untrained: bool = field(default=False, metadata={"help": "use random weights, for comparison"})
    seed: int = field(default=0, metadata={"help": "seed of untrained weights"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: a GPU if there is one)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed, self.untrained)
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
