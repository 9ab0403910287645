"""One client's connection to `local_hub.py`: requests, faults, answers, and who is calling."""

import json
import socket
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import HubError, Repo


class Connection(BaseHTTPRequestHandler):
    """Reads a request, lets faults happen, and answers; subclasses have `route()`."""

    hub: "LocalHub"  # noqa: F821
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *args):
        pass

    def handle_any(self):
        self.url = urlsplit(self.path)
        self.query = {key.removesuffix("[]"): values for key, values in parse_qs(self.url.query).items()}
        line = f"{self.command} {unquote(self.path)}"
        self.hub.requests.append(line)
        early = self.hub.fault(line, late=False)
        length = int(self.headers.get("Content-Length") or 0)
        if early and early.status is None:
            self.rfile.read(length // 2)
            self.drop()
            return
        self.body = self.rfile.read(length)
        if early:
            self.error(HubError(early.status, "injected"), **early.headers)
            return
        late = self.hub.fault(line, late=True)
        try:
            answer, status = self.route(), 200
        except HubError as error:
            self.error(error)
            return
        if late and late.status is None:
            self.drop()
        elif late:
            self.error(HubError(late.status, "injected"), **late.headers)
        elif answer is not None:
            self.reply(json.dumps(answer).encode(), status)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def drop(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, content: bytes, status: int = 200, kind: str = "application/json", **headers: str):
        self.send_response(status)
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        for key, value in {"Content-Type": kind, "Content-Length": str(len(content)), **names}.items():
            self.send_header(key, value)
        # One write: a second, small packet would wait for the first one's acknowledgement.
        self._headers_buffer.append(b"\r\n" + (b"" if self.command == "HEAD" or status == 304 else content))
        self.flush_headers()

    def error(self, error: HubError, **headers: str):
        if error.code:
            headers["X_Error_Code"] = error.code
        body = json.dumps({"error": error.message}).encode()
        self.reply(body, error.status, X_Error_Message=error.message, **headers)

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def caller(self) -> tuple[str | None, bool]:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None, False
        if token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def writer(self, repo_id: str) -> str:
        user, may_write = self.caller()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not may_write or repo_id.split("/")[0] != user:
            raise HubError(403, f"Forbidden: you have no write access to {repo_id}")
        return user

    def find(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        repo, (user, _) = self.hub.store.repos.get((kind, repo_id)), self.caller()
        if repo is None or (repo.private and user != repo_id.split("/")[0]):
            # As the Hub: who is not logged in does not learn whether it exists.
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self.writer(repo_id)
        return repo

    def route(self) -> dict | list | None:
        """JSON, or None if the answer has been given; raises `HubError`."""
        raise HubError(404, f"no such page: {self.path}")
