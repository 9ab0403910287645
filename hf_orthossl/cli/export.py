"""`orthossl export`: write an encoder as a program that runs without this package."""

from pathlib import Path

import torch

from ..encoders import load_encoder
from ..encoders.description import PROCESSOR
from ..encoders.programs import RECORD, TOLERANCE, ProgramExport, check_format, export_program
from ..files import require_writable
from ..messages import readable_size
from .inputs import sample_images
from .options.export import ExportArguments


def main(args: ExportArguments) -> None:
    """Write a program, compare it with the encoder on images, and say what it takes and returns."""
    folder = Path(str(args.output_dir))
    check_format(args.format)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir {folder} exists and is not an empty folder: pass another")
    require_writable(folder, [RECORD])
    torch.manual_seed(args.seed)
    encoder = load_encoder(
        args.model, pretrained=not args.untrained, image_size=args.image_size, channels=args.channels
    ).eval()
    images = sample_images(encoder, args, args.split, args.images)
    print(report(export_program(encoder, folder, images, format=args.format, tokens=args.tokens)))


def report(export: ProgramExport) -> str:
    """Return lines that say what was written, and how near its outputs are to the encoder's."""
    size = sum(file.stat().st_size for file in export.folder.iterdir() if file.name.startswith(export.file.name))
    near = ", ".join(f"{name} {difference:.1e}" for name, difference in export.differences.items())
    lines = [
        f"program  {export.file}, {readable_size(size)}",
        f"parity   {near} from the encoder on {export.images} images, in a batch and alone (at most {TOLERANCE:g})",
        f"input    images (batch, {', '.join(map(str, export.size))}), float32, made by {PROCESSOR}",
    ]
    for name, shape in export.outputs.items():
        places = f", {export.grid[0]} rows of {export.grid[1]}" if export.grid and name == "tokens" else ""
        lines.append(f"output   {name} ({', '.join(map(str, shape))}){places}")
    return "\n".join(lines)
