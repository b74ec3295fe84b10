"""Storage in a local directory, and `open_storage` for any root.

S3 is in `dfkd.storage.s3`; Azure Blob and Google Cloud Storage are in `dfkd.storage.azure_gcs`.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Self

from dfkd.errors import CorruptionError, ManifestError
from dfkd.storage.base import (
    KEY,
    OPENING_ATTEMPTS,
    Observer,
    Request,
    Storage,
    StoredObject,
    byte_count,
    check_key,
    disk_full_error,
    ignore,
    missing_object,
    require_disk_space,
    split_root,
)
from dfkd.storage.bucket import BucketStorage

PARTIAL = ".partial"
"""Directory of unfinished files; no key can name it."""
UNFINISHED = re.compile(r"[0-9a-f]{32}(\.link)?")
"""Names of unfinished files."""
UNSUITABLE = frozenset(
    {
        *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV),
    }
)
"""Errors of a directory that cannot be a root. All others pass, such as a network file system's."""


def open_storage(root: str) -> Storage:
    """The storage at a directory (created if missing), or at one of `BUCKET_ROOTS`.

    Raises:
        ManifestError: not such a root, it cannot be written, it has no put-if-absent, or it needs
            an extra that is not installed.
    """
    store = _storage(root)
    store.prepare()
    return store


def open_to_read(root: str) -> Storage:
    """The storage at a root that is only read: it is neither created, tested nor cleaned.

    A directory need not exist, and then holds no keys. An unreachable store is an error within a
    minute, or within five if it accepts connections and never answers.

    Raises:
        ManifestError: not such a root, or it needs an extra that is not installed.
    """
    return _storage(root).with_attempts(OPENING_ATTEMPTS)


def require_no_link(root: str, name: str) -> None:
    """Raise `CorruptionError` if a folder in a root, which will be a root of its own, is a link.

    A run may come from a stranger, and its links must not lead to files of this machine.
    """
    open_to_read(root).exists(name)


def _storage(root: str) -> "LocalStorage | BucketStorage":
    """The storage at a root, before any request; raises as `open_to_read`."""
    scheme, bucket, path = split_root("storage.root", root)
    if not scheme:
        return LocalStorage(Path(path).absolute())
    # Imported here, because both libraries take long to import and a directory needs neither.
    if scheme == "s3":
        from dfkd.storage.s3 import S3Storage

        return S3Storage(bucket, path)
    try:
        from dfkd.storage.azure_gcs import ObstoreStorage
    except ImportError:
        raise ManifestError(
            "storage.root", "needs the extra obstore", "no obstore", "pip install -e '.[obstore]'"
        ) from None
    return ObstoreStorage(bucket, path, scheme=scheme)


def root_exists(root: str) -> bool:
    """Whether `root` names a bucket or an existing directory, so that opening creates nothing."""
    return "://" in root or Path(root).is_dir()


def open_existing(root: str, remedy: str) -> Storage:
    """`open_storage` for a root that must be there, because opening a folder would create it.

    Raises:
        ManifestError: as `require_existing` and `open_storage`.
    """
    require_existing(root, remedy)
    return open_storage(root)


def require_existing(root: str, remedy: str) -> None:
    """Raise `ManifestError` if `root` is a folder that does not exist."""
    if not root_exists(root):
        raise ManifestError("storage.root", "must be there", root, remedy)


@dataclass(frozen=True)
class LocalStorage:
    """A directory. A write fills a locked file in `.partial`, then links or renames it."""

    root: Path
    prefix: str = ""
    observe: Observer = field(default=ignore, repr=False, compare=False)

    def __reduce__(self) -> tuple[type["LocalStorage"], tuple[Path, str]]:
        return LocalStorage, (self.root, self.prefix)  # an observer cannot be pickled

    def prepare(self) -> None:
        """Create the directory, test it, and remove the files of killed writers."""
        folder = self.root / PARTIAL
        # A run may come from a stranger, and its links must not lead to files of this machine.
        if folder.is_symlink():
            rule = f"must have no link in place of {PARTIAL}"
            raise ManifestError("storage.root", rule, str(folder), "remove it")
        try:
            with disk_full_error(self.root, 1):
                folder.mkdir(parents=True, exist_ok=True)
                # `put_if_absent` needs hard links, which not every file system has.
                partial, stream = _open_partial(folder)
                link = partial.with_suffix(".link")
                with stream:
                    try:
                        os.link(partial, link)
                    finally:
                        partial.unlink(missing_ok=True)
                        link.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in UNSUITABLE:
                raise
            raise ManifestError(
                "storage.root",
                "must be a writable directory on a file system with hard links",
                f"{self.root} ({error.strerror})",
                "change it, or its owner or mode",
            ) from None
        # A writer that is alive holds a lock on its file; the kernel releases those of dead ones.
        for leftover in folder.iterdir():
            if not UNFINISHED.fullmatch(leftover.name) or leftover.is_symlink():
                continue
            # NFS gives an exclusive lock only on a file that is open for writing.
            with contextlib.suppress(OSError), leftover.open("r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        """The file of an object; `CorruptionError` for a key or link that leads out of the root, or
        for a pipe, a socket or a device in its place.
        """
        path = self.root / self.prefix / check_key(key)
        # The root itself may be a link, but nothing below it.
        inside = os.path.join(os.path.realpath(self.root), self.prefix, key)
        if os.path.realpath(path) != os.path.normpath(inside):
            raise CorruptionError(f"{path}: is reached through a link in the storage; remove it")
        # Whoever opens a pipe may wait for ever.
        with contextlib.suppress(OSError):  # it does not exist
            if stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                raise CorruptionError(f"{path}: must be a file; remove it")
        return path

    def put(self, key: str, data: bytes | Path) -> None:
        """See `Storage.put`."""
        target = self._path(key)
        with self._written(target, data) as partial:
            # A rename is atomic: readers see the old object or the new one.
            os.replace(partial, target)
            sync_directory(target.parent)

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """See `Storage.put_if_absent`."""
        target = self._path(key)
        if target.is_file():  # saves writing the data; `os.link` below decides
            return False
        with self._written(target, data) as partial:
            # A link fails if the name exists, so of several writers exactly one succeeds.
            try:
                os.link(partial, target)
            except FileExistsError:
                # NFS repeats a request whose answer was lost, and then finds its own link.
                if partial.stat().st_nlink < 2:
                    if target.is_dir():  # it has lost against no other writer
                        raise CorruptionError(f"{target}: must be a file; remove it") from None
                    return False
            sync_directory(target.parent)
        return True

    @contextlib.contextmanager
    def _written(self, target: Path, data: bytes | Path) -> Iterator[Path]:
        """Yield a synced file with `data`, locked against `prepare` in other processes."""
        size = byte_count(data)
        with self._observed("put", size), disk_full_error(target, size):
            # The names of new folders must be on the disk too, as those of their objects.
            folders = (target.parent, *target.parent.parents)
            above = itertools.takewhile(lambda each: each != self.root, folders)
            missing = [each for each in above if not each.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            for each in missing:
                sync_directory(each.parent)
            partial, stream = _open_partial(self.root / PARTIAL)
            try:
                with stream:
                    if isinstance(data, bytes):
                        stream.write(data)
                    else:
                        with data.open("rb") as source:
                            shutil.copyfileobj(source, stream, 1 << 20)
                    # The bytes must be on the disk before the name is: after a power cut an object
                    # is whole.
                    stream.flush()
                    os.fsync(stream.fileno())
                    yield partial
            finally:
                partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _observed(self, operation: str, size: int) -> Iterator[None]:
        """Report the block to the observer as a request of `size` bytes."""
        request = Request(operation)
        begun = time.perf_counter()
        try:
            yield
            request.bytes = size
        except Exception as error:
            request.error = type(error).__name__
            raise
        finally:
            request.seconds = time.perf_counter() - begun
            self.observe(request)

    def get(self, key: str, limit: int | None = None) -> bytes:
        """See `Storage.get`."""
        with self._opened(key, limit) as (stream, size):
            # `read` allocates what it is asked for, however short the file is.
            return stream.read(-1 if limit is None else min(limit, size))

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        with contextlib.suppress(FileNotFoundError):  # it may vanish between the two questions
            if (path := self._path(key)).is_file():
                return path.stat().st_size
        raise missing_object(self.location(key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """See `Storage.get_range`."""
        limit = max(0, stop - start)
        with self._opened(key, limit) as (stream, size):
            stream.seek(start)
            return stream.read(min(limit, size))

    def get_file(self, key: str, path: Path) -> None:
        """See `Storage.get_file`."""
        with self._opened(key) as (source, size):
            require_disk_space(path, size)
            with disk_full_error(path, size), path.open("wb") as target:
                shutil.copyfileobj(source, target)

    @contextlib.contextmanager
    def _opened(self, key: str, limit: int | None = None) -> Iterator[tuple[BinaryIO, int]]:
        """Yield an open object and its size, and report the block to the observer as a get.

        Args:
            limit: the maximal number of bytes that the block reads.
        """
        # Only the opening: a file that is missing in the block is another one.
        try:
            stream = self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise missing_object(self.location(key)) from None
        with stream:
            size = os.fstat(stream.fileno()).st_size
            try:
                with self._observed("get", size if limit is None else min(size, limit)):
                    yield stream, size
            except MemoryError:  # a sparse file has any size
                raise CorruptionError(
                    f"{self.location(key)}: its {size} bytes do not fit into memory; restore it, "
                    "or remove it"
                ) from None

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        folder, _, _ = prefix.rpartition("/")
        return _walk(self.root / self.prefix / folder, folder and f"{folder}/", prefix)

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Storage.entries`."""
        folder = str(self.root / self.prefix)
        # A listed key is a valid one, and a path from a text takes a third of the time of `_path`.
        for key in self.list(prefix):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                status = os.stat(f"{folder}/{key}")
                yield StoredObject(key, status.st_size, status.st_mtime)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See `Storage.folders`."""
        folder = self.root / self.prefix / prefix
        if not folder.is_dir():
            return ()
        names = (e.name for e in os.scandir(folder) if e.is_dir(follow_symlinks=False))
        return tuple(sorted(name for name in names if any(self.list(f"{prefix}{name}/"))))

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._path(key).unlink(missing_ok=True)

    def location(self, key: str = "") -> str:
        """See `Storage.location`."""
        return str(self.root / self.prefix / key)

    def child(self, prefix: str) -> "LocalStorage":
        """See `Storage.child`."""
        return replace(self, prefix=str(Path(self.prefix, check_key(prefix.removesuffix("/")))))

    def with_attempts(self, attempts: int) -> Self:
        """See `Storage.with_attempts`."""
        return self

    def observed(self, observe: Observer) -> "LocalStorage":
        """See `Storage.observed`; only put and get are reported."""
        return replace(self, observe=observe)


def sync_directory(folder: Path) -> None:
    """Write the names in a folder to the disk, so that a new object survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path, head: str, prefix: str) -> Iterator[str]:
    """Yield the keys with a prefix in and below a folder, sorted; `head` is the folder's key."""
    if not folder.is_dir():
        return
    # Directories are sorted as 'name/', which makes the whole walk sorted by the keys' characters.
    entries = (entry for entry in os.scandir(folder) if not entry.is_symlink())
    names = sorted(entry.name + "/" * entry.is_dir() for entry in entries)
    for name in names:
        key = head + name
        if name.startswith("."):
            continue
        if name.endswith("/"):
            # Folders that cannot hold a key with this prefix are not opened.
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(folder / name, key, prefix)
        elif key.startswith(prefix) and KEY.fullmatch(key):
            yield key


def _open_partial(folder: Path) -> tuple[Path, BinaryIO]:
    """A new file, opened for writing and locked."""
    while True:
        path = folder / uuid.uuid4().hex
        stream = path.open("xb")
        fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            return path, stream
        stream.close()  # another process's `prepare` removed it between open and lock
