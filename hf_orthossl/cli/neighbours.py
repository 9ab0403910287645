"""`orthossl neighbours`: show nearest images, duplicates and outliers of a data set, as sheets of pictures and JSON."""

import json
from pathlib import Path

from ..data import ImageSource
from ..distributed.collectives import on_main
from ..distributed.environment import is_main_process
from ..distributed.launch import init_processes
from ..evaluation.features import FeatureCache
from ..files import replace_file, replacing_files, require_writable
from ..locks import locked
from ..retrieval import Neighbours, draw_duplicates, draw_neighbours, draw_outliers, find_neighbours
from ..spectra.figures import check_figures
from .inputs import open_encoder, open_source
from .options.neighbours import NeighboursArguments

# What the command writes, in the order in which it is named.
FILES = ("neighbours.png", "duplicates.png", "outliers.png", "neighbours.json")


def main(args: NeighboursArguments) -> None:
    """Run the command.

    Args:
        args ([`NeighboursArguments`]): The options.
    """
    init_processes(args.device)
    with locked(args.output_dir):
        show(args)


def show(args: NeighboursArguments) -> None:
    """Find, draw and write everything, in a folder that no other command uses."""
    folder = Path(args.output_dir)
    on_main(lambda: require_writable(folder, FILES))
    check_figures()
    encoder = open_encoder(args.model, args)
    source = open_source(encoder, args, args.split, exclude=[folder])
    found = find_neighbours(
        encoder,
        source,
        model=f"{args.model} (untrained)" if args.untrained else args.model,
        queries=args.query or (),
        k=args.k,
        shown=args.shown,
        cache=FeatureCache(None if args.cache == "none" else args.cache, enabled=args.cache != "none"),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        progress="images",
    )
    if is_main_process():
        written = write(found, source, encoder.image_size, folder, args.shown)
        print("\n".join([*told(found), f"results  {folder} ({', '.join(written)})"]))


def write(found: Neighbours, source: ImageSource, image_size: int, folder: Path, shown: int) -> list[str]:
    """Write JSON and sheets, and return their names; sheets of an earlier run that are not drawn again are removed.

    Args:
        found ([`Neighbours`]): What was found.
        source ([`ImageSource`]): The data set.
        image_size (`int`): The side of the encoder's input.
        folder (`Path`): The folder.
        shown (`int`): Rows of a sheet.
    """
    with replacing_files(folder) as unfinished:
        replace_file(unfinished / "neighbours.json", json.dumps(found.to_json(), indent=2) + "\n")
        if found.queries:
            draw_neighbours(found, source, image_size, unfinished / "neighbours.png")
        if found.duplicates:
            draw_duplicates(found, source, image_size, unfinished / "duplicates.png", shown)
        if found.outliers:
            draw_outliers(found, source, image_size, unfinished / "outliers.png", shown)
        written = [name for name in FILES if (unfinished / name).exists()]
    for name in set(FILES) - set(written):
        (folder / name).unlink(missing_ok=True)
    return written


def told(found: Neighbours) -> list[str]:
    """Return lines that say what was found."""
    lines = [f"Note: {note}" for note in found.notes]
    if found.collapsed:
        return lines
    k, queries = found.about["k"], len(found.queries)
    asked = "1 image" if queries == 1 else f"{queries} images"
    nearest = sum(query.neighbours[0].similarity for query in found.queries) / queries
    lines.append(f"queries  {asked}, {k} neighbours each; the nearest has a similarity of {nearest:.3f} on average")
    if found.agreement is not None:
        lines[-1] += f"; {found.agreement:.0%} of the neighbours have the query's class"
    images = sum(len(group.images) for group in found.duplicates)
    exact = sum(group.kind == "exact" for group in found.duplicates)
    differ = sum(group.disagrees for group in found.duplicates)
    if images:
        groups = len(found.duplicates)
        lines.append(
            f"copies   {images:,} images in {groups:,} group{'s' if groups > 1 else ''}: {exact:,} of equal pixels, "
            f"{groups - exact:,} of nearly equal ones" + (f"; {differ:,} with different classes" if differ else "")
        )
    else:
        lines.append("copies   no duplicates found")
    far = found.outliers[0]
    lines.append(f"outlier  {far.path}, at a mean distance of {far.distance:.3f} from its {k} nearest images")
    return lines
