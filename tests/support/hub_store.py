"""The repositories behind `local_hub.py`: commits, branches, files by content, and what the Hub's API says of them."""

import datetime
import hashlib
import json
import math
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".parquet", ".arrow", ".npz", ".png", ".jpg", ".zip")
POINTER_SIZE = 134
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class HubError(Exception):
    """An answer other than 2xx, in the Hub's form."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class File:
    size: int
    sha256: str
    git_oid: str
    lfs: bool

    @property
    def oid(self) -> str:
        """What ETags and preupload answers carry."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]
    parent: "Commit | None" = None


@dataclass
class Repo:
    kind: str
    id: str
    private: bool
    head: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    downloads: int = 0
    likes: int = 0

    def commit(self, revision: str) -> Commit:
        found = self.head.get(revision) or self.tags.get(revision)
        if found:
            return found
        for tip in self.head.values():
            for commit in history(tip):
                if len(revision) >= 7 and commit.oid.startswith(revision):
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def history(commit: Commit | None):
    while commit:
        yield commit
        commit = commit.parent


class Store:
    """All repositories; contents lie in a folder under their SHA-256, once each.

    Args:
        folder (`Path`): Where to keep contents.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lock = threading.RLock()
        # What a listing asks of every repository, by the content that it follows from.
        self.cards: dict[str, dict] = {}
        self.tensors: dict[str, int] = {}

    def create(self, kind: str, repo_id: str, author: str, private: bool = False) -> Repo:
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise HubError(409, f"You already created this {kind} repo")
            repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
            attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
            self.commit(repo, "main", "initial commit", author, {".gitattributes": self.put(attributes.encode())})
            return repo

    def put(self, content: bytes, lfs: bool = False) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.folder / sha256
        if not path.exists():
            path.write_bytes(content)
        # The blob of an LFS file is its pointer.
        blob = content
        if lfs:
            blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        return File(len(content), sha256, hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest(), lfs)

    def read(self, file: File) -> bytes:
        return (self.folder / file.sha256).read_bytes()

    def commit(
        self,
        repo: Repo,
        branch: str,
        title: str,
        author: str,
        added: dict[str, File],
        deleted: tuple[str, ...] = (),
        parent: str | None = None,
        message: str = "",
    ) -> Commit:
        with self.lock:
            tip = repo.head.get(branch)
            if tip is None and branch != "main":
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            if parent is not None and not tip.oid.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = {} if tip is None else dict(tip.files)
            for path in deleted:
                gone = [name for name in files if name == path or (path.endswith("/") and name.startswith(path))]
                if not gone:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for name in gone:
                    del files[name]
            files |= added
            date = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            tree = sorted((path, file.git_oid) for path, file in files.items())
            content = json.dumps([repo.id, tip and tip.oid, tree, title, author, date])
            oid = hashlib.sha1(content.encode()).hexdigest()
            repo.head[branch] = Commit(oid, title, message, author, date, files, tip)
            return repo.head[branch]

    def info(self, repo: Repo, commit: Commit, expand: set[str] = frozenset(), blobs: bool = False) -> dict:
        """What `repo_info` and the listing answer; `expand` narrows it as on the Hub."""
        card = self.card(commit)
        tags = [*card.get("tags", []), *(card[key] for key in ("library_name", "pipeline_tag") if card.get(key))]
        names = card.get("datasets") or []
        tags += [f"dataset:{name}" for name in ([names] if isinstance(names, str) else names)]
        tags += [f"license:{card['license']}"] if card.get("license") else []
        whole = {
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": list(history(commit))[-1].date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": repo.downloads,
            "likes": repo.likes,
            "tags": tags,
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "cardData": card,
            "siblings": [self._sibling(path, file, blobs) for path, file in sorted(commit.files.items())],
        }
        weights = commit.files.get("model.safetensors")
        if weights and (total := self.numbers(weights)):
            whole["safetensors"] = {"parameters": {"F32": total}, "total": total}
        if "evalResults" in expand:
            whole["evalResults"] = self.eval_results(commit)
        if "model-index" in expand:
            whole["model-index"] = card.get("model-index")
        shown = {key: value for key, value in whole.items() if not expand or key in expand}
        return {"_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24], "id": repo.id, "modelId": repo.id, **shown}

    @staticmethod
    def _sibling(path: str, file: File, blobs: bool) -> dict:
        if not blobs:
            return {"rfilename": path}
        lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": POINTER_SIZE} if file.lfs else None
        return {"rfilename": path, "size": file.size, "blobId": file.git_oid} | ({"lfs": lfs} if lfs else {})

    def card(self, commit: Commit) -> dict:
        """Front matter of the README; {} where there is none, and only the tags of one that is broken or a bomb."""
        readme = commit.files.get("README.md")
        if readme is None:
            return {}
        if readme.sha256 not in self.cards:
            text = self.read(readme).decode(errors="replace")
            try:
                self.cards[readme.sha256] = front_matter(text)
            except (yaml.YAMLError, ValueError, RecursionError):
                self.cards[readme.sha256] = {"tags": re.findall(r"^- ([\w-]+)$", text, re.MULTILINE)}
        return self.cards[readme.sha256]

    def numbers(self, weights: File) -> int | None:
        """How many numbers a safetensors file holds; `None` if it is none."""
        if weights.sha256 not in self.tensors:
            content = self.read(weights)
            try:
                header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                shapes = [about["shape"] for name, about in header.items() if name != "__metadata__"]
                self.tensors[weights.sha256] = sum(math.prod(shape) for shape in shapes)
            except (ValueError, AttributeError, KeyError, TypeError, OverflowError):
                self.tensors[weights.sha256] = 0
        return self.tensors[weights.sha256] or None

    def eval_results(self, commit: Commit) -> list[dict]:
        entries = []
        for path, file in sorted(commit.files.items()):
            if path.startswith(".eval_results/") and path.endswith((".yaml", ".yml")):
                try:
                    found = yaml.safe_load(self.read(file))
                    entries += [{"filename": path, "data": _plain(entry)} for entry in found]
                except (yaml.YAMLError, TypeError) as error:
                    entries.append({"filename": path, "error": str(error)})
        return entries


def front_matter(text: str) -> dict:
    """The YAML between the first two lines of dashes; raises `yaml.YAMLError`."""
    if not text.startswith("---\n"):
        return {}
    found = yaml.load(text[4:].split("\n---", 1)[0], Loader=_LOADER)
    if not isinstance(found, dict):
        raise yaml.YAMLError("the metadata section is no mapping")
    return _plain(found)


def _plain(value):
    left = 100_000

    def count(part) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise yaml.YAMLError("the metadata section holds too much")
        for inner in [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else ():
            count(inner)

    count(value)
    return json.loads(json.dumps(value, default=str))
