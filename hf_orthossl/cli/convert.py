"""`orthossl convert`: make an encoder folder of a checkpoint of another project."""

from pathlib import Path

from ..encoders import export_encoder, load_encoder
from ..encoders.converting import Conversion, load_checkpoint
from ..files import require_writable
from .options.convert import ConvertArguments


def main(args: ConvertArguments) -> None:
    """Convert a checkpoint, and say what was taken of it and what was left."""
    folder, checkpoint = Path(str(args.output_dir)), Path(args.checkpoint)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir {folder} exists and is not an empty folder: pass another")
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint}: there is no such file")
    require_writable(folder, ["config.json"])
    encoder = load_encoder(str(args.backbone), image_size=args.image_size, **args.backbone_config or {})
    conversion = load_checkpoint(encoder, checkpoint, key=args.key, prefix=args.prefix)
    export_encoder(encoder, folder)
    print(report(conversion))
    print(f"encoder   {folder}: start from it with orthossl pretrain --pretrained {folder}")


def report(conversion: Conversion) -> str:
    """Return lines that say what was taken of a checkpoint, what fits as well, and what was left out."""
    taken = conversion.taken
    place = repr(taken.key) if taken.key else "the whole file"
    lines = [f"taken     {len(taken.names)} tensors of {place} with the prefix {taken.prefix!r}"]
    if conversion.left_out:
        parts = ", ".join(f"{part} ({count})" for part, count in conversion.left_out.items())
        lines.append(f"left out  {sum(conversion.left_out.values())} tensors: {parts}")
    lines += [f"fits too  {fit.describe()}" for fit in conversion.others]
    return "\n".join(lines)
