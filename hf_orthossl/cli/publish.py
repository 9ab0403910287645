"""`orthossl publish`: publish the encoder of a run on the Hub, or show what would be published."""

from dataclasses import dataclass, field
from pathlib import Path

from ..hub.publish import Publication, publish_encoder
from .parsing import parse

DESCRIPTION = (
    "Publish the encoder of a run on the Hugging Face Hub, with card and spectra, in one commit. It needs an access "
    "token with write permission: run hf auth login once, or set HF_TOKEN."
)


@dataclass
class PublishArguments:
    """Options of `orthossl publish`."""

    run: str = field(metadata={"positional": True, "help": "folder of a run, or its encoder folder"})
    repo_id: str | None = field(default=None, metadata={"help": "repository to publish to", "metavar": "USER/NAME"})
    private: bool = field(default=False, metadata={"help": "make a new repository private"})
    revision: str | None = field(default=None, metadata={"help": "branch to commit to (default: main)"})
    license: str | None = field(default=None, metadata={"help": "licence to state in the card, such as apache-2.0"})
    dry_run: bool = field(
        default=False, metadata={"help": "list the files and show the card, without sending anything"}
    )


def main(argv: list[str]) -> None:
    """Publish an encoder, or with `--dry_run` show what would be published."""
    (args,), _ = parse("orthossl publish", DESCRIPTION, [PublishArguments], argv)
    if args.repo_id is None:
        raise ValueError("--repo_id is missing: pass one of the form user/name")
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
    lines = [f"  {path:<{width}}  {_readable(size):>9}" for path, size in publication.files.items()]
    return "\n".join([f"{len(lines)} files, {_readable(total)}", *lines])


def published(publication: Publication) -> str:
    """Return the lines that state where an encoder was published and how to load it."""
    noted = [publication.note] if publication.note else []
    return "\n".join([*noted, f"published  {publication.url}", *(f"  {line}" for line in publication.loading)])


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
