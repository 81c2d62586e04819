"""A small hub on 127.0.0.1: the part of the Hugging Face hub's API that huggingface_hub and datasets call.

It serves the repositories below a folder, `models/OWNER/NAME/…` and `datasets/OWNER/NAME/…`, each with one commit,
`main`. A repository whose name begins with "gated" asks for a login. Who has the token may make repositories and upload
into them, large files by git's LFS: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import base64
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

import yaml

TOKEN = "hf_may_write"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
KINDS = ("models", "datasets")


class RefusalError(Exception):
    """An answer that is no success, with the X-Error-Code by which the clients know it, and what it says beside."""

    def __init__(self, status: int, code: str, **said: str) -> None:
        self.status, self.code, self.said = status, code, said


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
        self.answer(self.read_body().decode())

    def do_PUT(self) -> None:
        """A large file's content, under its SHA-256."""
        self.server.requests.append(f"PUT {self.path}")
        content = self.read_body()
        self.server.large_files[hashlib.sha256(content).hexdigest()] = content
        self.send(b"", "text/plain")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *values: object) -> None:
        """The server keeps what was asked for and prints nothing."""

    def answer(self, body: str = "") -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.server.requests.append(f"{self.command} {url.path}")
        try:
            if parts[0] == "api":
                self.send_json(self.api(parts[1:], parse_qs(url.query), body))
            elif parts[-3:] == ["lfs", "objects", "batch"]:
                self.send_json(self.large_file_places(json.loads(body)))
            else:
                self.send_file(parts)
        except RefusalError as refusal:
            said = json.dumps(refusal.said).encode()
            self.send(said, "application/json", refusal.status, {"X-Error-Code": refusal.code})

    def api(self, parts: list[str], query: dict[str, list[str]], body: str) -> Any:
        if parts == ["validate-yaml"]:
            return check_front_matter(json.loads(body)["content"])
        if parts == ["repos", "create"]:
            return self.create(json.loads(body))
        repository, verb, rest = self.repository(parts)
        if verb == "preupload":
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]}
        if verb == "commit":
            return self.commit(repository, [json.loads(line) for line in body.splitlines()])
        if verb == "tree":
            return repository.entries("/".join(rest[1:]), recursive=query.get("recursive", [""])[0] in ("true", "True"))
        if verb == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            paths = [repository.folder / name for name in asked]
            return [repository.entry(path) for path in paths if path.exists()]
        if verb in ("", "revision"):
            return repository.info()
        raise RefusalError(404, "EntryNotFound")

    def create(self, asked: dict[str, Any]) -> dict[str, str]:
        """Makes a repository."""
        self.check_token()
        name = f"{asked['organization']}/{asked['name']}"
        url, folder = f"{self.server.endpoint}/{name}", self.server.folder / f"{asked.get('type', 'model')}s" / name
        if folder.is_dir():
            raise RefusalError(409, "", url=url, error="You already created this model repo")
        folder.mkdir(parents=True)
        self.server.created.append(asked)
        return {"url": url}

    def large_file_places(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Where each file that is not there yet is to be put."""
        self.check_token()
        places = [{"upload": {"href": f"{self.server.endpoint}/put/{file['oid']}"}} for file in asked["objects"]]
        known = self.server.large_files
        return {
            "transfer": "basic",
            "objects": [
                {**file, **({} if file["oid"] in known else {"actions": place})}
                for file, place in zip(asked["objects"], places, strict=True)
            ],
        }

    def commit(self, repository: Repository, lines: list[dict[str, Any]]) -> dict[str, str]:
        """Puts a commit's files into the repository, and removes what it removes."""
        self.check_token()
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                continue
            path = repository.folder / value["path"]
            if key == "deletedFile":
                path.unlink()
            else:
                large = key == "lfsFile"
                path.write_bytes(self.server.large_files[value["oid"]] if large else base64.b64decode(value["content"]))
        url = f"{self.server.endpoint}/{repository.name}/commit/{COMMIT}"
        return {"commitUrl": url, "commitOid": COMMIT}

    def check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusalError(403, "")

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

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), "application/json")

    def send(self, data: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def mode(path: str) -> str:
    """How a file is uploaded."""
    return "lfs" if Path(path).suffix in (".safetensors", ".gguf") else "regular"


def check_front_matter(card: str) -> dict[str, list[dict[str, str]]]:
    """What is wrong with the YAML at the top of a model card."""
    try:
        fields = yaml.safe_load(card.split("---\n")[1])
        return {"errors": [] if isinstance(fields, dict) else [{"message": "no fields"}], "warnings": []}
    except yaml.YAMLError as error:
        return {"errors": [{"message": str(error)}], "warnings": []}


class HubServer(ThreadingHTTPServer):
    """requests: what was asked for, "METHOD /path" each, in order. created: what repositories were asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.large_files: dict[str, bytes] = {}

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
