"""A whole run without models: plan, prompts, receipts, index, publication, readers, and removal.

What is left without models is what grows with the number of shards: the driver, the storage and the
files of a version.
"""

import dataclasses
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dfkd.cluster.connection import connected
from dfkd.cluster.making import identify, write_missing
from dfkd.cluster.worker import Worker, synthesis_engine
from dfkd.config.manifest import Manifest, StorageConfig
from dfkd.config.plan import blocks, image_count, task_count
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import PublishedVersion, current
from dfkd.dataset.versions import Version, begin
from dfkd.errors import InfrastructureError, ManifestError
from dfkd.lab.benchmarks.measure import Effort, Results, figure
from dfkd.lab.benchmarks.memory import watched
from dfkd.lab.benchmarks.stand_in import EMBEDDING, StandInMaker
from dfkd.operations import garbage_collection
from dfkd.operations.status.run import read_status
from dfkd.storage import layout
from dfkd.storage.base import Request
from dfkd.storage.cost_records import CostCounter
from dfkd.storage.local import open_storage
from dfkd.utils.hardware import environment

T = TypeVar("T")

CHECKED_SHARDS = 20
"""Number of shards that are read back, evenly spaced."""

MAX_CLASSES = 1_000_000
"""Maximum number of made-up classes: every process holds their names."""

BATCHES = 10
"""Number of batches read from a stream."""


class ScaleWorker(Worker):
    """A `Worker` that makes its shards without models."""

    def load_maker(self) -> Any:
        """A maker of stand-ins."""
        return StandInMaker(self.manifest)


def fill(manifest: Manifest, version: Version, kind: type[Worker] = ScaleWorker) -> dict[str, str]:
    """Make what a version lacks, by workers of a class without models; returns the reason for each
    quarantined task id.
    """
    with synthesis_engine(manifest.cluster, kind) as engine:
        return write_missing(manifest, version, CostCounter(), engine)


def sized(manifest: Manifest, classes: int) -> Manifest:
    """The manifest with the method `vanilla` and, unless `classes` is 0, that many made-up classes.

    A chained method would ask for the state of a model, and here is none. The root is a separate
    folder, so that no reader of the run ever sees a stand-in.

    Raises:
        ManifestError: `classes` is 1, or more than `MAX_CLASSES`.
    """
    single = manifest.with_method("vanilla")
    if classes > MAX_CLASSES:
        raise ManifestError("--classes", f"must be at most {MAX_CLASSES}", classes, "lower it")
    if classes:
        single = single.with_classes(tuple(f"thing {number}" for number in range(classes)))
    root = StorageConfig(root=f"{manifest.storage.root.rstrip('/')}/benchmarks/scale")
    return dataclasses.replace(single, storage=root)


@dataclass
class Steps:
    """What each step of a run cost this process."""

    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By step its `seconds`, its `memory` as in `Watch.summary`, its `requests`, and the `received`
    bytes."""
    requests: Counter[str] = field(default_factory=Counter)
    """Number of requests by operation, of the step in progress; of a folder puts and gets only."""
    received: int = 0
    """Bytes of the objects that were read in the step in progress."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, request: Request) -> None:
        """Count a request, which may come from any thread."""
        with self.lock:
            self.requests[request.operation] += 1
            if request.operation == "get":
                self.received += request.bytes

    def do(self, name: str, work: Callable[[], T]) -> T:
        """Do a step, and note its cost; returns its result."""
        self.requests.clear()
        self.received = 0
        with watched() as watch:
            begun = time.perf_counter()
            result = work()
            seconds = round(time.perf_counter() - begun, 3)
        self.costs[name] = {
            "requests": dict(sorted(self.requests.items())),
            "received": self.received,
            "seconds": seconds,
            "memory": watch.summary(),
        }
        return result


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Build the version of a manifest without models, then open and read it.

    Finished tasks of an earlier run are reused; `found_tasks` is their number.

    Returns:
        The sizes, and `steps`, as in `Steps.costs`.
    """
    manifest = sized(manifest, effort.classes)
    steps = Steps()
    root = open_storage(manifest.storage.root).observed(steps.count)
    home = root.child(layout.data(manifest.method))
    with connected():
        unfinished = begin(home, identify(manifest))
        reused_tasks = len(unfinished.done())  # a resumed run is faster than a whole one
        failed = steps.do("prompts and shards", lambda: fill(manifest, unfinished))
        if failed:
            raise InfrastructureError(
                f"benchmark: {len(failed)} tasks failed; run it again, it resumes"
            )
        steps.do("publish", lambda: unfinished.publish(blocks(manifest), environment()))
        version = steps.do("open", lambda: current(home))
        assert version is not None  # noqa: S101 - it has just been published
        steps.do("check", lambda: _check(version))
        steps.do("stream", lambda: _stream(manifest, version))
        steps.do("status", lambda: read_status(root, manifest, lambda job: job))
        steps.do("plan a removal", lambda: garbage_collection.plan(root, manifest, 1, 0.0))
    receipt_bytes, index_bytes = (
        sum(entry.size for entry in version.storage.entries(folder))
        for folder in (layout.RECEIPTS, layout.INDEX)
    )
    return {
        "classes": len(manifest.classes),
        "images": image_count(manifest),
        "tasks": task_count(manifest),
        "samples": version.facts["samples"],
        "shard_bytes": version.facts["bytes"],
        "manifest_bytes": version.storage.size(layout.PUBLISHED),
        "receipt_bytes": receipt_bytes,
        "index_bytes": index_bytes,
        "embedding": EMBEDDING,
        "found_tasks": reused_tasks,
        "steps": steps.costs,
        "figures": [
            figure(f"scale, {name}", "s", [cost["seconds"]]) for name, cost in steps.costs.items()
        ],
    }


def _check(version: PublishedVersion) -> None:
    """Read some shards as a reader does, including verification."""
    interval = max(1, version.facts["shards"] // CHECKED_SHARDS)
    for receipt in itertools.islice(version.receipts(), 0, None, interval):
        for _ in version.samples(receipt):
            pass


def _stream(manifest: Manifest, version: PublishedVersion) -> None:
    """Draw the order of an epoch and read its first batches."""
    size, batch = manifest.synthesis.image_size, manifest.distillation.batch_size
    batches = Stream(version, size, batch, seed=0).batches(epoch=0)
    for _ in zip(range(BATCHES), batches, strict=False):
        pass
    # The stream reads ahead in a thread, which would go on.
    batches.close()
