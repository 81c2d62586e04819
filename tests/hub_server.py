"""A small hub on 127.0.0.1: the part of the Hugging Face hub's API that huggingface_hub and datasets call.

It serves the repositories below a folder, `models/OWNER/NAME/…` and `datasets/OWNER/NAME/…`, each with one commit,
`main`. A repository whose name begins with "gated" asks for a login.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KINDS = ("models", "datasets")


class RefusalError(Exception):
    """An answer that is no success, with the X-Error-Code by which the clients know it."""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


@dataclass(frozen=True)
class Repository:
    kind: str
    name: str
    folder: Path

    def entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        return {"type": "file", "path": name, "oid": etag(path), "size": path.stat().st_size}

    def entries(self, below: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
        found = (self.folder / below).rglob("*") if recursive else (self.folder / below).glob("*")
        return [self.entry(path) for path in sorted(found)]

    def info(self) -> dict[str, Any]:
        files = [{"rfilename": entry["path"]} for entry in self.entries() if entry["type"] == "file"]
        return {"id": self.name, "sha": COMMIT, "siblings": files, "private": False, "gated": False, "tags": []}


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

    def log_message(self, format: str, *values: object) -> None:
        """The server keeps what was asked for and prints nothing."""

    def answer(self, body: str = "") -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.server.requests.append(f"{self.command} {url.path}")
        try:
            if parts[0] == "api":
                self.send(json.dumps(self.api(parts[1:], parse_qs(url.query), body)).encode(), "application/json")
            else:
                self.send_file(parts)
        except RefusalError as refusal:
            self.send(b"{}", "application/json", refusal.status, {"X-Error-Code": refusal.code})

    def api(self, parts: list[str], query: dict[str, list[str]], body: str) -> Any:
        repository, verb, rest = self.repository(parts)
        if verb == "tree":
            return repository.entries("/".join(rest[1:]), recursive=query.get("recursive", [""])[0] in ("true", "True"))
        if verb == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            paths = [repository.folder / name for name in asked]
            return [repository.entry(path) for path in paths if path.exists()]
        if verb in ("", "revision"):
            return repository.info()
        raise RefusalError(404, "EntryNotFound")

    def repository(self, parts: list[str]) -> tuple[Repository, str, list[str]]:
        """`[kind, owner, name, verb, revision, …]` → repository, verb, [revision, …]."""
        kind, name, verb, rest = parts[0], "/".join(parts[1:3]), "".join(parts[3:4]), parts[4:]
        folder = self.server.folder / kind / name
        if kind not in KINDS or not name or not folder.is_dir():
            raise RefusalError(404, "RepoNotFound")
        if parts[2].startswith("gated"):
            raise RefusalError(403, "GatedRepo")
        if rest and rest[0] not in ("main", COMMIT):
            raise RefusalError(404, "RevisionNotFound")
        return Repository(kind, name, folder), verb, rest

    def send_file(self, parts: list[str]) -> None:
        repository, _, rest = self.repository(parts if parts[0] == "datasets" else ["models", *parts])
        path = repository.folder.joinpath(*rest[1:])
        if not path.is_file():
            raise RefusalError(404, "EntryNotFound")
        data, status = path.read_bytes(), 200
        headers = {"ETag": f'"{etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {start}-{stop or len(data) - 1}/{len(data)}"
            data, status = data[int(start) : int(stop) + 1 if stop else None], 206
        self.send(data, "application/octet-stream", status, headers)

    def send(self, data: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class HubServer(ThreadingHTTPServer):
    """requests: what was asked for, "METHOD /path" each, in order."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has read enough hangs up; anything else is a fault of this server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve_hub(folder: Path) -> Iterator[HubServer]:
    with HubServer(folder) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
