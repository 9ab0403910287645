"""Files that outlive a kill or a power cut, and the manifest that tells whether a checkpoint is whole."""

import hashlib
import json
import os
from pathlib import Path

from ..files import replace_file, sync_folder

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Writes the manifest, size and SHA-256 of every file of a checkpoint, and forces all of it to the disk.

    The manifest comes last: a checkpoint that has it was complete when it was sealed.

    Args:
        folder (`Path`): The checkpoint, with all processes' files in it.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = {"size": file.tell(), "sha256": digest}
            os.fsync(file.fileno())
    replace_file(folder / MANIFEST, json.dumps({"files": files}, indent=1), durable=True)
    for directory in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(directory)


def damage(folder: Path, *, thorough: bool = True) -> str | None:
    """What is wrong with a checkpoint, in a few words; `None` if every file is as it was when sealed.

    Args:
        folder (`Path`): The checkpoint.
        thorough (`bool`, defaults to `True`): Whether to read every file for its checksum; sizes are always compared.
    """
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"].items()
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, (size, checksum) in expected.items():
        try:
            with (folder / name).open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    return f"{name}: {found} bytes instead of {size}"
                if thorough and hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                    return f"{name}: checksum differs"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None
