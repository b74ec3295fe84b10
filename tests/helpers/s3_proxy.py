"""A proxy on loopback that does to a client of S3, Azure or Google what networks and stores do.

What happens to which request is a script (`inject`) or drawn from a seed (`storm`); nothing waits
longer than it takes to be seen.
"""

import contextlib
import http.client
import os
import random
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.helpers.loopback import Loopback

KINDS = ("busy", "throttled", "cut request", "cut answer", "lost", "slow", "silent", "held")
"""503 and 429 without asking the store; a connection cut in the middle of the body on the way there
or back; done, but the answer dropped; an answer in pieces; done, but no answer while one waits, or
until the test says so."""


@dataclass(frozen=True)
class Fault:
    """What shall happen to the next request of this method whose target holds these characters."""

    kind: str
    method: str = ""
    target: str = ""

    def fits(self, method: str, target: str) -> bool:
        """Whether it is about this request."""
        return self.method in ("", method) and self.target in target


class Proxy(Loopback):
    """A server in front of an endpoint; use as a context."""

    def __init__(self, endpoint: str, drop_conditions: bool = False) -> None:
        """A proxy that also may make a store of one that ignores If-None-Match."""
        super().__init__(self._handler())
        place = urlsplit(endpoint)
        self.upstream = (str(place.hostname), int(place.port or 80))
        self.drop_conditions = drop_conditions
        self.seen: list[tuple[str, str, str]] = []
        """Method, target and fault (or nothing) of each request."""
        self.most_uploads = 0
        """The most requests with a body that were there at once."""
        self.gate: threading.Barrier | None = None
        """Where requests with a body wait for each other, if set."""
        self.held, self.released = threading.Event(), threading.Event()
        """That a request is held, and that it is to be dropped now."""
        self._uploads = 0
        self._script: list[Fault] = []
        self._storm: tuple[random.Random, float, tuple[str, ...]] | None = None
        self._lock = threading.Lock()

    def inject(self, *kinds: str, method: str = "", target: str = "") -> None:
        """These faults, one for each of the next requests that fit."""
        with self._lock:
            self._script += [Fault(kind, method, target) for kind in kinds]

    def storm(self, seed: int, share: float, kinds: Iterable[str]) -> None:
        """From now on, a fault for this share of all requests (0 ends it)."""
        with self._lock:
            self._storm = (random.Random(seed), share, tuple(kinds))

    @property
    def struck(self) -> list[str]:
        """The faults that happened."""
        return [kind for _, _, kind in self.seen if kind]

    def _next(self, method: str, target: str) -> str:
        with self._lock:
            kind = ""
            for fault in self._script:
                if fault.fits(method, target):
                    self._script.remove(fault)
                    kind = fault.kind
                    break
            else:
                if self._storm and self._storm[0].random() < self._storm[1]:
                    kind = self._storm[0].choice(self._storm[2])
            self.seen.append((method, target, kind))
            return kind

    def _count(self, change: int) -> None:
        with self._lock:
            self._uploads += change
            self.most_uploads = max(self.most_uploads, self._uploads)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                kind = proxy._next(self.command, self.path)
                size = int(self.headers.get("Content-Length") or 0)
                if kind == "cut request":
                    self.rfile.read(size // 2)
                    self._cut()
                    return
                try:
                    self._answer(kind, *self._ask(kind, size))
                except (OSError, http.client.HTTPException):
                    self._cut()  # the store is gone, or the client

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815

            def _ask(self, kind: str, size: int) -> tuple[int, list[tuple[str, str]], bytes]:
                """What the store answers, unless it shall not be asked."""
                proxy._count(size > 0)
                try:
                    body = self.rfile.read(size)
                    if size and proxy.gate:
                        proxy.gate.wait()
                    return (0, [], b"") if kind in ("busy", "throttled") else self._forward(body)
                finally:
                    # Before the client has its answer, after which it may send the next body.
                    proxy._count(-(size > 0))

            def _answer(
                self, kind: str, status: int, headers: list[tuple[str, str]], data: bytes
            ) -> None:
                if kind in ("busy", "throttled"):
                    self._refuse(503 if kind == "busy" else 429)
                    return
                if kind == "silent":
                    self.connection.recv(1)  # until the client goes away
                if kind == "held":
                    proxy.held.set()
                    proxy.released.wait()
                if kind in ("lost", "silent", "held") or (kind == "cut answer" and not data):
                    self._cut()
                    return
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                if kind == "cut answer":
                    self.wfile.write(data[: len(data) // 2])
                    self._cut()
                elif kind == "slow":
                    for start in range(0, len(data), max(1, len(data) // 4)):
                        time.sleep(0.05)
                        self.wfile.write(data[start : start + max(1, len(data) // 4)])
                else:
                    self.wfile.write(data)

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                """Status, headers and body of the store's answer; the host stays as signed."""
                upstream = http.client.HTTPConnection(*proxy.upstream)
                try:
                    upstream.putrequest(
                        self.command, self.path, skip_host=True, skip_accept_encoding=True
                    )
                    headers = {
                        name: value
                        for name, value in self.headers.items()
                        if name.lower() not in ("expect", "connection")
                    }
                    if proxy.drop_conditions:
                        headers = _without_conditions(self.command, self.path, headers, body)
                    for name, value in headers.items():
                        upstream.putheader(name, value)
                    upstream.endheaders(body or None)
                    answer = upstream.getresponse()
                    data = answer.read()
                    kept = [
                        (name, value)
                        for name, value in answer.getheaders()
                        if name.lower() not in ("transfer-encoding", "connection", "content-length")
                    ]
                    head = self.command == "HEAD"
                    size = answer.getheader("Content-Length", "0") if head else str(len(data))
                    return answer.status, [*kept, ("Content-Length", size)], data
                finally:
                    upstream.close()

            def _refuse(self, status: int) -> None:
                code = "SlowDown" if status == 503 else "TooManyRequests"
                text = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
                self.send_response_only(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            def _cut(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

        return Handler


def _without_conditions(
    method: str, target: str, headers: dict[str, str], body: bytes
) -> dict[str, str]:
    """The headers of a request that asks for no condition, signed anew with the keys in use."""
    left = ("if-none-match", "authorization", "x-amz-date", "x-amz-content-sha256")
    kept = {name: value for name, value in headers.items() if name.lower() not in left}
    request = AWSRequest(method, f"http://{headers['Host']}{target}", kept, body)
    keys = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    S3SigV4Auth(keys, "s3", os.environ["AWS_DEFAULT_REGION"]).add_auth(request)
    return dict(request.headers.items())
