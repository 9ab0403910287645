"""Read COCO's JSON files beside folders of images, as the COCO data set, Roboflow and annotation tools lay them out."""

import json
import math
import mmap
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ...data.listing import split_kind
from ...messages import first_line

# Folders below the data set's in which JSON files and images are looked for.
_DEPTH = 3
# Files of COCO's that describe the same images without classes of boxes.
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_SHOWN = 3
_FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("string"),
        "image": datasets.Image(decode=False),
        "width": datasets.Value("int64"),
        "height": datasets.Value("int64"),
        "objects": {
            "id": datasets.List(datasets.Value("string")),
            "area": datasets.List(datasets.Value("float64")),
            "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
            "category": datasets.List(datasets.Value("string")),
            "iscrowd": datasets.List(datasets.Value("bool")),
        },
    }
)


@dataclass
class CocoSplits:
    """The splits that COCO's JSON files describe.

    Args:
        splits (`datasets.DatasetDict`): Images, undecoded, with their `objects`, by split.
        notes (`dict[str, list[str]]`): One sentence for each kind of entry that was left out, by split.
    """

    splits: datasets.DatasetDict
    notes: dict[str, list[str]]


def open_coco(root: Path) -> CocoSplits | None:
    """Open a folder in which COCO's JSON files describe images.

    Read are `instances_train2017.json` beside `train2017/`, also below `annotations/` and `images/`,
    `_annotations.coco.json` among the images, `train.json`, and any other JSON file with `images`, `annotations` and
    `categories`. Names of files, else those of their folders, say which split they describe. Categories are named by
    their id, marks of crowds are kept, and so are images without boxes. Only image files inside the folder are used.

    Args:
        root (`Path`): The folder.

    Returns:
        [`CocoSplits`] or `None`: `None` if there is no such file.

    Raises:
        ValueError: A file is not valid, two describe the same split, or none of the images of one exists.
    """
    files = [file for file in _json_files(root) if _may_be_coco(file)]
    found = {file: content for file in files if (content := _read(file)) is not None}
    if not found:
        return None
    by_split: dict[str, Path] = {}
    for file in found:
        split = _split_of(file, root)
        if split in by_split:
            raise ValueError(
                f"{by_split[split]} and {file} both describe the images of {split}: move one of them out of the data "
                "set, or give their names the splits, as in train.json and val.json"
            )
        by_split[split] = file
    order: list[str] = [split for split in ("train", "validation", "test") if split in by_split]
    order += [split for split in by_split if split not in order]
    splits = datasets.DatasetDict()
    notes: dict[str, list[str]] = {}
    for split in order:
        file = by_split[split]
        reader = _Reader(file, found[file], root, split)
        rows = reader.rows()
        if not rows:
            raise ValueError(
                f"none of the {len(found[file]['images']):,} images of {file} is in {root}{reader.examples()}: put "
                "them beside the file, or into a folder with the name of the split"
            )
        splits[split] = datasets.Dataset.from_list(rows, features=_FEATURES, split=split)
        notes[split] = reader.notes()
    return CocoSplits(splits, notes)


class _Reader:
    """Turn one JSON file into rows, and count what is left out.

    Args:
        file (`Path`): The file.
        content (`dict`): Its content.
        root (`Path`): The folder of the data set.
        split (`str`): The split that the file describes.
    """

    def __init__(self, file: Path, content: dict[str, Any], root: Path, split: str):
        self.file, self.content, self.split = file, content, split
        self.places = list(_places(file, root, split))
        self.missing: list[str] = []
        self.unsafe: list[str] = []
        self.counts: Counter[str] = Counter()

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per image that exists, in the order of the file."""
        names = {category["id"]: str(category["name"]) for category in self._entries("categories", "id", "name")}
        images = {}
        for image in self._entries("images", "id", "file_name"):
            if image["id"] in images:
                raise ValueError(f"{self.file}: two images have the id {image['id']!r}: give each its own")
            images[image["id"]] = image
        boxes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for entry in self._entries("annotations", "image_id", "category_id"):
            box = entry.get("bbox")
            if entry["image_id"] not in images:
                self.counts["of no image"] += 1
            elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                self.counts["not four numbers"] += 1
            else:
                boxes[entry["image_id"]].append(entry)
        rows = []
        for key, image in images.items():
            path = self._path(image["file_name"])
            if path is None:
                continue
            entries = boxes[key]
            rows.append(
                {
                    "image_id": str(key),
                    "image": {"bytes": None, "path": str(path)},
                    "width": _whole(image.get("width")),
                    "height": _whole(image.get("height")),
                    "objects": {
                        "id": [str(entry.get("id")) for entry in entries],
                        # The area of a crowd, and often of a mask, is not that of its box.
                        "area": [entry["area"] if _is_number(entry.get("area")) else None for entry in entries],
                        "bbox": [entry["bbox"] for entry in entries],
                        "category": [names.get(entry["category_id"]) for entry in entries],
                        "iscrowd": [bool(entry.get("iscrowd")) for entry in entries],
                    },
                }
            )
        return rows

    def notes(self) -> list[str]:
        """Return one sentence for each kind of entry that was left out."""
        notes = []
        if self.missing:
            notes.append(f"{len(self.missing):,} images of {self.file.name} are missing ({_some(self.missing)}).")
        if self.unsafe:
            notes.append(
                f"{len(self.unsafe):,} images of {self.file.name} have a name that leads out of the folder and were "
                f"left out ({_some(self.unsafe)})."
            )
        notes += [
            f"{count:,} boxes of {self.file.name} are {kind} and were left out." for kind, count in self.counts.items()
        ]
        return notes

    def examples(self) -> str:
        """Return a few names of images that are not there, for an error."""
        absent = self.missing + self.unsafe
        return f" ({_some(absent)})" if absent else ""

    def _entries(self, key: str, *needed: str) -> Iterator[dict[str, Any]]:
        for place, entry in enumerate(self.content[key]):
            if not isinstance(entry, dict) or any(name not in entry or not _is_key(entry[name]) for name in needed):
                raise ValueError(f"{self.file}: entry {place} of {key} must have {' and '.join(needed)}")
            yield entry

    def _path(self, name: Any) -> Path | None:
        parts = str(name).replace("\\", "/").split("/")
        if ".." in parts or parts[0].endswith(":") or not parts[0] or "\0" in str(name):
            self.unsafe.append(str(name))
            return None
        for place in self.places:
            path = place.joinpath(*parts)
            if path.is_file():
                return path
        self.missing.append(str(name))
        return None


def _json_files(root: Path) -> list[Path]:
    files = []
    for folder, subfolders, names in os.walk(root):
        inside = Path(folder).relative_to(root).parts
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".")) if len(inside) < _DEPTH else []
        files += [Path(folder, name) for name in sorted(names) if name.lower().endswith(".json")]
    # `_annotations.coco.json` of Roboflow begins with an underscore, hidden files with a dot.
    return [file for file in files if not file.name.startswith((".", *_OTHER_TASKS))]


def _may_be_coco(file: Path) -> bool:
    """Return whether a file, which may be large, contains the names of COCO's lists; it is not parsed."""
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(b'"%s"' % name) >= 0 for name in (b"images", b"annotations", b"categories"))


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({first_line(error)}): repair it, or move it away") from error
    lists = ("images", "annotations", "categories")
    is_coco = isinstance(content, dict) and all(isinstance(content.get(name), list) for name in lists)
    return content if is_coco else None


def _split_of(file: Path, root: Path) -> str:
    """Return the split in the name of a file, else in that of the nearest folder that names one, else "train"."""
    folders = file.parent.relative_to(root).parts
    names = (file.name.partition(".")[0].removeprefix("instances_"), *reversed(folders))
    return next((kind for name in names if (kind := split_kind(name, strict=False))), "train")


def _places(file: Path, root: Path, split: str) -> Iterator[Path]:
    """Yield the folders to which the names of images may be relative, the most likely first."""
    suffix = file.name.partition(".")[0].removeprefix("instances_")
    folders = [root]
    for depth in range(_DEPTH):
        folders += [
            path for folder in folders if len(folder.relative_to(root).parts) == depth for path in _inside(folder)
        ]
    kinds = {folder: {split_kind(part, strict=False) for part in folder.relative_to(root).parts} for folder in folders}
    named = [folder for folder in folders if folder.name == suffix]
    same = [folder for folder in folders if split in kinds[folder]]
    # Names of another split's images may be the same.
    neutral = [folder for folder in folders if not kinds[folder] - {None}]
    yield from dict.fromkeys([*named, *same, file.parent, *neutral])


def _inside(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_key(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _whole(value: Any) -> int | None:
    return int(value) if _is_number(value) and math.isfinite(value) and abs(value) < 2**53 else None
