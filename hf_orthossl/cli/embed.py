"""`orthossl embed`: write the vectors of all images of a data set to one file."""

from pathlib import Path

from ..distributed.collectives import on_main
from ..distributed.launch import init_processes
from ..messages import readable_size
from ..retrieval import embed_to_file
from ..retrieval.embedding_file import require_new
from .inputs import open_encoder, open_source
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
    source = open_source(encoder, args, args.split)
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
