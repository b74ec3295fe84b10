"""Leases: a process holds a name alone, or protects versions from removal, for a limited time.

    leases/{name}/{n:08d}.json    numbered, each created by one holder; the highest number counts
    leases/readers/{id}.json      leases of readers, any number at once, each for some versions

Each object is {holder, since, expires, released, versions}. A holder regularly writes a later
`expires` into its own object. When it has died, another process creates the next number. The clocks
of the store and of the machines that share it must agree to well within the length of a lease.
"""

import contextlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from dfkd.errors import CorruptionError, DfkdError, LeaseError
from dfkd.storage import layout
from dfkd.storage.base import CLEANUP_ATTEMPTS, SMALL_OBJECT, MissingObject, Storage
from dfkd.utils.strict_json import canonical, read_as
from dfkd.utils.types import CHECKED

READERS = "readers"
SECONDS = 600.0
"""Length of a lease, after which another call may take over from a holder that has died."""
RENEWALS_PER_LEASE = 3
"""Renewals within the length of a lease, so that one of them may fail."""

NUMBERED = re.compile(rf"{layout.LEASES}(?P<name>[a-z]+)/(?P<number>[0-9]{{8}})\.json")
OF_READER = re.compile(rf"{layout.LEASES}{READERS}/[0-9a-f]{{32}}\.json")
LEASE = re.compile(f"{NUMBERED.pattern}|{OF_READER.pattern}")
"""Matches the key of any lease."""


@checked(frozen=True, kw_only=True, config=CHECKED)
class LeaseRecord:
    """The content of a lease's object."""

    holder: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,255}:[0-9]{1,10}$")]
    """Host and process id, for messages."""
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """When the holder acquired the lease, in seconds since 1970."""
    expires: Annotated[float, Field(ge=0, le=253402300799)]
    """Seconds since 1970, before the year 10000."""
    released: bool
    versions: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """`{method}/{id}` of the versions that must not be removed while this lease is held."""

    def held(self, now: float) -> bool:
        """Whether the holder may still be working at the time `now`."""
        return not self.released and now < self.expires


_RECORD = TypeAdapter(LeaseRecord)


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds as long as it renews it in time."""

    storage: Storage
    key: str
    holder: str
    since: float
    """See `LeaseRecord.since`."""
    versions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that is leased."""
        return self.key.split("/")[1]

    def record(self, released: bool = False) -> bytes:
        """The content of its object if it is renewed (or released) now."""
        record = LeaseRecord(
            holder=self.holder,
            since=self.since,
            expires=time.time() + SECONDS,
            released=released,
            versions=self.versions,
        )
        return canonical(asdict(record))

    def renew(self) -> None:
        """Extend the lease to its full length from now on."""
        self.storage.put(self.key, self.record())

    def release(self) -> None:
        """Give the lease up, so that another process can acquire it at once."""
        self.storage.put(self.key, self.record(released=True))

    def fence(self) -> None:
        """Renew the lease; raise `LeaseError` if another process has taken over."""
        # The renewal comes first: a process that looks from now on sees this lease as held.
        self.renew()
        key, newest = newest_lease(self.storage, self.name)
        if key != self.key:
            raise _refusal(self.name, newest)


def acquire(storage: Storage, name: str) -> Lease:
    """Acquire the lease `name` under a run's root if it is free, released or expired.

    Raises:
        LeaseError: another process holds the lease; the text names its holder and its end.
    """
    # A released or expired lease is left as it is: the next number says that another holds it now.
    key, newest = newest_lease(storage, name)
    now = time.time()
    if newest and newest.held(now):
        raise _refusal(name, newest)
    match = NUMBERED.fullmatch(key)
    number = int(match["number"]) if match else 0
    lease = Lease(storage, layout.lease(name, number + 1), _holder(), now)
    # Several processes may have computed the same number; put-if-absent lets one of them win.
    if not storage.put_if_absent(lease.key, lease.record()):
        raise _refusal(name, newest_lease(storage, name)[1])
    # A holder that was suspended beyond its end may have renewed its lease, and passed its fence,
    # after the look above. Its renewal comes before its listing, so it shows here.
    with contextlib.suppress(MissingObject):
        if number and (renewed := read(storage, key)).held(time.time()):
            # Not released: the next call would look at this lease only, and take the name.
            storage.delete(lease.key)
            raise _refusal(name, renewed)
    return lease


@contextmanager
def holding(storage: Storage, name: str) -> Iterator[Lease]:
    """Hold a lease inside the block, renewed by a thread; raises `LeaseError` as `acquire`."""
    lease = acquire(storage, name)
    # Released also after an error, so that the same command need not wait for the lease to expire.
    with _renewing(lease, Lease.release):
        yield lease


@contextmanager
def protecting(storage: Storage, versions: Iterable[str]) -> Iterator[None]:
    """Hold a lease that keeps `versions` (`{method}/{id}`) from removal inside the block, whether
    they are read or made.
    """
    key = f"{layout.LEASES}{READERS}/{uuid.uuid4().hex}.json"
    lease = Lease(storage, key, _holder(), time.time(), tuple(versions))
    # Readers do not exclude each other, so each has an object of its own and no number.
    lease.renew()
    with _renewing(lease, lambda background: background.storage.delete(key)):
        yield


@contextmanager
def _renewing(lease: Lease, end: Callable[[Lease], None]) -> Iterator[None]:
    """Renew the lease in a thread inside the block, and `end` it afterwards.

    All of these requests may fail: the next renewal comes soon, `fence` notices if the lease was
    lost, and one that cannot be ended expires.
    """
    background = replace(lease, storage=lease.storage.with_attempts(CLEANUP_ATTEMPTS))
    stop = threading.Event()

    def renew() -> None:
        """Renew until the block has ended."""
        while not stop.wait(SECONDS / RENEWALS_PER_LEASE):
            with contextlib.suppress(DfkdError, OSError):
                background.renew()

    # A daemon thread does not keep a process alive that has died of an error.
    thread = threading.Thread(target=renew, name=f"dfkd-lease-{lease.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(DfkdError, OSError):  # the block's own error counts
            end(background)


def newest_lease(storage: Storage, name: str) -> tuple[str, LeaseRecord | None]:
    """Key and content of the lease with the highest number; ("", None) if there is none."""
    keys = [key for key in storage.list(f"{layout.LEASES}{name}/") if NUMBERED.fullmatch(key)]
    for key in reversed(keys):
        # A process that has backed out in favour of the holder before it has deleted its own.
        with contextlib.suppress(MissingObject):
            return key, read(storage, key)
    return "", None


def read(storage: Storage, key: str) -> LeaseRecord:
    """The content of a lease's object.

    Raises:
        CorruptionError: the object is not a lease.
        MissingObject: the object was deleted.
    """
    try:
        return read_as(_RECORD, storage.get(key, SMALL_OBJECT))
    except ValueError as error:
        raise CorruptionError(
            f"{storage.location(key)}: not a lease ({error}); delete it once nobody holds it"
        ) from None


def held_leases(storage: Storage) -> dict[str, LeaseRecord]:
    """All leases that are held now, by key: the highest number of each name, and all readers."""
    # Keys are listed in ascending order, so the last one of a name has the highest number.
    last: dict[str, str] = {}
    for key in filter(LEASE.fullmatch, storage.list(layout.LEASES)):
        last[key.rpartition("/")[0] if NUMBERED.fullmatch(key) else key] = key
    records = {}
    for key in last.values():
        with contextlib.suppress(MissingObject):  # a reader has just ended
            records[key] = read(storage, key)
    # A holder that died is no longer held once it has missed its renewals.
    return {key: record for key, record in records.items() if record.held(time.time())}


def _holder() -> str:
    """Host and process id of this process."""
    host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())[:255] or "host"
    return f"{host}:{os.getpid()}"


def _refusal(name: str, record: LeaseRecord | None) -> LeaseError:
    """The error for a lease that another process holds."""
    holder = "another process"
    if record:
        until = datetime.fromtimestamp(record.expires, UTC).isoformat(" ", "seconds")
        holder = f"{record.holder} until {until}"
    return LeaseError(f"lease {name}: is held by {holder}; run the same command when it has ended")
