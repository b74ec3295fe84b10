"""What storage in a bucket has in common, whichever service it belongs to."""

import threading
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from dfkd.errors import DfkdError, ManifestError
from dfkd.storage.base import (
    KEY,
    MAX_UPLOADS,
    OPENING_ATTEMPTS,
    PROBE,
    MissingObject,
    Observer,
    Request,
    Storage,
    byte_count,
    check_key,
    ignore,
)
from dfkd.storage.retries import Limits

T = TypeVar("T")


@dataclass
class BucketConnection:
    """The clients of a storage and all of its children; a subclass makes them."""

    limits: Limits = field(default_factory=Limits)
    observe: Observer = ignore
    slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MAX_UPLOADS)
    )
    """Limits the number of bodies that are sent at the same time."""

    def __reduce__(self) -> tuple[type[Self], tuple[Limits]]:
        return type(self), (self.limits,)  # clients and observers cannot be pickled


@dataclass(frozen=True)
class BucketStorage(Storage):
    """A prefix of a bucket. A subclass makes the requests.

    Every object is sent in one request. Uploads in parts are not used, because not every store has
    conditions for them, and because a killed writer would leave an unfinished upload. Only shards
    of images could become too large for one request.
    """

    bucket: str
    prefix: str = ""
    # Clients hold credentials, so they are in no repr.
    connection: Any = field(default=None, repr=False, compare=False)
    scheme: str = field(kw_only=True)
    """One of `BUCKETS`."""

    max_put_bytes: ClassVar[int]
    """The store's maximal size of an object in a single request."""

    @abstractmethod
    def _attempt(self, operation: str, key: str, send: Callable[[Request], T]) -> T:
        """Call `send` again while the store is busy or answers are lost; returns its result.

        Raises:
            DfkdError: in place of the library's errors, whose texts may hold credentials.
        """

    @abstractmethod
    def _send(
        self, request: Request, name: str, data: bytes | Path, size: int, writer: str = ""
    ) -> bool:
        """Send a whole object of `size` bytes in one request; returns whether it was written.

        Args:
            name: the object's name in the bucket.
            writer: if given, the object is written with this id in its metadata under
                `WRITER_METADATA`, and only if it does not exist.
        """

    @abstractmethod
    def _writer(self, key: str, name: str) -> str:
        """The id of the call that wrote an object; empty if another program wrote it."""

    @property
    def _head(self) -> str:
        """What every key in the bucket begins with."""
        return self.prefix and f"{self.prefix}/"

    def _name(self, key: str) -> str:
        """The name of an object in the bucket; `CorruptionError` for an invalid key."""
        return self._head + check_key(key)

    def prepare(self) -> None:
        """Raise `ManifestError` if a second put-if-absent succeeds too.

        It takes one request if an earlier call has left its object, else two.
        """
        store, name = self.with_attempts(OPENING_ATTEMPTS), self._head + PROBE
        if store._put_once(PROBE, name, b"") and store._put_once(PROBE, name, b""):
            raise ManifestError(
                "storage.root",
                "must be a store that honours If-None-Match or x-goog-if-generation-match",
                self.location(),
                "use AWS S3, Ceph, Azure, Google Cloud or a directory: in this store two writers "
                "would both win",
            )

    def put(self, key: str, data: bytes | Path) -> None:
        """See `Storage.put`."""
        name, size = self._name(key), self._size_of(key, data)
        self._attempt("put", key, lambda request: self._send(request, name, data, size))

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """See `Storage.put_if_absent`."""
        return self._put_once(key, self._name(key), data)

    def _put_once(self, key: str, name: str, data: bytes | Path) -> bool:
        """Write an object unless it exists; returns whether this call has written it."""
        # Retries keep the same id, so an object with this id was written by this call.
        size, writer = self._size_of(key, data), uuid.uuid4().hex

        def send(request: Request) -> tuple[bool, bool]:
            """Whether this attempt wrote the object; and whether an earlier one may have."""
            written = self._send(request, name, data, size, writer)
            return written, not written and request.attempt > 1

        won, in_doubt = self._attempt("put", key, send)
        # An earlier attempt may have written the object although its answer was lost.
        return won or (in_doubt and self._writer(key, name) == writer)

    def _size_of(self, key: str, data: bytes | Path) -> int:
        """Bytes of an object's data; `DfkdError` if they are too many for one request."""
        size = byte_count(data)
        if size > self.max_put_bytes:
            raise DfkdError(
                f"storage: {self.location(key)}: an object has at most {self.max_put_bytes} bytes, "
                f"got {size}; lower synthesis.shard_size"
            )
        return size

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        try:
            self.size(key)
        except MissingObject:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        return (entry.key for entry in self.entries(prefix))

    def location(self, key: str = "") -> str:
        """See `Storage.location`."""
        return f"{self.scheme}://{self.bucket}/{self._head}{key}"

    def child(self, prefix: str) -> Self:
        """See `Storage.child`."""
        return replace(self, prefix=self._name(prefix.removesuffix("/")))

    def with_attempts(self, attempts: int) -> Self:
        """See `Storage.with_attempts`."""
        retries = replace(self.connection.limits.retries, attempts=attempts)
        limits = replace(self.connection.limits, retries=retries)
        return replace(self, connection=replace(self.connection, limits=limits))

    def observed(self, observe: Observer) -> Self:
        """See `Storage.observed`."""
        return replace(self, connection=replace(self.connection, observe=observe))


def folder_names(paths: Iterable[str]) -> tuple[str, ...]:
    """The names of listed folders, sorted, without those that dfkd cannot have written."""
    names = (path.rstrip("/").rpartition("/")[2] for path in paths)
    return tuple(sorted(name for name in names if KEY.fullmatch(name)))
