"""Leases: a name that one process holds for a while, and versions that nobody may remove meanwhile.

    leases/{name}/{n:08d}.json    numbered, each written once by its holder; the highest holds
    leases/readers/{id}.json      of those who only read, any number at once

Each is {holder, expires, released, versions}. A holder writes a later `expires` into its own object
again and again; one that has died is succeeded by the next number. Clocks of the machines that
share a root must agree to well within the length of a lease.
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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from dfkd.errors import CorruptionError, DfkdError, LeaseError
from dfkd.storage import layout
from dfkd.storage.local import MissingObject, Storage
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import CHECKED

READERS = "readers"
READER_SECONDS = 600.0
"""Length of a reader's lease."""
RENEWALS_PER_LEASE = 3
"""Within the length of a lease, so that two may fail."""

NUMBERED = re.compile(r"leases/(?P<name>[a-z]+)/(?P<number>[0-9]{8})\.json")

Clock = Callable[[], float]


@checked(frozen=True, kw_only=True, config=CHECKED)
class Record:
    """The content of a lease's object."""

    holder: str
    """Host and process, for people."""
    expires: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Seconds since 1970."""
    released: bool
    versions: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """`{method}/{id}` of versions that are kept while it is held."""

    def held(self, now: float) -> bool:
        """Whether its holder may still be at work."""
        return not self.released and now < self.expires


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds, until another one has to believe it dead."""

    storage: Storage
    key: str
    holder: str
    seconds: float
    versions: tuple[str, ...] = ()
    clock: Clock = time.time

    @property
    def name(self) -> str:
        """What it is a lease of."""
        return self.key.split("/")[1]

    def record(self, released: bool = False) -> bytes:
        """What its object says from now on."""
        expires = self.clock() + self.seconds
        record = Record(
            holder=self.holder, expires=expires, released=released, versions=self.versions
        )
        return canonical(asdict(record))

    def renew(self) -> None:
        """Hold it for its whole length from now on."""
        self.storage.put(self.key, self.record())

    def release(self) -> None:
        """Let the next one have it."""
        self.storage.put(self.key, self.record(released=True))

    def fence(self) -> None:
        """Raise `LeaseError` if another process has taken over; else it is renewed."""
        self.renew()
        key, found = newest_lease(self.storage, self.name)
        if key != self.key:
            raise _refusal(self.name, found)


def acquire(
    storage: Storage,
    name: str,
    seconds: float,
    versions: Iterable[str] = (),
    clock: Clock = time.time,
) -> Lease:
    """Take the lease `name`, which is free, released or expired; one of several takers gets it.

    Args:
        storage: the run's root.
        seconds: after which it expires if it is not renewed.
        versions: `{method}/{id}` of versions that are kept while it is held.

    Raises:
        LeaseError: another process holds it; names that and until when.
    """
    key, found = newest_lease(storage, name)
    if found and found.held(clock()):
        raise _refusal(name, found)
    number = _number(key) + 1 if key else 1
    lease = Lease(storage, _key(name, number), _holder(), seconds, tuple(versions), clock)
    if not storage.put_if_absent(lease.key, lease.record()):
        raise _refusal(name, newest_lease(storage, name)[1])
    return lease


@contextmanager
def holding(
    storage: Storage, name: str, seconds: float, versions: Iterable[str] = ()
) -> Iterator[Lease]:
    """Hold a lease, renewed by a thread, and release it at the end; raises as `acquire` does."""
    lease = acquire(storage, name, seconds, versions)
    try:
        with _renewing(lease):
            yield lease
    finally:
        lease.release()


@contextmanager
def reading(
    storage: Storage, versions: Iterable[str], seconds: float = READER_SECONDS
) -> Iterator[None]:
    """Keep versions (`{method}/{id}`) from being removed while they are read."""
    key = f"{layout.LEASES}{READERS}/{uuid.uuid4().hex}.json"
    lease = Lease(storage, key, _holder(), seconds, tuple(versions))
    lease.renew()
    try:
        with _renewing(lease):
            yield
    finally:
        storage.delete(key)


@contextmanager
def _renewing(lease: Lease) -> Iterator[None]:
    """Renew it in a thread; what fails is tried again, and `fence` tells of what was lost."""
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(lease.seconds / RENEWALS_PER_LEASE):
            with contextlib.suppress(DfkdError, OSError):
                lease.renew()

    thread = threading.Thread(target=renew, name=f"dfkd-lease-{lease.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def newest_lease(storage: Storage, name: str) -> tuple[str, Record | None]:
    """Key and content of the lease with the highest number; ("", None) before the first."""
    keys = [key for key in storage.list(f"{layout.LEASES}{name}/") if NUMBERED.fullmatch(key)]
    return (keys[-1], read(storage, keys[-1])) if keys else ("", None)


def read(storage: Storage, key: str) -> Record:
    """The lease in an object; `CorruptionError` if it is none, `MissingObject` if it is gone."""
    try:
        return TypeAdapter(Record).validate_json(storage.get(key), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise CorruptionError(
            f"{storage.location(key)}: not a lease ({problem}); delete it once nobody holds it"
        ) from None


def held_leases(storage: Storage, clock: Clock = time.time) -> dict[str, Record]:
    """All leases that are held now, by key: the highest of each name, and every reader's."""
    last: dict[str, str] = {}
    for key in storage.list(layout.LEASES):
        last[key.rpartition("/")[0] if NUMBERED.fullmatch(key) else key] = key
    found = {}
    for key in last.values():
        with contextlib.suppress(MissingObject):  # a reader has just ended
            found[key] = read(storage, key)
    return {key: record for key, record in found.items() if record.held(clock())}


def _key(name: str, number: int) -> str:
    return f"{layout.LEASES}{name}/{number:08d}.json"


def _number(key: str) -> int:
    match = NUMBERED.fullmatch(key)
    return int(match["number"]) if match else 0


def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _refusal(name: str, found: Record | None) -> LeaseError:
    holder = found.holder if found else "another process"
    until = datetime.fromtimestamp(found.expires if found else 0, UTC).isoformat(" ", "seconds")
    return LeaseError(
        f"lease {name}: is held by {holder} until {until}; run the same command when it has ended"
    )
