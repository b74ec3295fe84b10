"""Cost of the driver: storage requests of whole versions, and tasks that do nothing."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar, cast

import ray

from dfkd.benchmarks.measure import Effort, Figure, Results
from dfkd.benchmarks.stand_in import StandInMaker, put_prompts, put_shards, temporary_root
from dfkd.cluster.capacity import Actor, worker_resources
from dfkd.cluster.connection import connected
from dfkd.cluster.pool import Pool
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import Task, tasks
from dfkd.dataset.published import open_version
from dfkd.dataset.versions import begin
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage

T = TypeVar("T")

COUNTED = ("put", "put_if_absent", "get", "get_range", "get_file", "size", "exists", "delete")
"""Operations of a storage that are one request each."""
SAMPLES = 5
"""Samples in a shard; their number does not change the number of requests."""
PAGE = 1000
"""Maximum number of keys in an object store's answer to one list request."""


@dataclass
class RequestCounts:
    """Requests by operation; `folders` and every `PAGE` keys of `list` count as one each."""

    by_operation: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, operation: str) -> None:
        """Count one request."""
        with self.lock:
            self.by_operation[operation] += 1

    def timed(self, work: Callable[[], T]) -> tuple[T, dict[str, Any]]:
        """The result of `work`, and its `seconds` and `requests` by operation."""
        # From 0, so that each request belongs to one piece of work.
        self.by_operation.clear()
        begun = time.perf_counter()
        result = work()
        seconds = round(time.perf_counter() - begun, 3)
        return result, {"requests": dict(sorted(self.by_operation.items())), "seconds": seconds}


class CountingStorage:
    """A storage that counts its requests and can be used as a `Storage`; see `counted`."""

    def __init__(self, storage: Storage, counts: RequestCounts) -> None:
        self._storage, self._counts = storage, counts

    def __getattr__(self, name: str) -> Any:
        """The attribute of the storage behind; a counted operation is wrapped."""
        attribute = getattr(self._storage, name)
        if name not in COUNTED:
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            self._counts.add(name)
            return attribute(*arguments, **options)

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


def counted(storage: Storage, counts: RequestCounts) -> Storage:
    """`storage`, with each request added to `counts`."""
    return cast(Storage, CountingStorage(storage, counts))


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Time tasks that do nothing, and count the requests of versions of several sizes.

    Returns:
        `figures`; `pool`, with the result of `idle_tasks` for each number of tasks; `requests`.
    """
    with connected():
        pools = [idle_tasks(manifest, count) for count in effort.tasks]
    figures = [
        Figure(f"{pool['tasks']} idle tasks", "tasks/s", (pool["tasks_per_s"],)) for pool in pools
    ]
    return {"pool": pools, "requests": requests(manifest, effort.shards), "figures": figures}


def requests(manifest: Manifest, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Requests and seconds for whole versions of several sizes, in this process.

    Args:
        manifest: for its classes; each size is a separate version, deleted afterwards.
        sizes: number of shards of each version, rising.

    Returns:
        For each size `shards`, and for each stage (prompts, shards, resume, publish, open)
        `requests` by operation and `seconds`.
    """
    single, results = manifest.with_method(manifest.method), []
    for size in sizes:
        per_class = SAMPLES * -(-size // len(manifest.classes))
        settings = {"images_per_class": per_class, "shard_size": SAMPLES}
        with temporary_root(single, synthesis=settings) as sized:
            results.append(_requests(sized, size))
    return results


def _requests(manifest: Manifest, size: int) -> dict[str, Any]:
    """Requests and seconds of each stage of a version of `size` shards."""
    planned = list(islice(tasks(manifest), size))
    stages: dict[str, Any] = {}
    counts = RequestCounts()
    # The version keeps this storage, so all of its requests pass the counter.
    home = counted(open_storage(manifest.storage.root), counts)
    version = begin(home, identity(manifest, {}))

    def stage(name: str, work: Callable[[], object]) -> None:
        _, stages[name] = counts.timed(work)

    stage("prompts", lambda: put_prompts(manifest, version))
    stage("shards", lambda: put_shards(StandInMaker(manifest), version, planned))
    stage("resume", version.done)
    stage("publish", lambda: version.publish(planned, {}))
    stage("open", lambda: open_version(version.home, version.id))
    return {"shards": len(planned), "stages": stages}


class Idle(Actor):
    """An actor whose tasks return at once."""

    def run(self, task: Task) -> str:
        """The task's name."""
        return task.id


def idle_tasks(manifest: Manifest, count: int) -> dict[str, Any]:
    """Run `count` tasks that do nothing.

    Args:
        manifest: its `cluster` section gives the number of workers and attempts.
        count: number of tasks.

    Returns:
        `tasks`, `workers` and `tasks_per_s`.
    """
    cluster = manifest.cluster
    share = worker_resources(cluster)
    actor: Any = ray.remote(Idle).options(max_restarts=0, max_task_retries=0, **share.options)
    pool: Pool[Task] = Pool(actor.remote, cluster.workers or count, cluster.attempts, share)
    # One task more, because the first one ends with the start of the workers, which is left out.
    ended = pool.run(Task(number // 100, number % 100, 0, 1) for number in range(count + 1))
    next(ended)
    begun = time.perf_counter()
    for _ in ended:
        pass
    rate = count / (time.perf_counter() - begun)
    return {"tasks": count, "workers": pool.largest, "tasks_per_s": round(rate, 1)}
