"""The Hub's endpoints, as far as huggingface_hub, timm, transformers and datasets ask for them."""

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs, unquote, urlencode

import yaml
from hub_connection import Connection
from hub_store import LFS_SUFFIXES, POINTER_SIZE, HubError, front_matter, history

REVISION = r"(?P<rev>[^/]+)"
REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"
PREFIX = r"/(?P<kind>datasets/|spaces/)?(?P<id>[^/]+/[^/]+?)"
ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("DELETE", "/api/repos/delete", "delete"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", "/api/(?P<kind>model|dataset|space)s", "listing"),
    ("GET", f"{REPO}(?:/revision/{REVISION})?", "info"),
    ("GET", f"{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", "tree"),
    ("POST", f"{REPO}/paths-info/{REVISION}", "paths_info"),
    ("GET", f"{REPO}/commits/{REVISION}", "commits"),
    ("GET", f"{REPO}/refs", "refs"),
    ("POST", f"{REPO}/branch/(?P<name>[^/]+)", "branch"),
    ("POST", f"{REPO}/tag/{REVISION}", "tag"),
    ("POST", f"{REPO}/preupload/{REVISION}", "preupload"),
    ("POST", f"{REPO}/commit/{REVISION}", "commit"),
    ("POST", rf"{PREFIX}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("POST", "/lfs-verify/(?P<id>[^/]+/[^/]+)", "lfs_verify"),
    ("GET HEAD", f"{PREFIX}/resolve/{REVISION}/(?P<file>.+)", "resolve"),
]


class Handler(Connection):
    """Routes are tried in order; each returns JSON, or has answered itself and returns None."""

    def route(self) -> dict | list | None:
        path = self.url.path
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                values = {key: unquote(value) for key, value in found.groupdict(default="").items()}
                return getattr(self, name)(**values)
        return super().route()

    def whoami(self):
        user, may_write = self.caller()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        role = "write" if may_write else "read"
        access = {"type": "access_token", "accessToken": {"displayName": "local", "role": role}}
        return {"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": access}

    def create(self):
        asked = self.json()
        user, _ = self.caller()
        repo_id = f"{asked.get('organization') or user}/{asked['name']}"
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        kind = asked.get("type") or "model"
        repo = self.hub.store.create(kind, repo_id, self.writer(repo_id), private)
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        return {"url": f"{self.hub.url}/{prefix}{repo_id}", "name": repo_id}

    def delete(self):
        asked = self.json()
        user, _ = self.caller()
        repo = self.find(asked.get("type") or "model", f"{asked.get('organization') or user}/{asked['name']}", True)
        del self.hub.store.repos[repo.kind, repo.id]
        return {}

    def validate_yaml(self):
        try:
            front_matter(self.json()["content"])
        except yaml.YAMLError as error:
            self.reply(json.dumps({"errors": [{"message": str(error)}], "warnings": []}).encode(), 400)
            return None
        return {"errors": [], "warnings": []}

    def listing(self, kind):
        user, _ = self.caller()
        wanted = set(self.query.get("filter", []))
        author, search = self.query.get("author", [None])[0], self.query.get("search", [""])[0].lower()
        start, limit = int(self.query.get("cursor", [0])[0]), int(self.query.get("limit", [1000])[0])
        expand, full = set(self.query.get("expand", [])), "full" in self.query
        found = []
        for repo in list(self.hub.store.repos.values()):
            owner = repo.id.split("/")[0]
            if repo.kind != kind or (repo.private and owner != user) or (author and owner != author):
                continue
            info = self.hub.store.info(repo, repo.head["main"], expand | {"tags"} if expand else expand)
            if wanted <= set(info["tags"]) and search in repo.id.lower():
                found.append(info if full or expand else {k: v for k, v in info.items() if k != "siblings"})
        sort = self.query.get("sort", [None])[0]
        if sort:
            found.sort(key=lambda info: info.get(sort) or 0, reverse=True)
        size = min(limit, self.hub.page_size)
        page = found[start : start + size]
        headers = {}
        if start + size < len(found):
            following = urlencode(
                {**{k: v for k, v in self.query.items() if k != "cursor"}, "cursor": start + size}, doseq=True
            )
            headers["Link"] = f'<{self.hub.url}{self.url.path}?{following}>; rel="next"'
        content = json.dumps(page).encode()
        headers["ETag"] = f'W/"{hashlib.sha1(content).hexdigest()}"'
        same = self.headers.get("If-None-Match") == headers["ETag"]
        self.reply(content, 304 if same else 200, **headers)

    def info(self, kind, id, rev=""):
        repo = self.find(kind, id)
        return self.hub.store.info(
            repo, repo.commit(rev or "main"), set(self.query.get("expand", [])), "blobs" in self.query
        )

    def tree(self, kind, id, rev, folder=""):
        files = self.find(kind, id).commit(rev).files
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
        if prefix and not inside:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        folders, entries = set(), []
        for path, file in inside.items():
            parts = path.removeprefix(prefix).split("/")[:-1]
            for depth in range(1, len(parts) + 1 if recursive else min(len(parts), 1) + 1):
                folders.add(prefix + "/".join(parts[:depth]))
            if recursive or not parts:
                entries.append(_entry(path, file))
        return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)] + entries

    def paths_info(self, kind, id, rev):
        files = self.find(kind, id).commit(rev).files
        asked = self.json() if self.body.startswith(b"{") else parse_qs(self.body.decode())
        return [_entry(path, files[path]) for path in asked["paths"] if path in files]

    def commits(self, kind, id, rev):
        return [
            {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in history(self.find(kind, id).commit(rev))
        ]

    def refs(self, kind, id):
        repo = self.find(kind, id)
        named = {"branches": ("heads", repo.head), "tags": ("tags", repo.tags)}
        return {"converts": [], "pullRequests": []} | {
            key: [{"name": n, "ref": f"refs/{ref}/{n}", "targetCommit": c.oid} for n, c in commits.items()]
            for key, (ref, commits) in named.items()
        }

    def branch(self, kind, id, name):
        repo = self.find(kind, id, write=True)
        if name in repo.head:
            raise HubError(409, f"Reference already exists: {name}")
        repo.head[name] = repo.commit(self.json().get("startingPoint") or "main")
        return {}

    def tag(self, kind, id, rev):
        repo, name = self.find(kind, id, write=True), self.json()["tag"]
        if name in repo.tags:
            raise HubError(409, f"Tag already exists: {name}")
        repo.tags[name] = repo.commit(rev)
        return {}

    def preupload(self, kind, id, rev):
        files = self.find(kind, id, write=True).commit(rev).files
        return {
            "files": [
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if asked["path"].endswith(LFS_SUFFIXES) or asked["size"] > 10**7 else "regular",
                    "shouldIgnore": False,
                    "oid": files[asked["path"]].oid if asked["path"] in files else None,
                }
                for asked in self.json()["files"]
            ]
        }

    def commit(self, kind, id, rev):
        repo, store = self.find(kind, id, write=True), self.hub.store
        header, added, deleted = {}, {}, []
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    header = value
                case "file":
                    added[value["path"]] = store.put(base64.b64decode(value["content"]))
                case "lfsFile":
                    path = store.folder / value["oid"]
                    if not path.is_file():
                        raise HubError(400, f"LFS object {value['oid']} was not uploaded")
                    added[value["path"]] = store.put(path.read_bytes(), lfs=True)
                case "deletedFile":
                    deleted.append(value["path"])
                case "deletedFolder":
                    deleted.append(value["path"].rstrip("/") + "/")
        made = store.commit(
            repo,
            rev,
            header["summary"],
            id.split("/")[0],
            added,
            tuple(deleted),
            header.get("parentCommit"),
            header.get("description", ""),
        )
        return {"success": True, "commitUrl": f"{self.hub.url}/{id}/commit/{made.oid}", "commitOid": made.oid}

    def lfs_batch(self, kind, id):
        self.find(kind.rstrip("s/") or "model", id, write=True)
        objects = []
        for asked in self.json()["objects"]:
            known = (self.hub.store.folder / asked["oid"]).exists()
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"},
                "verify": {"href": f"{self.hub.url}/lfs-verify/{id}"},
            }
            objects.append(asked | ({} if known else {"actions": actions}))
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid):
        if self.hub.store.put(self.body).sha256 != oid:
            raise HubError(400, "the content does not have the announced SHA-256")
        return {}

    def lfs_verify(self, id):
        asked = self.json()
        path = self.hub.store.folder / asked["oid"]
        if not path.exists() or path.stat().st_size != asked["size"]:
            raise HubError(404, f"LFS object {asked['oid']} is missing")
        return {}

    def resolve(self, kind, id, rev, file):
        repo = self.find(kind.rstrip("s/") or "model", id)
        commit = repo.commit(rev)
        if file not in commit.files:
            self.error(HubError(404, f"{file} does not exist", "EntryNotFound"), X_Repo_Commit=commit.oid)
            return
        found = commit.files[file]
        same = self.headers.get("If-None-Match", "").strip('"') == found.oid
        repo.downloads += self.command == "GET"
        content, part = self.hub.store.read(found), re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range", ""))
        self.reply(
            content[: int(part[1]) + 1] if part else content,
            304 if same else 206 if part else 200,
            "application/octet-stream",
            ETag=f'"{found.oid}"',
            X_Repo_Commit=commit.oid,
            X_Linked_Size=str(found.size),
        )


def _entry(path: str, file) -> dict:
    lfs = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": POINTER_SIZE}} if file.lfs else {}
    return {"type": "file", "path": path, "size": file.size, "oid": file.git_oid} | lfs
