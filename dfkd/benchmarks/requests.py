"""What a version asks of its storage: requests of each kind, counted on the way."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from dfkd.benchmarks.scratch import changed, scratch
from dfkd.benchmarks.standin import StandIn, put_prompts, put_shards
from dfkd.dataset import begin, open_version
from dfkd.fingerprint import identity
from dfkd.manifest import Manifest
from dfkd.plan import tasks
from dfkd.storage import Storage, open_storage

COUNTED = ("put", "put_if_absent", "get", "get_range", "get_file", "size", "exists", "delete")
SAMPLES = 5
"""Of a shard: their number changes no request."""
PAGE = 1000
"""Keys that an object store gives in answer to one request for a list."""


@dataclass
class Counts:
    """Requests by operation; `folders` and every `PAGE` keys of `list` are one each."""

    by_operation: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, operation: str) -> None:
        """One more."""
        with self.lock:
            self.by_operation[operation] += 1


class Counted:
    """A storage that counts what is asked of it. Stands for a `Storage`; see `counted`."""

    def __init__(self, storage: Storage, counts: Counts) -> None:
        self._storage, self._counts = storage, counts

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if name not in COUNTED:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._counts.add(name)
            return found(*arguments, **options)

        return call

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        number = -1
        for number, key in enumerate(self._storage.list(prefix)):
            if number % PAGE == 0:
                self._counts.add("list")
            yield key
        if number < 0:
            self._counts.add("list")

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See `Storage.folders`."""
        self._counts.add("list")
        return self._storage.folders(prefix)

    def child(self, prefix: str) -> "Storage":
        """See `Storage.child`."""
        return counted(self._storage.child(prefix), self._counts)


def counted(storage: Storage, counts: Counts) -> Storage:
    """`storage`, with each request added to `counts`."""
    return cast(Storage, Counted(storage, counts))


def measure(manifest: Manifest, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Requests and seconds of whole versions with so many shards, in this process.

    Args:
        manifest: whose classes are taken; each size is a version of its own, deleted afterwards.
        sizes: shards of each version, rising.

    Returns:
        For each size `shards`, and for each stage (prompts, shards, resume, publish, open)
        `requests` by operation and `seconds`.
    """
    found = []
    for size in sizes:
        with scratch(_sized(manifest, size)) as sized:
            found.append(_measure(sized, size))
    return found


def _sized(manifest: Manifest, shards: int) -> Manifest:
    """The manifest with small shards, so many or a few more."""
    shards_per_class = -(-shards // len(manifest.classes))
    return changed(
        manifest.with_method(manifest.method),
        synthesis={"images_per_class": SAMPLES * shards_per_class, "shard_size": SAMPLES},
    )


def _measure(manifest: Manifest, size: int) -> dict[str, Any]:
    planned = list(islice(tasks(manifest), size))
    stages: dict[str, Any] = {}
    counts = Counts()
    home = counted(open_storage(manifest.storage.root), counts)
    version = begin(home, identity(manifest, {}))

    def stage(name: str, work: Callable[[], object]) -> None:
        counts.by_operation.clear()
        begun = time.perf_counter()
        work()
        seconds = round(time.perf_counter() - begun, 3)
        stages[name] = {"requests": dict(sorted(counts.by_operation.items())), "seconds": seconds}

    stage("prompts", lambda: put_prompts(manifest, version))
    stage("shards", lambda: put_shards(StandIn(manifest), version, planned))
    stage("resume", version.done)
    stage("publish", lambda: version.publish(planned, {}))
    stage("open", lambda: open_version(version.home, version.id))
    return {"shards": len(planned), "stages": stages}
