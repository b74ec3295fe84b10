"""The interface of storage: objects under keys, each write atomic.

The commit protocol needs only `put_if_absent`, because not every store has a correct
compare-and-swap.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, Self, TypeVar

from dfkd.errors import CorruptionError, InfrastructureError, ManifestError

A = TypeVar("A")
B = TypeVar("B")

KEY = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}/)*[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}")
"""Valid keys: no '..', no absolute path, no hidden name, and no character that is special in a
shell, a URL or a file system."""

BUCKETS = {
    "s3": re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "az": re.compile(r"(?=.{3,63}$)[a-z0-9]+(?:-[a-z0-9]+)*"),
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]"),
}
"""Valid names of buckets and containers, by the scheme of a root."""

BUCKET_ROOTS = "s3://bucket/prefix, az://container/prefix or gs://bucket/prefix"

PROBE = ".probe"
"""Key of the test object in every opened prefix; no caller can name it, and no listing shows it."""
WRITER_METADATA = "writer"
"""Metadata key for the id of the call that wrote an object.

After a lost answer it shows whether this call or another writer created the object."""
SMALL_OBJECT = 16 << 20
"""Bytes at most that are read of an object that dfkd writes with some kilobytes. A stranger's file
may claim any number, and take none of them on a disk."""
MAX_UPLOADS = 4
"""Maximal number of bodies that a storage and its children send at the same time."""
OPENING_ATTEMPTS = 5
"""Attempts while opening, so that an unreachable store fails within a minute, or within five if it
accepts connections and never answers; later requests wait longer."""
CLEANUP_ATTEMPTS = 2
"""Attempts of a request that may fail, such as the release of a lease, so that a job whose store is
gone shows its error soon."""

CONCURRENT_REQUESTS = 16
"""Requests of one caller in flight, because each one costs a network round trip."""

YOUNG_SECONDS = 60.0
"""Seconds in which a process has surely locked the temporary folder that it has made."""
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class MissingObject(CorruptionError):  # noqa: N818 - reads as what it is
    """There is no object under this key."""


@dataclass(frozen=True)
class StoredObject:
    """An entry of a listing."""

    key: str
    size: int
    """Bytes."""
    written: float
    """When the object was written, in seconds since 1970 by the store's clock."""

    @property
    def age(self) -> float:
        """Seconds since the object was written, at least 0; see `lease.py` about clocks."""
        return max(0.0, time.time() - self.written)


@dataclass
class Request:
    """One attempt at a request, reported to an observer after its end."""

    operation: str
    """put, get, head, list or delete."""
    attempt: int = 1
    """Number of the attempt; more than 1 after failed attempts of the same request."""
    bytes: int = 0
    """Bytes of the body that was sent or received; 0 for a failed put."""
    seconds: float = 0.0
    error: str = ""
    """A code such as SlowDown, or the name of an exception; empty after success."""


Observer = Callable[[Request], object]
"""Called after every request, in the thread of the request; must be safe for threads."""


def ignore(request: Request) -> None:
    """The default observer, which does nothing."""


class Storage(Protocol):
    """Objects under keys like `versions/0a/version.json`. Safe for threads and for processes."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Write or replace an object; readers see either the old or the new one, whole."""

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Write an object unless it exists; returns True for exactly one of several writers."""

    def get(self, key: str, limit: int | None = None) -> bytes:
        """The first `limit` bytes of the object; `MissingObject` if there is none.

        A reader that knows the size passes the size plus one. It then notices a longer object,
        which is damaged and may not fit into memory.
        """

    def size(self, key: str) -> int:
        """The object's size in bytes; `MissingObject` if there is none."""

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """The object's bytes `start .. stop - 1`, fewer if it ends before; or `MissingObject`."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy the object into the local file `path`; `MissingObject` if there is none."""

    def exists(self, key: str) -> bool:
        """Whether the object exists."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """All keys that begin with `prefix`, sorted by their characters."""

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """The keys of `list` with sizes and times, from the same requests."""

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """The names directly under `prefix` (empty, or ending in '/') that have keys below them."""

    def delete(self, key: str) -> None:
        """Remove an object; does nothing if there is none."""

    def location(self, key: str = "") -> str:
        """The key's full path or URL, for messages."""

    def child(self, prefix: str) -> "Storage":
        """The same storage with all keys under `prefix/`; the slash may be given or not."""

    def with_attempts(self, attempts: int) -> Self:
        """The same storage with at most so many attempts for each request.

        A directory has no attempts, so it returns itself.
        """

    def observed(self, observe: Observer) -> "Storage":
        """The same storage, which calls `observe` after each request of itself or its children.

        Pickling drops the observer, so a storage that is sent to another process has none there.
        """


def in_order(
    request: Callable[[A], B],
    items: Iterable[A],
    threads: int = CONCURRENT_REQUESTS,
    ahead: int = CONCURRENT_REQUESTS,
) -> Generator[B]:
    """Yield `request(item)` for each item in order; `threads` calls run at a time.

    The items are drawn one at a time, and at most `ahead` results wait in memory.
    """
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads, "dfkd-request")
    try:
        pending: deque[Future[B]] = deque(
            pool.submit(request, item) for item in islice(remaining, ahead)
        )
        while pending:
            result = pending.popleft().result()
            # The next call starts before the yield, so it runs while the consumer works.
            pending.extend(pool.submit(request, item) for item in islice(remaining, 1))
            yield result
    finally:
        # A consumer may stop early: calls that have not started yet are dropped.
        pool.shutdown(cancel_futures=True)


def check_key(key: str) -> str:
    """Return `key`; raise `CorruptionError` if it could name something outside the storage."""
    if not KEY.fullmatch(key):
        raise CorruptionError(
            f"object key {key!r}: must be names of letters, digits and ._=- joined by '/'; "
            "the object that names it was not written by dfkd, remove it"
        )
    return key


def split_root(field: str, root: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix of a root such as `s3://bucket/prefix`.

    For a directory they are "", "" and its path.

    Args:
        field: the manifest key that an error names.

    Raises:
        ManifestError: not such a root.
    """
    # Also catches `s3:/bucket`, which would otherwise silently become a local directory.
    if ":/" not in root:
        return "", "", root
    scheme, _, path = root.partition("://")
    if scheme not in BUCKETS:
        raise ManifestError(field, f"must be a directory, {BUCKET_ROOTS}", root, "give one of them")
    bucket, _, prefix = path.partition("/")
    prefix = prefix.strip("/")
    if not BUCKETS[scheme].fullmatch(bucket):
        raise ManifestError(
            field,
            "must name a bucket or container as its store allows, and hold no credentials",
            root,
            f"write {BUCKET_ROOTS}; credentials come from the environment or the machine",
        )
    # A prefix becomes the beginning of every key, so the same rule holds for it.
    if prefix and not KEY.fullmatch(prefix):
        raise ManifestError(
            field,
            "must have a prefix of names of letters, digits and ._=- joined by '/'",
            root,
            "rename it",
        )
    return scheme, bucket, prefix


def byte_count(data: bytes | Path) -> int:
    """The size in bytes of an object's data, which may be in a file."""
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def missing_object(location: str) -> MissingObject:
    """The error for a missing object at `location`."""
    return MissingObject(f"{location}: no such object; restore it or run the job that writes it")


def refused_request(what: str) -> ManifestError:
    """The error for a request that the store will refuse again; `what` is its place and reason."""
    return ManifestError(
        "storage.root",
        "must be a store that accepts this request",
        what,
        "check the credentials, the bucket's settings and what the store supports",
    )


@contextlib.contextmanager
def disk_full_error(target: Path, size: int = 0) -> Iterator[None]:
    """Turn the error of a full disk into `InfrastructureError` while `target` is written.

    Args:
        size: bytes that are written, for the message; 0: unknown.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS:
            raise
        raise _full(target, size, str(error.strerror)) from None


def require_disk_space(target: Path, size: int) -> None:
    """Raise `InfrastructureError` if the folder of `target` has less than `size` bytes free."""
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise _full(target, size, f"{free} bytes free")


def _full(target: Path, size: int, reason: str) -> InfrastructureError:
    """The error for a disk without room; freeing some is enough for the same command to resume."""
    known = f"{size} bytes, " if size else ""
    return InfrastructureError(
        f"storage: no room for {target} ({known}{reason}); "
        "free disk space and run the same command again, it resumes"
    )


def require_root_space(root: str, size: int) -> None:
    """Raise `ManifestError` if `root` is on a disk with less than `size` bytes free."""
    if "://" in root:
        return
    folder = Path(root).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ManifestError(
            "storage.root",
            f"needs {size} bytes of free disk for this run",
            f"{free} bytes free at {folder}",
            "free space, or give another storage.root",
        )


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder on this machine's disk, locked while it is in use.

    First removes those of killed processes, which may hold gigabytes.

    Args:
        prefix: the first letters of its name, which all folders of this purpose have.
    """
    for abandoned in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Another process may have made a young one and not have locked it yet.
        with contextlib.suppress(OSError), _locked(abandoned, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.time() - abandoned.stat().st_mtime > YOUNG_SECONDS:
                shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix) as name, _locked(Path(name), fcntl.LOCK_SH):
        yield Path(name)


@contextlib.contextmanager
def _locked(folder: Path, lock: int) -> Iterator[None]:
    """Hold a lock on a folder, which the kernel releases if this process dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, lock)
        yield
    finally:
        os.close(descriptor)
