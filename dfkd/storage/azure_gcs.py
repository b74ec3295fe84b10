"""Storage in a container of Azure Blob or a bucket of Google Cloud Storage, through obstore.

obstore binds Rust's object_store, which finds credentials in the environment and on the machine.
Its own retries are off: they cannot be observed, they leave out HTTP 429 and a conditional write
whose connection broke, and they hide that an earlier attempt of such a write may have succeeded.

A file is mapped and sent in one request, so it is never in memory as a whole. A forked process
cannot use its parent's storage: obstore's threads do not survive the fork.
"""

import contextlib
import mmap
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import obstore.store
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError

from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.storage.base import (
    KEY,
    WRITER_METADATA,
    MissingObject,
    Request,
    StoredObject,
    disk_full_error,
    missing_object,
    refused_request,
    require_disk_space,
)
from dfkd.storage.bucket import BucketConnection, BucketStorage, folder_names

T = TypeVar("T")

STORES: dict[str, Any] = {"az": obstore.store.AzureStore, "gs": obstore.store.GCSStore}
TOTAL_SECONDS = 3600
"""Timeout of a whole request; the library's own limit of 30 seconds would cut large bodies off."""
BUSY_STATUSES = {408, 429, 500, 502, 503, 504, 507}
"""HTTP statuses after which the same request may succeed."""
ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL")
"""Variables of the environment from which obstore takes another endpoint than the service's own."""
PAGE = 1000
"""Entries of a listing that are handed over at once."""


@dataclass
class ObstoreConnection(BucketConnection):
    """The clients of a storage and all of its children."""

    _clients: dict[float, Any] = field(default_factory=dict)
    """Clients by their timeout for an answer."""

    def client(self, scheme: str, bucket: str, patience: float) -> Any:
        """obstore's client, which waits at most `patience` seconds for an answer to begin.

        Raises:
            ManifestError: the credentials or the endpoint in the environment cannot be read.
        """
        if patience in self._clients:
            return self._clients[patience]
        # Options of the argument `client_options` would replace those of the environment.
        options = {
            "connect_timeout": f"{int(self.limits.connect * 1000)}ms",
            "read_timeout": f"{int(patience * 1000)}ms",
            "timeout": f"{TOTAL_SECONDS}s",
        }
        for name in ENDPOINTS:
            address = os.environ.get(name, "")
            # obstore would panic. What stands before an @ may be a password.
            if address and not address.startswith(("http://", "https://")):
                raise ManifestError(
                    name, "must be an http(s) URL", address.rpartition("@")[2], "fix or unset it"
                )
            if address.startswith("http://"):
                options["allow_http"] = "true"
        try:
            made = STORES[scheme](bucket, config=options, retry_config={"max_retries": 0})
        except BaseError as error:
            raise no_credentials(scheme, error) from None
        self._clients[patience] = made
        return made


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
        body: bytes | mmap.mmap = b"" if isinstance(data, Path) else data
        if isinstance(data, Path) and size:  # an empty file cannot be mapped
            # The pages are read from the disk while they are sent. Never closed by hand: a request
            # that failed may hold the mapping a little longer.
            with data.open("rb") as stream:
                body = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        # At most `MAX_UPLOADS` bodies at once: more would share the bandwidth and time out.
        with self.connection.slots:
            try:
                client.put(name, body, use_multipart=False, **options)
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

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Storage.entries`."""
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
                yield StoredObject(key, item["size"], item["last_modified"].timestamp())

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


def _headline(error: Exception) -> str:
    """The text of an error without the dump of the request behind it."""
    return str(error).partition("Debug source:")[0]


def status(error: Exception) -> int:
    """The HTTP status in obstore's text of an error; 0 if there was no answer."""
    match = re.search(r"\bcode: (\d{3})\b", _headline(error))
    return int(match[1]) if match else 0


def reason(error: Exception) -> str:
    """One word for an error: the store's code, the HTTP status, or the kind of failure.

    Nothing else of obstore's text is ever shown, because its URLs may hold a signature.
    """
    if match := re.search(r"<Code>(\w+)</Code>", str(error)):
        return match[1]
    if number := status(error):
        return str(number)
    dump = str(error).partition("Debug source:")[2]
    match = re.search(r"HttpError {\s*kind: (\w+)", dump) or re.search(r"source: (\w+)", dump)
    return match[1] if match else type(error).__name__


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return status(error) in BUSY_STATUSES or "HTTP error" in _headline(error)


def no_credentials(scheme: str, error: Exception) -> ManifestError:
    """The error for credentials that are missing or cannot be read."""
    return ManifestError(
        "storage.root",
        f"needs credentials for {scheme}://",
        reason(error),
        "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or for gs:// "
        "GOOGLE_APPLICATION_CREDENTIALS, or use a machine that has an identity",
    )


def explain(error: Exception, scheme: str, location: str) -> DfkdError:
    """The `DfkdError` for obstore's error of a request about `location`."""
    word = reason(error)
    if "token request" in _headline(error):
        return no_credentials(scheme, error)
    if word in ("ContainerNotFound", "NoSuchBucket") or status(error) in (401, 403):
        return ManifestError(
            "storage.root", "must be a bucket you may use", f"{location} ({word})", "check it"
        )
    # obstore cannot list a prefix that holds an object with such a name.
    if word in ("EmptySegment", "BadSegment"):
        return ManifestError(
            "storage.root",
            "must hold no object that has an empty or relative part in its name",
            f"{location} ({word})",
            "remove the object or give another prefix",
        )
    if isinstance(error, FileNotFoundError):
        return missing_object(location)
    if status(error) and not is_transient(error):
        return refused_request(f"{location} ({word})")
    return InfrastructureError(
        f"storage: {location}: {word}; run the same command again, it resumes"
    )
