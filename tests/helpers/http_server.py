"""A web server on loopback that publishes files as real ones do, and fails as real ones do.

What happens to a request is a script (`inject`); nothing waits longer than it takes to be seen.
"""

import contextlib
import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from dfkd.models import teacher_architecture
from dfkd.models.weights.artifacts import Artifact
from dfkd.operations import fetching, required_weights
from tests.helpers.loopback import Loopback


class Publisher(Loopback):
    """Serves `files` by the end of a path, with ranges; use as a context.

    Faults, one for a request each: `cut N` ends the connection after N bytes of the body, `busy` is
    503, `gone` 404, `silent` never answers, `endless` sends without end, `away URL` redirects.
    """

    def __init__(self, **files: bytes) -> None:
        super().__init__(self._handler())
        self.files = dict(files)
        self.seen: list[tuple[str, str]] = []
        """Path and range of each request."""
        self._script: list[str] = []
        self._lock = threading.Lock()

    def inject(self, *faults: str) -> None:
        """These, one for each of the next requests."""
        with self._lock:
            self._script += faults

    @property
    def ranges(self) -> list[str]:
        """What each request asked for; empty is the whole file."""
        return [asked for _, asked in self.seen]

    def artifact(self, file: str) -> Artifact:
        """A file as a catalogue has it."""
        digest = hashlib.sha256(self.files[file]).hexdigest()
        return Artifact(file, f"{self.address}/{file}", "MIT", digest)

    def publish(self, folder: Path) -> None:
        """Serve what lies in a folder and in those within."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.files |= {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def _next(self, path: str, asked: str) -> tuple[str, str]:
        with self._lock:
            self.seen.append((path, asked))
            kind, _, detail = (self._script.pop(0) if self._script else "").partition(" ")
            return kind, detail

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                kind, detail = publisher._next(self.path, self.headers.get("Range", ""))
                with contextlib.suppress(OSError):  # the client is gone
                    self._answer(kind, detail)

            def do_HEAD(self) -> None:
                """What the client of a hub asks first."""
                self.do_GET()

            def _answer(self, kind: str, detail: str) -> None:
                ends = [name for name in publisher.files if self.path.endswith(f"/{name}")]
                body = publisher.files[ends[0]] if ends else None
                if kind == "silent":
                    self.connection.recv(1)  # until the client goes away
                elif kind == "busy" or kind == "gone" or body is None:
                    self._plain(503 if kind == "busy" else 404)
                elif kind == "away":
                    self._plain(302, Location=detail)
                elif kind == "endless":
                    self._endless()
                else:
                    self._file(kind, detail, body)

            def _plain(self, status: int, **headers: str) -> None:
                self.send_response_only(status)
                for name, value in {**headers, "Content-Length": "0"}.items():
                    self.send_header(name, value)
                self.end_headers()

            def _endless(self) -> None:
                self.send_response_only(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while True:
                    self.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")

            def _file(self, kind: str, detail: str, body: bytes) -> None:
                asked = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
                start = int(asked or 0)
                rest = body[start:]
                self.send_response_only(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(rest)))
                commit = re.search("/resolve/([0-9a-f]{40})/", self.path)
                self.send_header("X-Repo-Commit", commit[1] if commit else "0" * 40)
                self.send_header("ETag", hashlib.sha256(body).hexdigest())
                self.end_headers()
                if self.command == "HEAD":
                    pass
                elif kind == "cut":
                    self.wfile.write(rest[: int(detail)])
                    self._cut()
                else:
                    self.wfile.write(rest)

            def _cut(self) -> None:
                self.close_connection = True
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        return Handler


def give_tag(monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
    """Let every model have one tag, `tiny`, with this entry of open_clip's table."""

    def find(model: str, tag: str) -> dict[str, Any]:
        return config if tag == "tiny" else {}

    for module in (teacher_architecture, required_weights, fetching):
        monkeypatch.setattr(module, "get_pretrained_cfg", find)


def keep_hub_model(
    cache: Path, name: str, file: Path, kept_as: str = "open_clip_model.safetensors"
) -> None:
    """Leave a file of a hub in a cache as the hub's client does when it has downloaded it."""
    home, commit = cache / "hub" / f"models--{name.replace('/', '--')}", "0" * 40
    for part in ("refs", f"snapshots/{commit}"):
        (home / part).mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit / kept_as).write_bytes(file.read_bytes())
