"""`orthossl embed`: write the vectors of all images of a data set to one file."""

from pathlib import Path

from ..data import load_source
from ..distributed.collectives import on_main
from ..distributed.launch import init_processes
from ..encoders.channels import common_channels, match_channels
from ..messages import readable_size
from ..retrieval import embed_to_file
from ..retrieval.embedding_file import require_new
from .inputs import open_encoder
from .options.embed import EmbedArguments


def main(args: EmbedArguments) -> None:
    """Run the command.

    Args:
        args ([`EmbedArguments`]): The options.
    """
    init_processes(args.device)
    # First, so that an output that exists costs no download.
    on_main(lambda: require_new(Path(args.output)))
    encoder = open_encoder(args.model, args)
    reading = args.reading() | {"channels": args.channels or common_channels({args.model: encoder})}
    source = load_source(args.location, split=args.split, **reading)
    print(f"data     {source.describe()}")
    if measured_by := match_channels(encoder, source):
        print(f"pixels   {measured_by}")
    written = embed_to_file(
        encoder,
        source,
        args.output,
        model=args.model,
        layer=args.layer,
        tokens=args.tokens,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        progress=True,
        say=print,
    )
    for note in written.notes:
        print(f"Note: {note}")
    if written.computed:
        print(f"speed    {written.computed / written.seconds:,.0f} images/s ({written.seconds:,.0f} s)")
    size = readable_size(written.path.stat().st_size)
    print(f"vectors  {written.path} ({written.images:,} rows of {'×'.join(map(str, written.shape))} numbers, {size})")
