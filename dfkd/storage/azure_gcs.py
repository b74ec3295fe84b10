"""Storage in a container of Azure Blob or a bucket of Google Cloud Storage, through obstore.

The clients and errors are in `dfkd.storage.azure_gcs_client`. A file is mapped and sent in one
request, so it is never in memory as a whole.
"""

import contextlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError

from dfkd.errors import ManifestError
from dfkd.storage.azure_gcs_client import ObstoreConnection, explain, is_transient, reason
from dfkd.storage.base import (
    KEY,
    WRITER_METADATA,
    MissingObject,
    Request,
    StoredObject,
    disk_full_error,
    require_disk_space,
)
from dfkd.storage.bucket import BucketStorage, folder_names

T = TypeVar("T")

PAGE = 1000
"""Entries of a listing that are handed over at once."""


@dataclass(frozen=True)
class ObstoreStorage(BucketStorage):
    """A prefix of a container of Azure Blob or of a bucket of Google Cloud Storage."""

    connection: ObstoreConnection = field(
        default_factory=ObstoreConnection, repr=False, compare=False
    )
    max_put_bytes = 5000 << 20  # Azure's; GCS takes more

    @property
    def _client(self) -> Any:
        """obstore's client for all requests but large uploads."""
        return self.connection.client(self.scheme, self.bucket, self.connection.limits.read)

    def _attempt(self, operation: str, key: str, send: Callable[[Request], T]) -> T:
        """See `BucketStorage._attempt`."""
        limits, observe = self.connection.limits, self.connection.observe
        try:
            return limits.retries.attempt(operation, send, reason, is_transient, observe)
        except (BaseError, FileNotFoundError) as error:
            if getattr(error, "errno", None):  # a file of this machine, and not an object
                raise
            raise explain(error, self.scheme, self.location(key)) from None

    def _send(
        self, request: Request, name: str, data: bytes | Path, size: int, writer: str = ""
    ) -> bool:
        """See `BucketStorage._send`."""
        options = {"mode": "create", "attributes": {WRITER_METADATA: writer}} if writer else {}
        limits = self.connection.limits
        patience = limits.read if size < limits.large else limits.write
        client = self.connection.client(self.scheme, self.bucket, patience)
        # At most `MAX_UPLOADS` bodies at once: more would share the bandwidth and time out.
        with self.connection.slots:
            try:
                client.put(name, _buffer(data, size), use_multipart=False, **options)
            except (AlreadyExistsError, PreconditionError):
                if writer:
                    return False
                raise
        request.bytes = size
        return True

    def _writer(self, key: str, name: str) -> str:
        """See `BucketStorage._writer`."""
        attributes = self._attempt(
            "head", key, lambda _: self._client.get(name, options={"head": True}).attributes
        )
        return str(attributes.get(WRITER_METADATA, ""))

    def get(self, key: str, limit: int | None = None) -> bytes:
        """See `Storage.get`."""
        name = self._name(key)

        def send(request: Request) -> bytes:
            answer = self._client.get(name)
            if limit is None or answer.meta["size"] <= limit:
                data = bytes(answer.bytes())
            else:
                # The rest of the body is never received.
                data = next(answer.stream(min_chunk_size=max(1, limit)))[:limit]
            request.bytes = len(data)
            return data

        return self._attempt("get", key, send)

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        name = self._name(key)
        return int(self._attempt("head", key, lambda _: self._client.head(name))["size"])

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """See `Storage.get_range`."""
        if stop <= start:
            return b""
        name = self._name(key)

        def send(request: Request) -> bytes:
            try:
                data = bytes(self._client.get_range(name, start=start, end=stop))
            except GenericError:
                # obstore has no error of its own for a range that begins where the object ends.
                if start < self._client.head(name)["size"]:
                    raise
                return b""
            request.bytes = len(data)
            return data

        return self._attempt("get", key, send)

    def get_file(self, key: str, path: Path) -> None:
        """See `Storage.get_file`."""
        name = self._name(key)

        def send(request: Request) -> None:
            answer = self._client.get(name)
            size = answer.meta["size"]
            require_disk_space(path, size)
            # Opened at each attempt, so that nothing of a failed one stays in the file.
            with path.open("wb") as stream, disk_full_error(path, size):
                for chunk in answer.stream(min_chunk_size=1 << 20):
                    stream.write(chunk)
                    request.bytes += len(chunk)
                stream.flush()

        self._attempt("get", key, send)

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        return (key for key, _ in self._items(prefix))

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Storage.entries`."""
        for key, item in self._items(prefix):
            yield StoredObject(key, item["size"], item["last_modified"].timestamp())

    def _items(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Yield keys that begin with `prefix`, with obstore's descriptions, in ascending order."""
        last = ""
        for page in self._pages(prefix):
            for item in page:
                # A console shows an empty folder by an object of its name, which is no key.
                key = item["path"][len(self._head) :]
                if not item["path"].startswith(self._head + prefix) or not KEY.fullmatch(key):
                    continue
                # Both services list by name, except for Azure's accounts that have real folders.
                if key < last:
                    raise ManifestError(
                        "storage.root",
                        "must be a store that lists objects by name",
                        self.location(),
                        "use an account without hierarchical namespace",
                    )
                last = key
                yield key, item

    def _pages(self, prefix: str) -> Iterator[Any]:
        """Yield the parts of the listing of what begins with `prefix`, or of more."""
        name = self._head + prefix
        folder, _, rest = name.rpartition("/")
        if not rest:
            yield from self._folder_pages(folder, prefix)
            return
        # The services list whole folders, and this one may hold the whole run. So only what lies
        # directly in it is listed, and then the folders among it whose names begin so.
        answer = self._attempt("list", prefix, lambda _: self._client.list_with_delimiter(folder))
        found = [item for item in answer["objects"] if item["path"].startswith(name)]
        for inner in filter(lambda path: path.startswith(name), answer["common_prefixes"]):
            for page in self._folder_pages(inner.rstrip("/"), prefix):
                found += page
        yield sorted(found, key=lambda item: item["path"])

    def _folder_pages(self, folder: str, prefix: str) -> Iterator[Any]:
        """Yield the parts of the listing of a folder; errors name `prefix`."""
        stream: Any = None
        last: str | None = None

        def send(request: Request) -> Any:
            nonlocal stream
            # A stream that failed cannot go on, so a new one begins behind what was received.
            if stream is None or request.attempt > 1:
                stream = self._client.list(folder, offset=last, chunk_size=PAGE)
            return next(stream, ())

        while page := self._attempt("list", prefix, send):
            yield page
            if len(page) < PAGE:  # only the last part is shorter
                return
            last = page[-1]["path"]

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See `Storage.folders`."""
        folder = (self._head + prefix).rstrip("/")
        answer = self._attempt("list", prefix, lambda _: self._client.list_with_delimiter(folder))
        return folder_names(answer["common_prefixes"])

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        name = self._name(key)
        with contextlib.suppress(MissingObject):
            self._attempt("delete", key, lambda _: self._client.delete(name))


def _buffer(data: bytes | Path, size: int) -> bytes | mmap.mmap:
    """The data, or the mapped file, whose pages are read from the disk while they are sent."""
    if isinstance(data, bytes) or not size:  # an empty file cannot be mapped
        return data if isinstance(data, bytes) else b""
    with data.open("rb") as stream:
        # Never closed by hand: a request that failed may hold the mapping a little longer.
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
