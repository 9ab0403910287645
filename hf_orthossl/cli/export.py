"""`orthossl export`: write an encoder as a program that runs without this package."""

from pathlib import Path

import torch

from ..data import ImageDataset
from ..data.unreadable import Unreadable, check_unreadable, left_out_note
from ..encoders import load_encoder
from ..encoders.channels import match_channels
from ..encoders.description import PROCESSOR
from ..encoders.embedding import normalized_batches
from ..encoders.programs import RECORD, TOLERANCE, ProgramExport, check_format, export_program
from ..files import require_writable
from ..messages import readable_size
from .options.export import ExportArguments
from .spectra import open_images, spread


def main(args: ExportArguments) -> None:
    """Write a program, compare it with the encoder on images, and say what it takes and returns."""
    folder = Path(str(args.output_dir))
    check_format(args.format)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir {folder} exists and is not an empty folder: pass another")
    require_writable(folder, [RECORD])
    torch.manual_seed(0)
    encoder = load_encoder(
        args.model, pretrained=not args.untrained, image_size=args.image_size, channels=args.channels
    ).eval()
    source = open_images(args, None if encoder.channels == 3 else encoder.channels)
    print(f"data     {source.describe()}")
    if measured_by := match_channels(encoder, source):
        print(f"pixels   {measured_by}")
    rows = spread(source.num_rows, args.images)
    dataset = ImageDataset(source, image_size=encoder.image_size, indices=rows, unreadable="omit")
    unreadable: list[Unreadable] = []
    batches = [batch["pixel_values"] for batch in normalized_batches(encoder, dataset, unreadable=unreadable)]
    check_unreadable(unreadable, len(rows), source.max_unreadable)
    for note in left_out_note(unreadable, len(rows), source.split):
        print(f"note     {note}")
    print(report(export_program(encoder, folder, torch.cat(batches), format=args.format, tokens=args.tokens)))


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
