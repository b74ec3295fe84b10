"""A stand-in for Google Cloud Storage: what its XML API documents for the requests of obstore.

No server that runs on loopback accepts these requests, so this shows that the storage and obstore
fit together, and nothing about the real service.
"""

import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.helpers.loopback import Loopback

PAGE = 5
"""Entries of one answer to a listing, few enough that tests meet a second one."""
TOKEN = "stand-in"


@dataclass
class Stored:
    """An object."""

    data: bytes
    metadata: dict[str, str]
    written: datetime = field(default_factory=lambda: datetime.now(UTC))
    generation: str = field(default_factory=lambda: str(uuid.uuid4().int % 10**15))


class GcsStandIn(Loopback):
    """The server; use as a context."""

    def __init__(self) -> None:
        super().__init__(self._handler())
        self.buckets: dict[str, dict[str, Stored]] = {}
        self._lock = threading.Lock()

    def new_root(self) -> str:
        """`gs://bucket/prefix` in a bucket of its own."""
        bucket = f"test-{uuid.uuid4().hex}"
        self.buckets[bucket] = {}
        return f"gs://{bucket}/runs/one"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                address = urlsplit(self.path)
                bucket, _, name = unquote(address.path).strip("/").partition("/")
                objects = server.buckets.get(bucket)
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self._refuse(401, "AuthenticationRequired")
                elif objects is None:
                    self._refuse(404, "NoSuchBucket")
                elif not name:
                    query = parse_qs(address.query, keep_blank_values=True)
                    self._list(objects, {key: values[0] for key, values in query.items()})
                elif self.command == "PUT":
                    self._put(objects, name, body)
                elif name not in objects:
                    self._refuse(404, "NoSuchKey")
                elif self.command == "DELETE":
                    objects.pop(name, None)
                    self._answer(204, b"", {})
                else:
                    self._get(objects[name])

            do_GET = do_PUT = do_HEAD = do_DELETE = _serve  # noqa: N815

            def _put(self, objects: dict[str, Stored], name: str, body: bytes) -> None:
                kept = {k: v for k, v in self.headers.items() if k.startswith("x-goog-meta-")}
                made = Stored(body, kept)
                with server._lock:
                    condition = self.headers["x-goog-if-generation-match"]
                    if condition == "0" and name in objects:
                        self._refuse(412, "PreconditionFailed")
                        return
                    objects[name] = made
                self._answer(200, b"", {"ETag": f'"{made.generation}"'}, made)

            def _get(self, found: Stored) -> None:
                data, headers, status = found.data, dict(found.metadata), 200
                headers["ETag"] = f'"{found.generation}"'
                headers["Last-Modified"] = format_datetime(found.written, usegmt=True)
                if span := self.headers["Range"]:
                    first, _, last = span.removeprefix("bytes=").partition("-")
                    start, stop = int(first), min(int(last or len(data)) + 1, len(data))
                    if start >= len(data):
                        self._refuse(416, "InvalidRange")
                        return
                    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                    data, status = data[start:stop], 206
                self._answer(status, data, headers, found)

            def _list(self, objects: dict[str, Stored], query: dict[str, str]) -> None:
                prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
                after = query.get("continuation-token", query.get("start-after", ""))
                found: dict[str, Stored | None] = {}
                for name in sorted(objects):
                    if name.startswith(prefix):
                        head, parted, _ = name.removeprefix(prefix).partition(delimiter or "\0")
                        found[f"{prefix}{head}/" if parted else name] = (
                            None if parted else objects[name]
                        )
                names = [name for name in sorted(found) if name > after]
                text = "".join(_entry(name, found[name]) for name in names[:PAGE])
                if names[PAGE:]:
                    text += f"<NextContinuationToken>{names[PAGE - 1]}</NextContinuationToken>"
                self._answer(200, f"<ListBucketResult>{text}</ListBucketResult>".encode(), {})

            def _refuse(self, status: int, code: str) -> None:
                self._answer(status, f"<Error><Code>{code}</Code></Error>".encode(), {})

            def _answer(
                self, status: int, data: bytes, headers: dict[str, str], of: Stored | None = None
            ) -> None:
                self.send_response_only(status)
                headers |= {"x-goog-generation": of.generation} if of else {}
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        return Handler


def _entry(name: str, found: Stored | None) -> str:
    """An object or a folder as a listing shows it."""
    if found is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    facts = {
        "Key": escape(name),
        "Size": str(len(found.data)),
        "LastModified": found.written.isoformat(),
        "ETag": found.generation,
    }
    return f"<Contents>{''.join(f'<{k}>{v}</{k}>' for k, v in facts.items())}</Contents>"
