"""Objects on a local directory or in an S3 bucket: whole values under keys, each write atomic.

The commit protocol needs only `put_if_absent`: not every store has a right compare-and-swap.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import boto3
import botocore.config
import botocore.exceptions

from dfkd.errors import CorruptionError, InfrastructureError, ManifestError

KEY = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}/)*[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}")
"""No '..', no absolute path, no hidden name, nothing that a shell, a URL or a file system reads."""

PARTIAL = ".partial"
"""Directory of files being written; no key can name it."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ATTEMPTS = 5


class MissingObject(CorruptionError):  # noqa: N818 - reads as what it is
    """There is no object under this key."""


class Storage(Protocol):
    """Objects under keys like `versions/0a/manifest.json`. Safe for threads and for processes."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Write or replace an object; readers see the old one or the new one, never a mixture."""

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Write an object unless there is one: True for exactly one of any number of writers."""

    def get(self, key: str) -> bytes:
        """The object's bytes; `MissingObject` if there is none."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy the object into the local file `path`; `MissingObject` if there is none."""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """All keys that begin with `prefix`, in the order of their characters."""

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """The names directly under `prefix` (empty, or ending in '/') that have keys below them."""

    def delete(self, key: str) -> None:
        """Remove an object; none is no error."""

    def location(self, key: str = "") -> str:
        """The key's full path or URL, for people."""

    def child(self, prefix: str) -> "Storage":
        """The same storage with all keys under `prefix/`."""


def open_storage(root: str) -> Storage:
    """The storage at a directory (made if missing) or at `s3://bucket/prefix`.

    Raises:
        ManifestError: it cannot be written, or the store does not honour put-if-absent.
    """
    if root.startswith("s3://"):
        bucket, _, prefix = root.removeprefix("s3://").strip("/").partition("/")
        store = S3Storage(bucket, prefix)
        store.probe()
        return store
    if "://" in root:
        raise ManifestError("storage.root", "a directory or s3://", root, "give one of the two")
    local = LocalStorage(Path(root).absolute())
    local.prepare()
    return local


def require_space(root: str, size: int) -> None:
    """Refuse a local `root` on a disk with less than `size` bytes free (`ManifestError`)."""
    if "://" in root:
        return
    place = Path(root).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise ManifestError(
            "storage.root",
            f"needs {size} bytes of free disk for this run",
            f"{free} bytes free at {place}",
            "free space, or give another storage.root",
        )


def check_key(key: str) -> str:
    """`key` itself; `CorruptionError` if it could name anything but an object in the storage."""
    if not KEY.fullmatch(key):
        raise CorruptionError(
            f"object key {key!r}: must be names of letters, digits and ._=- joined by '/'; "
            "the object that names it was not written by dfkd, remove it"
        )
    return key


@dataclass(frozen=True)
class LocalStorage:
    """A directory. A write goes to a locked file in `.partial`, then is linked or renamed."""

    root: Path
    prefix: str = ""

    def prepare(self) -> None:
        """Make the directory and remove what killed writers left behind."""
        try:
            (self.root / PARTIAL).mkdir(parents=True, exist_ok=True)
            writable = os.access(self.root / PARTIAL, os.W_OK | os.X_OK)
        except OSError as error:
            raise ManifestError(
                "storage.root",
                "must be a directory",
                f"{self.root} ({error.strerror})",
                "change it",
            ) from None
        if not writable:
            raise ManifestError(
                "storage.root", "must be writable", str(self.root), "change its owner or mode"
            )
        for leftover in (self.root / PARTIAL).iterdir():
            _remove_unless_locked(leftover)

    def _path(self, key: str) -> Path:
        return self.root / self.prefix / check_key(key)

    def put(self, key: str, data: bytes | Path) -> None:
        """See `Storage.put`."""
        target = self._path(key)
        with self._written(target, data) as partial:
            os.replace(partial, target)
            _sync_directory(target.parent)

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """See `Storage.put_if_absent`."""
        target = self._path(key)
        if target.exists():
            return False
        with self._written(target, data) as partial:
            try:
                os.link(partial, target)
            except FileExistsError:
                return False
            _sync_directory(target.parent)
        return True

    @contextlib.contextmanager
    def _written(self, target: Path, data: bytes | Path) -> Iterator[Path]:
        """A synced file with `data`, locked so that `prepare` elsewhere leaves it alone."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial, stream = _open_partial(self.root / PARTIAL)
            try:
                with stream:
                    _copy(data, stream)
                    yield partial
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise InfrastructureError(
                f"storage: no room for {target} ({size} bytes, {error.strerror}); "
                "free disk space and run the same command again, it resumes"
            ) from None

    def get(self, key: str) -> bytes:
        """See `Storage.get`."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _missing(self.location(key)) from None

    def get_file(self, key: str, path: Path) -> None:
        """See `Storage.get_file`."""
        try:
            shutil.copyfile(self._path(key), path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _missing(self.location(key)) from None

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        folder, _, _ = prefix.rpartition("/")
        return _walk(self.root / self.prefix / folder, folder and f"{folder}/", prefix)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See `Storage.folders`."""
        place = self.root / self.prefix / prefix
        if not place.is_dir():
            return ()
        names = (entry.name for entry in os.scandir(place) if entry.is_dir())
        return tuple(sorted(name for name in names if any(self.list(f"{prefix}{name}/"))))

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._path(key).unlink(missing_ok=True)

    def location(self, key: str = "") -> str:
        """See `Storage.location`."""
        return str(self.root / self.prefix / key)

    def child(self, prefix: str) -> "LocalStorage":
        """See `Storage.child`."""
        return LocalStorage(self.root, str(Path(self.prefix, check_key(prefix))))


def _missing(location: str) -> MissingObject:
    return MissingObject(f"{location}: no such object; restore it or run the job that writes it")


def _walk(folder: Path, head: str, prefix: str) -> Iterator[str]:
    if not folder.is_dir():
        return
    # A directory sorts as 'name/', so that the whole walk is in the order of the keys' characters.
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    for name in names:
        key = head + name
        if name.startswith("."):
            continue
        if name.endswith("/"):
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(folder / name, key, prefix)
        elif key.startswith(prefix) and KEY.fullmatch(key):
            yield key


def _copy(data: bytes | Path, stream: BinaryIO) -> None:
    if isinstance(data, bytes):
        stream.write(data)
    else:
        with data.open("rb") as source:
            shutil.copyfileobj(source, stream, 1 << 20)
    stream.flush()
    os.fsync(stream.fileno())


def _open_partial(folder: Path) -> tuple[Path, BinaryIO]:
    while True:
        path = folder / uuid.uuid4().hex
        stream = path.open("xb")
        fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            return path, stream
        stream.close()  # another process's `prepare` removed it between open and lock


def _remove_unless_locked(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class S3Storage:
    """A prefix of an S3 bucket. Credentials, region and endpoint come from boto3's own sources."""

    bucket: str
    prefix: str = ""

    @cached_property
    def _client(self) -> Any:
        config = botocore.config.Config(
            retries={"mode": "standard", "max_attempts": ATTEMPTS}, s3={"addressing_style": "path"}
        )
        return boto3.client("s3", config=config)

    def __reduce__(self) -> tuple[type["S3Storage"], tuple[str, str]]:
        return S3Storage, (self.bucket, self.prefix)  # a client cannot travel to another process

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def probe(self) -> None:
        """Refuse (`ManifestError`) a store in which a second put-if-absent wins too."""
        key = f"probe-{uuid.uuid4().hex}"
        try:
            if not self.put_if_absent(key, b"1") or self.put_if_absent(key, b"2"):
                raise ManifestError(
                    "storage.root",
                    "a store that honours PUT with If-None-Match",
                    self.location(),
                    "use AWS S3, Ceph or a directory: in this store two writers would both win",
                )
        finally:
            self.delete(key)

    def put(self, key: str, data: bytes | Path) -> None:
        """See `Storage.put`."""
        self._put(key, data)

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """See `Storage.put_if_absent`."""
        for _ in range(ATTEMPTS):
            try:
                self._put(key, data, IfNoneMatch="*")
            except _Conflict as conflict:
                if conflict.settled:
                    return False
            else:
                return True
        raise InfrastructureError(
            f"storage: {self.location(key)} stays contended; run the same command again"
        )

    def _put(self, key: str, data: bytes | Path, **conditions: str) -> None:
        with contextlib.ExitStack() as stack:
            body = data if isinstance(data, bytes) else stack.enter_context(data.open("rb"))
            with self._explained(key):
                self._client.put_object(
                    Bucket=self.bucket, Key=self._name(key), Body=body, **conditions
                )

    def get(self, key: str) -> bytes:
        """See `Storage.get`."""
        with self._explained(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key))
            data: bytes = answer["Body"].read()
            return data

    def get_file(self, key: str, path: Path) -> None:
        """See `Storage.get_file`."""
        with self._explained(key), path.open("wb") as stream:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key))
            shutil.copyfileobj(answer["Body"], stream, 1 << 20)

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        try:
            with self._explained(key):
                self._client.head_object(Bucket=self.bucket, Key=self._name(key))
        except MissingObject:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        for page in self._pages(prefix):
            for item in page.get("Contents", ()):
                yield item["Key"].removeprefix(self._head)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See `Storage.folders`."""
        pages = self._pages(prefix, Delimiter="/")
        below = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ()))
        return tuple(sorted(name.rstrip("/").rpartition("/")[2] for name in below))

    @property
    def _head(self) -> str:
        return self.prefix and f"{self.prefix}/"

    def _pages(self, prefix: str, **options: str) -> Iterator[Any]:
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self.bucket, Prefix=self._head + prefix, **options)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        with self._explained(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def location(self, key: str = "") -> str:
        """See `Storage.location`."""
        return f"s3://{self.bucket}/{self._head}{key}"

    def child(self, prefix: str) -> "S3Storage":
        """See `Storage.child`."""
        return S3Storage(self.bucket, self._name(prefix))

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise _explain(error, self.location(key)) from None
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.NoRegionError) as error:
            raise ManifestError(
                "storage.root", "needs S3 credentials", str(error), "set AWS_* or a profile"
            ) from None
        except botocore.exceptions.BotoCoreError as error:
            raise InfrastructureError(
                f"storage: {self.location(key)}: {error}; run the same command again, it resumes"
            ) from None


class _Conflict(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, settled: bool) -> None:
        super().__init__("precondition")
        self.settled = settled


def _explain(error: botocore.exceptions.ClientError, location: str) -> Exception:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 412:
        return _Conflict(settled=True)
    if status == 409:  # a concurrent writer is at work and may still fail: ask again
        return _Conflict(settled=False)
    if code in ("NoSuchKey", "404", "NotFound"):
        return _missing(location)
    if code in ("NoSuchBucket", "AccessDenied", "403", "InvalidAccessKeyId", "PermanentRedirect"):
        return ManifestError(
            "storage.root", "must be reachable", f"{location} ({code})", "check it"
        )
    return InfrastructureError(
        f"storage: {location}: {code or status}; run the same command again, it resumes"
    )
