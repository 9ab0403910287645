"""Files that a reader sees old or new, never half written."""

from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all; raises an OSError where that is not possible."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
