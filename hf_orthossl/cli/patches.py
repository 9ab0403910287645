"""`orthossl patches`: draw what an encoder makes of the places in images."""

from pathlib import Path

from ..evaluation.patch_pictures import describe_components, draw_patches
from ..files import require_writable
from ..spectra.figures import check_figures
from .inputs import open_encoder, sample_images
from .options.patches import PatchesArguments


def main(args: PatchesArguments) -> None:
    """Draw a sheet of images, components of their patches and attention, and say what it shows."""
    path = Path(args.output)
    if path.exists():
        raise ValueError(f"output {path} exists: pass another file")
    require_writable(path.parent, [path.name])
    check_figures()
    encoder = open_encoder(args.model, args)
    images = sample_images(encoder, args, args.split, args.images)
    sheet = draw_patches(encoder, images, path, heads=args.heads)
    rows, columns = sheet.components.colours.shape[1:3]
    print(f"places   {rows} × {columns} of each image. {describe_components(sheet.components)}")
    print(f"note     no attention: {sheet.note}" if sheet.note else f"heads    {sheet.heads} of the last block")
    print(f"sheet    {sheet.path}")
