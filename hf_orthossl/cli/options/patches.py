"""Read the options of `orthossl patches`."""

from dataclasses import dataclass, field
from pathlib import Path

from ..parsing import parse
from .encoder import EncoderArguments

DESCRIPTION = (
    "Draw images beside what an encoder makes of their places: the first three principal components of patch tokens, "
    "or of the last feature map, as colours, and the attention of a vision transformer's last block. MODEL is a run "
    "folder, an encoder folder, a timm name or a Hub id."
)
# What matplotlib writes without further packages.
FORMATS = (".png", ".pdf", ".svg", ".jpg")


@dataclass
class PatchesArguments(EncoderArguments):
    """Options of `orthossl patches`; the help of each option describes it."""

    _argument_group_name = "sheet"

    output: str = field(
        default="patches.png", metadata={"metavar": "FILE", "short": "o", "help": "new file: .png, .pdf, .svg or .jpg"}
    )
    images: int = field(default=6, metadata={"help": "images, evenly spread over the split", "group": "data"})
    split: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "split (default: test, validation or train)", "group": "data"},
    )
    heads: bool = field(default=False, metadata={"help": "draw each head's attention, not their mean"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: a GPU if there is one)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.output).suffix.lower() not in FORMATS:
            raise ValueError(f"output is {self.output!r}: its name must end in {', '.join(FORMATS)}")
        if not 1 <= self.images <= 64:
            raise ValueError(f"images is {self.images}: a sheet has 1 to 64 of them")


def read(argv: list[str], prog: str = "orthossl patches") -> tuple[PatchesArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    (args,), _ = parse(prog, DESCRIPTION, [PatchesArguments], argv)
    return (args,)
