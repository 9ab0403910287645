"""Options of `orthossl convert`."""

from dataclasses import dataclass, field

from ..parsing import parse

DESCRIPTION = (
    "Make an encoder folder of a checkpoint of another project (.pth, .pt, .bin, .ckpt, .safetensors), to start from "
    "with --pretrained or to evaluate. Code in the file is never run."
)


@dataclass
class ConvertArguments:
    """Options of `orthossl convert`."""

    checkpoint: str = field(metadata={"positional": True, "help": "file of weights"})
    backbone: str | None = field(default=None, metadata={"metavar": "NAME", "help": "timm name, Hub id or folder"})
    output_dir: str | None = field(
        default=None, metadata={"metavar": "DIR", "short": "o", "help": "folder to write, also -o"}
    )
    image_size: int | None = field(default=None, metadata={"metavar": "PX", "help": "side that it was trained with"})
    backbone_config: dict | None = field(default=None, metadata={"help": "for the backbone, as in patch_size=4"})
    key: str | None = field(default=None, metadata={"metavar": "NAME", "help": "mapping to take, as in teacher"})
    prefix: str | None = field(default=None, metadata={"help": "before the names, as in module.backbone."})


def read(argv: list[str], prog: str = "orthossl convert") -> tuple[ConvertArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or missing.
    """
    (args,), _ = parse(prog, DESCRIPTION, [ConvertArguments], argv)
    if args.backbone is None:
        raise ValueError("--backbone is missing: pass the architecture of the checkpoint, as in --backbone resnet50")
    if args.output_dir is None:
        raise ValueError("--output_dir is missing: pass the folder to write, as in -o encoders/mine")
    return (args,)
