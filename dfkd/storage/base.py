"""Objects on a local directory or in an S3 bucket: whole values under keys, each write atomic.

The commit protocol needs only `put_if_absent`: not every store has a right compare-and-swap.
"""

import contextlib
import errno
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dfkd.errors import CorruptionError, InfrastructureError, ManifestError

KEY = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}/)*[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}")
"""No '..', no absolute path, no hidden name, nothing that a shell, a URL or a file system reads."""

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class MissingObject(CorruptionError):  # noqa: N818 - reads as what it is
    """There is no object under this key."""


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing tells of it."""

    key: str
    size: int
    """Bytes."""
    age: float
    """Seconds since it was written, by the store's own clock; at least 0."""


@dataclass
class Request:
    """One try of one request, as an observer is told of it when it is over."""

    operation: str
    """put, get, head, list or delete; of an upload in parts: begin, part, finish, abort."""
    attempt: int = 1
    """2 and more: an earlier try of the same request failed."""
    bytes: int = 0
    """Of the object or part that was sent or received, without headers; 0 of a failed put."""
    seconds: float = 0.0
    error: str = ""
    """A code such as SlowDown, or the name of an exception; empty if it was answered."""


Observer = Callable[[Request], object]
"""Called after every request, in the thread that made it; may be called by several at once."""


def ignore(request: Request) -> None:
    """The observer that nobody has asked for."""


class Storage(Protocol):
    """Objects under keys like `versions/0a/manifest.json`. Safe for threads and for processes."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Write or replace an object; readers see the old one or the new one, never a mixture."""

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Write an object unless there is one: True for exactly one of any number of writers."""

    def get(self, key: str, limit: int | None = None) -> bytes:
        """The object's bytes, of which at most `limit` are read; `MissingObject` if there is none.

        A reader that knows the size asks for one byte more: what is longer than that is damaged,
        and may be longer than memory.
        """

    def size(self, key: str) -> int:
        """The object's bytes, counted; `MissingObject` if there is none."""

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """The object's bytes `start .. stop - 1`, or what it has of them; `MissingObject` if there
        is none."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy the object into the local file `path`; `MissingObject` if there is none."""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """All keys that begin with `prefix`, in the order of their characters."""

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """What `list` gives, with sizes and ages; no more requests than `list`."""

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """The names directly under `prefix` (empty, or ending in '/') that have keys below them."""

    def delete(self, key: str) -> None:
        """Remove an object; none is no error."""

    def abort_uploads(self, older_than: float) -> int:
        """Remove uploads begun at least `older_than` seconds ago and not finished; their number.

        Such an upload is no object and in no listing. 0 in a directory: opening one tidies it.
        """

    def location(self, key: str = "") -> str:
        """The key's full path or URL, for people."""

    def child(self, prefix: str) -> "Storage":
        """The same storage with all keys under `prefix/`."""

    def observed(self, observe: Observer) -> "Storage":
        """The same storage, which tells `observe` of its requests and of its children's.

        An observer stays in its process: a storage that travels to another one has none there.
        """


def check_key(key: str) -> str:
    """`key` itself; `CorruptionError` if it could name anything but an object in the storage."""
    if not KEY.fullmatch(key):
        raise CorruptionError(
            f"object key {key!r}: must be names of letters, digits and ._=- joined by '/'; "
            "the object that names it was not written by dfkd, remove it"
        )
    return key


def split_root(field: str, root: str) -> tuple[str, str]:
    """The bucket and prefix of `s3://bucket/prefix`, or "" and the path of a directory.

    Raises:
        ManifestError: no storage serves it; `field` is what named it.
    """
    if ":/" not in root:
        return "", root
    scheme, _, place = root.partition("://")
    if scheme != "s3":
        raise ManifestError(
            field, "must be a directory or s3://bucket/prefix", root, "give one of the two"
        )
    bucket, _, prefix = place.partition("/")
    prefix = prefix.strip("/")
    if not BUCKET.fullmatch(bucket):
        raise ManifestError(
            field,
            "must name a bucket, and hold no credentials",
            root,
            "write s3://bucket/prefix; credentials come from the environment or a profile",
        )
    if prefix and not KEY.fullmatch(prefix):
        raise ManifestError(
            field,
            "must have a prefix of names of letters, digits and ._=- joined by '/'",
            root,
            "rename it",
        )
    return bucket, prefix


def missing_object(location: str) -> MissingObject:
    """The error for an object that is not at `location`."""
    return MissingObject(f"{location}: no such object; restore it or run the job that writes it")


@contextlib.contextmanager
def disk_full_error(target: Path, size: int) -> Iterator[None]:
    """Turn a full disk, while `size` bytes are written to `target`, into one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS:
            raise
        raise _full(target, size, str(error.strerror)) from None


def require_disk_space(target: Path, size: int) -> None:
    """Refuse (`InfrastructureError`) to write a file larger than what is free in its folder."""
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise _full(target, size, f"{free} bytes free")


def _full(target: Path, size: int, reason: str) -> InfrastructureError:
    return InfrastructureError(
        f"storage: no room for {target} ({size} bytes, {reason}); "
        "free disk space and run the same command again, it resumes"
    )
