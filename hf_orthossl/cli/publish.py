"""`orthossl publish`: publish the encoder of a run on the Hub, or show what would be published."""

from pathlib import Path

from ..hub.publish import Publication, publish_encoder
from ..messages import readable_size
from .options.publish import PublishArguments


def main(args: PublishArguments) -> None:
    """Publish an encoder, or with `--dry_run` show what would be published."""
    assert args.repo_id is not None
    publication = publish_encoder(
        encoder_folder(args.run),
        args.repo_id,
        private=args.private or None,
        revision=args.revision,
        license=args.license,
        dry_run=args.dry_run,
    )
    print(file_table(publication))
    if publication.note and args.dry_run:
        print(publication.note)
    if args.dry_run:
        print(f"\nREADME.md\n\n{publication.card}")
        print(f"\nNothing was sent. Without --dry_run these files go to {publication.repo_id} in one commit.")
    else:
        print(published(publication))


def encoder_folder(run: str) -> Path:
    """Return the encoder folder of a run, or the folder itself if it is an encoder folder.

    Raises:
        FileNotFoundError: The folder does not exist, or contains no encoder.
    """
    folder = Path(run)
    for candidate in (folder / "encoder", folder):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.is_dir():
        raise FileNotFoundError(f"{run}: no such folder; pass a run of orthossl pretrain, as in runs/default")
    raise FileNotFoundError(f"{run} has no encoder: pass a finished run of orthossl pretrain, or its encoder folder")


def file_table(publication: Publication) -> str:
    """Return the published files and their sizes, one per line."""
    width = max(map(len, publication.files))
    total = sum(publication.files.values())
    lines = [f"  {path:<{width}}  {readable_size(size):>9}" for path, size in publication.files.items()]
    return "\n".join([f"{len(lines)} files, {readable_size(total)}", *lines])


def published(publication: Publication) -> str:
    """Return the lines that state where an encoder was published and how to load it."""
    noted = [publication.note] if publication.note else []
    return "\n".join([*noted, f"published  {publication.url}", *(f"  {line}" for line in publication.loading)])
