"""Find the image files in folders: which are images, which splits and classes the folders name, what is left out."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .opening import readable_formats


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Extensions of the formats that `decode_image` reads.
IMAGES = _words(
    ".png .jpg .jpeg .jpe .jfif .gif .bmp .dib .tif .tiff .webp .avif .ppm .pgm .pbm .pnm .jp2 .j2k .ico .tga .pcx .sgi"
)
# Extensions of HEIF, which Pillow reads with the package pillow-heif.
_HEIF = _words(".heic .heif .hif")
# Files of images and videos that are not read.
_UNSUPPORTED = _words(
    ".dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .psd .exr .hdr .dcm .nii .czi .svs .npz .h5 .svg .eps .pdf .mp4 .avi "
    ".mov .mkv .webm .jxl"
)
# Files of arrays, which are read where the number of channels is given.
_ARRAYS = _words(".npy")
_ARCHIVES = _words(".zip .gz .tgz .bz2 .xz .zst .7z .rar")
# Files that are known to be no images; every other file is recognized by its content.
_OTHER = (
    _words(
        ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .html .htm .log .py .ipynb .sh .pkl .pt .pth .bin .onnx "
        ".mat .parquet .pq .arrow .tar .db .ini .cfg .toml .lst .list .lock .safetensors .cache .doc .docx .xls .xlsx "
        ".pptx .css .js"
    )
    | _ARCHIVES
    | _UNSUPPORTED
    | _ARRAYS
    | _HEIF
)
# Formats without a clear signature, as which files of unknown names are not recognized.
_UNSIGNED = ("ICO", "TGA", "PCX", "SGI", "DIB")
# Files that `datasets` may read, if they rather than images make up a folder.
_TABLES = (".parquet", ".pq", ".arrow", ".tar", ".csv", ".json", ".jsonl", ".zip")
_SYSTEM = frozenset(("Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir", "lost+found"))
# Files by which a folder that this package wrote is recognized.
_OUTPUTS = frozenset(("spectra.json", "forecast.json", "history.jsonl", "unreadable_images.txt"))

# The split that a word in a folder's name stands for, and words that may accompany it.
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "valset", "dev"), "validation"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unlabel", "unsup", "unsupervised"), "unlabeled"),
}
_ACCOMPANYING = _words("image images img imgs data dataset set split folder files pics photos a b")
# The splits in the order in which they are listed, and those on which nothing is trained.
SPLITS = ("train", "validation", "test", "unlabeled")
HELD_OUT = ("test", "validation")
# Folders of images beside folders of annotations that are stored as images.
_IMAGE_FOLDERS = _words("images image imgs img jpegimages photos pictures input inputs leftimg8bit")
_ANNOTATION_FOLDERS = _words(
    "masks mask labels label annotations annotation gt groundtruth ground_truth segmentation segmentations depth "
    "segmentationclass segmentationobject gtfine gtcoarse target targets trimaps"
)
_DATES = re.compile(r"(19|20)\d\d([-_. ]?\d{1,2}){0,2}")
_CAMERAS = re.compile(r"DCIM|\d{3}[A-Z_]{5}", re.IGNORECASE)
_BUCKETS = re.compile(r"[0-9a-f]{1,3}", re.IGNORECASE)
# Beside class folders, up to this number (of at least 8 times as many) or share of loose images are strays.
_STRAYS, _STRAY_SHARE = 3, 0.01


class ImageFile(NamedTuple):
    """An image file: its path, its name below the data set's folder, and its class or `None`."""

    path: str
    name: str
    label: str | int | None = None


class Place(NamedTuple):
    """Place a file: its split, the parts of its path, and those parts without the split's folder."""

    split: str
    parts: tuple[str, ...]
    rest: tuple[str, ...]


@dataclass
class LeftOut:
    """Files that were seen and are not used, for one reason.

    Args:
        reason (`str`): The reason with its remedy, as in ".heic cannot be read: install pillow-heif".
        count (`int`): The number of files.
        names (`list[str]`): The first few names.
    """

    reason: str
    count: int = 0
    names: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        named = f": {', '.join(self.names)}" if 0 < len(self.names) == self.count <= 3 else ""
        if self.names and not named:
            named = f", such as {self.names[0]}"
        return f"{self.count:,} {self.reason}{named}"


class _Counts(dict[str, LeftOut]):
    """Count what is left out, by reason."""

    def add(self, reason: str, name: str | None = None) -> None:
        entry = self.setdefault(reason, LeftOut(reason))
        entry.count += 1
        if name is not None and len(entry.names) < 3:
            entry.names.append(name)


@dataclass
class Listing:
    """The image files of a data set by split, and what was left out.

    Args:
        splits (`dict[str, list[ImageFile]]`): The files of each split, in the order of their names.
        seen (`int`): The number of files seen, without hidden ones.
        left_out (`list[LeftOut]`): The files that are not used in any split.
        classes_from (`str`, *optional*): Where the classes come from, as in "folders"; `None` without classes.
        notes (`list[str]`): Further remarks on what was taken.
        missing (`list[str]`): The names of listed files that do not exist; they count as seen.
        tables (`list[str]`): The paths of tables and shards in the folders, which are not among the images.
    """

    splits: dict[str, list[ImageFile]]
    seen: int
    left_out: list[LeftOut]
    classes_from: str | None = None
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


def list_folders(roots: Sequence[Path], exclude: Iterable[Path] = (), arrays: bool = False) -> Listing:
    """List the images of one or several folders: flat, one folder per class, with folders of splits, or nested.

    Hidden and system files are not seen; links are followed; only regular files are used. Files are recognized by
    their extension, and those of an unknown or no extension by their content. Folders that this package wrote, and
    those excluded, are left out.

    - *Splits* are folders named `train`, `val`, `test`, `unlabeled` and the like (`train2017`, `images/train`,
      `coco_val2017`), at any depth. Images beside the folders of splits are left out, or belong to "train" if no
      folder has that name. A folder `train` beside folders that are no splits is a class if all of them hold images
      directly, in comparable numbers.
    - *Classes* are the first folders below the split (and below folders that all images share), if there are at least
      two, and their names are no dates, no hash prefixes and no camera's. Many folders with a single image each are no
      classes. A split whose images lie in no folders has no labels. Up to 3 images (or 1 %) beside the class folders
      are left out.

    Args:
        roots (`Sequence[Path]`): The folders; their splits and classes are united by name.
        exclude (`Iterable[Path]`): Folders to leave out, such as that of the run.
        arrays (`bool`, defaults to `False`): Whether NumPy files are images too.

    Raises:
        OSError: A folder cannot be read.
    """
    left_out, seen = _Counts(), 0
    tables: list[str] = []
    visited: set[tuple[int, int]] = set()
    excluded = {os.path.realpath(path) for path in exclude}
    splits: dict[str, list[ImageFile]] = {split: [] for split in SPLITS}
    classes_from, notes = None, []
    for root in roots:
        names, count = _walk(root, excluded, visited, left_out, tables, readable_extensions(arrays))
        seen += count
        places: list[Place] = []
        _divide([tuple(name.split("/")) for name in names], 0, None, (), places, left_out)
        files, from_folders, note = _classify(str(root), places, left_out)
        for split, members in files.items():
            splits[split] += members
        classes_from = "folders" if from_folders else classes_from
        notes += [note] if note and note not in notes else []
    used = {split: files for split, files in splits.items() if files}
    return Listing(used, seen, list(left_out.values()), classes_from, notes, tables=sorted(tables))


def readable_extensions(arrays: bool = False) -> frozenset[str]:
    """Return the extensions of image files that can be decoded with the installed packages, with NumPy's if asked."""
    extensions = IMAGES | _HEIF if find_spec("pillow_heif") else IMAGES
    return extensions | _ARRAYS if arrays else extensions


def split_kind(name: str, strict: bool = True) -> str | None:
    """Return the split that a name stands for: "train", "validation", "test", "unlabeled", or `None`.

    Args:
        name (`str`): The name of a folder or a split, such as "Train_images" or "val2017".
        strict (`bool`, defaults to `True`): Whether all other words must be usual ones (images, set, a year).
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    meant = [_SPLITS[word] for word in words if word in _SPLITS]
    if len(meant) != 1 or (strict and any(word not in _ACCOMPANYING and word not in _SPLITS for word in words)):
        return None
    return meant[0]


def is_image(path: str) -> bool:
    """Return whether a file's content begins as an image of a known format."""
    try:
        formats = [name for name in readable_formats() if name not in _UNSIGNED]
        with open(path, "rb") as file, Image.open(file, formats=formats):
            return True
    except Exception:  # for arbitrary bytes decoders raise arbitrary exceptions
        return False


# --- which files -----------------------------------------------------------------------------------------------------


def _walk(
    root: Path,
    excluded: set[str],
    visited: set[tuple[int, int]],
    left_out: _Counts,
    tables: list[str],
    extensions: frozenset[str],
) -> tuple[list[str], int]:
    """Return the sorted names of the image files below a folder, with "/", and the number of files seen.

    Folders in `visited` are skipped: a link to a parent folder would be followed forever, and folders that the user
    names may lie in each other.
    """
    images: list[str] = []
    seen = 0
    folders = [("", str(root))]
    while folders:
        prefix, folder = folders.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            if not prefix:
                raise
            left_out.add(f"not opened ({error.strerror})", prefix.rstrip("/"))
            continue
        entries = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _SYSTEM]
        if prefix and (os.path.realpath(folder) in excluded or _is_output(entries)):
            left_out.add("written by orthossl", prefix.rstrip("/"))
            continue
        entries.sort(key=lambda entry: entry.name)
        files: list[os.DirEntry[str]] = []
        below: list[tuple[str, str]] = []
        for entry in entries:
            if _is(entry.is_dir):
                below.append((f"{prefix}{entry.name}/", entry.path))
            else:
                files.append(entry)
        folders += reversed(below)
        for entry in files:
            name = prefix + entry.name
            seen += 1
            reason = _reason(entry, extensions)
            if reason is None:
                images.append(name)
            else:
                left_out.add(reason, None if reason.startswith(".") else _printable(name))
                if name.lower().endswith(_TABLES) and _is(entry.is_file):
                    tables.append(entry.path)
    return sorted(images), seen


def _reason(entry: os.DirEntry, extensions: frozenset[str]) -> str | None:
    """Return why a file is not used, or `None` for an image."""
    if not _is(entry.is_file):
        return "not regular (a broken link, pipe, socket or device)"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix not in extensions:
        if suffix in _HEIF:
            return f"{suffix} cannot be read: install pillow-heif"
        if suffix in _ARRAYS:
            return f"{suffix} not read: pass --channels with their number of channels"
        if suffix in _UNSUPPORTED:
            return f"{suffix} cannot be read: convert them to PNG or TIFF"
        if suffix in _ARCHIVES:
            return f"{suffix} not read: unpack it"
        if suffix in _OTHER or not is_image(entry.path):
            return f"{suffix} not read" if suffix else "of no image format"
    try:
        entry.path.encode()
    except UnicodeEncodeError:
        return "named in another encoding than UTF-8 (rename it)"
    return None


def _is(test: Callable[[], bool]) -> bool:
    """Return the outcome of a test of an entry; a link that leads to itself is neither a file nor a folder."""
    try:
        return test()
    except OSError:
        return False


def _is_output(entries: list[os.DirEntry]) -> bool:
    """Return whether this package wrote a folder: a run, its encoder, or the output of a command."""
    names = {entry.name for entry in entries}
    if _OUTPUTS & names:
        return True
    if "config.yaml" in names and "encoder" in names:
        return True
    # `results.json` of evaluate, beside which drawings of detections lie.
    return "results.json" in names and "detections" in names


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


# --- which splits ----------------------------------------------------------------------------------------------------


def _divide(
    files: list[tuple[str, ...]],
    depth: int,
    split: str | None,
    above: tuple[str, ...],
    places: list[Place],
    left_out: _Counts,
) -> None:
    """Assign each file to a split, by the folders from a depth on.

    Args:
        files: Paths that share their first `depth` parts.
        depth: The number of parts that were looked at.
        split: The split to which the files belong, if a folder above named it.
        above: The shared parts without the split's.
        places: The result.
        left_out: What is left out.
    """
    folders: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    loose = []
    for parts in files:
        if len(parts) > depth + 1:
            folders[parts[depth]].append(parts)
        else:
            loose.append(parts)
    if split is not None or not folders:
        places += [Place(split or "train", parts, above + parts[depth:]) for parts in files]
        return
    kinds = _split_folders(folders, depth)
    images = {name for name in folders if name.lower() in _IMAGE_FOLDERS}
    if kinds:
        beside = [name for name in folders if name not in kinds]
        # Without a folder of training images, everything that no folder names is for training.
        rest = None if "train" in kinds.values() else "train"
        for name, members in folders.items():
            if name in kinds:
                _divide(members, depth + 1, kinds[name], above, places, left_out)
            elif rest:
                _divide(members, depth + 1, rest, (*above, name), places, left_out)
        if rest:
            places += [Place(rest, parts, above + parts[depth:]) for parts in loose]
        else:
            where = f"beside the folders {', '.join(sorted(kinds))}"
            for parts in [*loose, *(parts for name in beside for parts in folders[name])]:
                left_out.add(where, "/".join(parts))
        return
    if (
        images
        and len(images) < len(folders)
        and all(name.lower() in _ANNOTATION_FOLDERS for name in folders if name not in images)
    ):
        for name in [name for name in folders if name not in images]:
            for parts in folders.pop(name):
                left_out.add(f"in folders of annotations beside {', '.join(sorted(images))}", "/".join(parts))
    for name, members in folders.items():
        _divide(members, depth + 1, None, (*above, name), places, left_out)
    places += [Place("train", parts, above + parts[depth:]) for parts in loose]


def _split_folders(folders: dict[str, list[tuple[str, ...]]], depth: int) -> dict[str, str]:
    """Return the split of each folder at one level that stands for one; empty if the level is one of classes."""
    kinds = {name: kind for name in folders if (kind := split_kind(name))}
    if not kinds:
        loosely = {name: kind for name in folders if (kind := split_kind(name, strict=False))}
        # Names such as ILSVRC2012_img_val count if all folders of the level have one, and they differ.
        return loosely if len(loosely) == len(folders) and len(set(loosely.values())) > 1 else {}
    others = [name for name in folders if name not in kinds]
    if set(kinds.values()) == {"train"} and others:
        # Classes of vehicles may include trains: all folders then hold images directly, in comparable numbers.
        direct = {name: sum(len(parts) == depth + 2 for parts in members) for name, members in folders.items()}
        if min(direct.values()) >= max(1, 0.1 * max(direct.values())):
            return {}
    return kinds


# --- which classes ---------------------------------------------------------------------------------------------------


def _classify(root: str, places: list[Place], left_out: _Counts) -> tuple[dict[str, list[ImageFile]], bool, str | None]:
    """Return the files of each split of a folder, whether its folders are classes, and if not, why."""
    divided: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        divided[place.split].append(place)
    depth = _shared_depth([place.rest for place in places])
    classes: dict[str, set[str]] = {}
    for split, files in divided.items():
        inside = [place.rest[depth] for place in files if len(place.rest) > depth + 1]
        few = len(files) - len(inside) <= _strays(len(files))
        if split != "unlabeled" and inside and few:
            classes[split] = set(inside)
    # A single folder is a class only if another split has several, and its name is not one of all images.
    several = any(len(names) > 1 for names in classes.values())
    classes = {
        split: names
        for split, names in classes.items()
        if len(names) > 1 or (several and not any(name.lower() in _IMAGE_FOLDERS for name in names))
    }
    together = set().union(*classes.values())
    labelled_images = sum(len(place.rest) > depth + 1 for split in classes for place in divided[split])
    reason = _no_classes(together, labelled_images)
    classes = {} if reason else classes
    splits: dict[str, list[ImageFile]] = {}
    for split, files in divided.items():
        splits[split] = []
        for place in files:
            path, name = f"{root}{os.sep}{os.sep.join(place.parts)}", "/".join(place.parts)
            if split not in classes:
                splits[split].append(ImageFile(path, name))
            elif len(place.rest) > depth + 1:
                splits[split].append(ImageFile(path, name, place.rest[depth]))
            else:
                left_out.add("beside the class folders", name)
    return splits, bool(classes), reason if together else None


def _shared_depth(paths: list[tuple[str, ...]]) -> int:
    """Return the number of folders that all paths share, apart from a few loose files above them."""
    depth = 0
    while True:
        names = Counter(path[depth] for path in paths if len(path) > depth + 1)
        loose = sum(len(path) <= depth + 1 for path in paths)
        if len(names) != 1 or loose > _strays(len(paths)):
            return depth
        # A single folder that holds images directly is the end: it may be the only class.
        if all(len(path) <= depth + 2 for path in paths):
            return depth
        depth += 1


def _strays(images: int) -> float:
    """Return how many of a number of images may lie beside the others without a meaning."""
    return max(min(_STRAYS, images // 8), _STRAY_SHARE * images)


def _no_classes(names: set[str], images: int) -> str | None:
    """Return why folders are no classes, or `None`."""
    if len(names) < 2:
        return "no folders of classes"
    if all(_DATES.fullmatch(name) for name in names):
        return "folders named by dates are no classes"
    if all(_CAMERAS.fullmatch(name) for name in names):
        return "a camera's folders are no classes"
    if len(names) >= 16 and all(_BUCKETS.fullmatch(name) for name in names) and not all(n.isdecimal() for n in names):
        return "folders named by hash prefixes are no classes"
    if len(names) >= 16 and images < 2 * len(names):
        return f"{len(names):,} folders with {images:,} images are no classes"
    return None
