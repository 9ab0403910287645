"""A Hub on loopback for tests: a real HTTP server that huggingface_hub, timm, transformers and datasets talk to.

    python tests/support/local_hub.py --port 8000 --store DIR

or, in a test, the fixture `local_hub`. Clients read `HF_ENDPOINT` when they are imported.
"""

import argparse
import re
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_routes import Handler
from hub_store import LFS_SUFFIXES, Commit, Repo, Store, history

USER, TOKEN = "tester", "hf_localtoken0000000000000000000000000"


class Fault:
    """What goes wrong with requests that match: an HTTP status, or (`status=None`) a cut connection."""

    def __init__(self, pattern: str, status: int | None, times: int, late: bool, headers: dict[str, str] | None = None):
        self.pattern, self.status, self.times, self.late = re.compile(pattern), status, times, late
        self.headers = headers or {}


class LocalHub:
    """The server; a context manager.

    Args:
        folder (`str` or `Path`): Where contents are kept.
        port (`int`, defaults to 0): 0 takes a free one.
    """

    def __init__(self, folder: str | Path, port: int = 0):
        self.store = Store(Path(folder))
        # Token → who it belongs to, and whether it may write.
        self.tokens: dict[str, tuple[str, bool]] = {TOKEN: (USER, True)}
        self.token, self.user = TOKEN, USER
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        # Models on one page of a listing, at most.
        self.page_size = 1000
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: str | Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a client process; add them to `os.environ`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def fail(self, pattern: str, status: int = 500, times: int = 1, late: bool = False, **headers: str) -> None:
        """Answers the next `times` requests whose "METHOD /path?query" matches with `status`.

        Args:
            late (`bool`, defaults to `False`): Do what was asked first; only the answer is lost.
            headers: Of the answer, such as `Retry_After="2"`.
        """
        self.faults.append(Fault(pattern, status, times, late, headers))

    def cut(self, pattern: str, times: int = 1, late: bool = False) -> None:
        """Closes the connection of the next `times` matching requests, halfway through their bodies or (`late`) after
        doing what was asked."""
        self.faults.append(Fault(pattern, None, times, late))

    def fault(self, line: str, late: bool) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.late == late and fault.pattern.search(line):
                fault.times -= 1
                return fault
        return None

    def add_repo(self, repo_id: str, files: dict[str, bytes | str], kind: str = "model", private: bool = False) -> Repo:
        """A repository with one commit of these files, without any HTTP."""
        repo = self.store.create(kind, repo_id, repo_id.split("/")[0], private)
        self.change(repo, files)
        return repo

    def change(self, repo: Repo, files: dict[str, bytes | str], branch: str = "main") -> Commit:
        """A commit as another client would make it."""
        contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        added = {path: self.store.put(content, path.endswith(LFS_SUFFIXES)) for path, content in contents.items()}
        return self.store.commit(repo, branch, "change", repo.id.split("/")[0], added)

    def repo(self, repo_id: str, kind: str = "model") -> Repo | None:
        return self.store.repos.get((kind, repo_id))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Path → content."""
        files = self.repo(repo_id).commit(revision).files
        return {path: self.store.read(file) for path, file in files.items()}

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """Newest first; the last one is the Hub's own."""
        return list(history(self.repo(repo_id).commit(revision)))


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hub on loopback for tests.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--store", default=None, help="folder of contents (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hub = LocalHub(arguments.store or folder, arguments.port)
        print(f"HF_ENDPOINT={hub.url} HF_TOKEN={hub.token}", flush=True)
        hub.server.serve_forever()


if __name__ == "__main__":
    main()
