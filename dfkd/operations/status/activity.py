"""Who is at work under a root, and what the ended calls have cost."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from dfkd.storage import cost_records
from dfkd.storage.base import Storage
from dfkd.storage.lease import held_leases


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds a lease."""

    holder: str
    """Host and process id."""
    versions: tuple[str, ...]
    """`{method}/{id}` of what it works on; empty for a job that works on no certain version."""
    since_seconds: float
    """Seconds since it took the lease."""
    expires_seconds: float
    """Seconds until the lease ends unless it is renewed. A killed process does not renew it."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the ended calls of a stage have cost; a call at work adds its own when it ends."""

    stage: str
    method: str
    seed: int | None
    seconds: float
    worker_seconds: float
    images: int
    bytes: int


@dataclass(frozen=True)
class Activity:
    """The processes at work, and the cost so far."""

    holders: tuple[Holder, ...]
    cost: tuple[Cost, ...]

    @classmethod
    def read(cls, root: Storage) -> "Activity":
        """The activity under a root, from its leases and cost records.

        Raises:
            CorruptionError: a lease or a record is damaged.
        """
        # The clocks of the machines that share a root agree well enough for leases.
        now = time.time()
        holders = tuple(
            Holder(
                holder=record.holder,
                versions=record.versions,
                since_seconds=max(0.0, now - record.since),
                expires_seconds=record.expires - now,
            )
            for record in held_leases(root).values()
        )
        entries = cost_records.read(root)
        cost = tuple(_sum(list(group)) for _, group in groupby(entries, lambda each: each.key))
        return cls(holders, cost)

    @cached_property
    def since(self) -> Mapping[str, float]:
        """Seconds since the newest lease of each leased version was taken, by `{method}/{id}`."""
        found: dict[str, float] = {}
        for each in self.holders:
            for version in each.versions:
                found[version] = min(each.since_seconds, found.get(version, each.since_seconds))
        return found

    def processes(self, version: str) -> int:
        """The number of processes at work on `{method}/{id}`."""
        return sum(version in each.versions for each in self.holders)

    def rate(self, stage: str, method: str, seed: int | None = None) -> float | None:
        """Images per second of the ended calls of a stage; None if there are none."""
        for each in self.cost:
            if (each.stage, each.method, each.seed) == (stage, method, seed):
                return each.images / each.seconds if each.images and each.seconds else None
        return None


def _sum(entries: list[cost_records.CostRecord]) -> Cost:
    """The sum of a record's entries."""
    first = entries[0]
    return Cost(
        stage=first.stage,
        method=first.method,
        seed=first.seed,
        seconds=sum(each.seconds for each in entries),
        worker_seconds=sum(each.worker_seconds for each in entries),
        images=sum(each.images for each in entries),
        bytes=sum(each.bytes for each in entries),
    )
