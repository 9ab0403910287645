"""Read the options of `orthossl export`."""

from dataclasses import dataclass, field
from typing import Literal

from ..parsing import parse
from .encoder import EncoderArguments

DESCRIPTION = (
    "Write an encoder as a program that runs without its Python code: ONNX, TorchScript or torch.export. MODEL is a "
    "run folder, an encoder folder, a timm name or a Hub id. The batch is dynamic; the file is run on images and "
    "compared with the encoder before it takes its place. By what images become its input is written beside it."
)


@dataclass
class ExportArguments(EncoderArguments):
    """Options of `orthossl export`; the help of each option describes it."""

    _argument_group_name = "program"

    format: Literal["onnx", "torchscript", "torch.export"] = field(
        default="onnx", metadata={"help": "format of the program"}
    )
    tokens: bool = field(default=False, metadata={"help": "write patch tokens as a second output"})
    output_dir: str | None = field(
        default=None, metadata={"metavar": "DIR", "short": "o", "help": "folder to write, also -o"}
    )
    split: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "split (default: test, validation or train)", "group": "data"},
    )
    images: int = field(default=16, metadata={"help": "images that outputs are compared on", "group": "data"})


def read(argv: list[str], prog: str = "orthossl export") -> tuple[ExportArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or missing.
    """
    (args,), _ = parse(prog, DESCRIPTION, [ExportArguments], argv)
    if args.output_dir is None:
        raise ValueError("--output_dir is missing: pass the folder to write, as in -o programs/mine")
    if args.images < 3:
        raise ValueError(f"images is {args.images}: it must be at least 3, to compare a batch with a single image")
    return (args,)
