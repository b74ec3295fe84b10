"""A whole run without models: plan, prompts, receipts, index, publication, readers, and removal.

What is left without models is what grows with the number of shards: the driver, the storage and the
files of a version.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar

from dfkd.benchmarks.driver import RequestCounts
from dfkd.benchmarks.measure import Effort, Figure, Results
from dfkd.benchmarks.stand_in import EMBEDDING, StandInMaker
from dfkd.cluster.connection import connected
from dfkd.cluster.synthesis import identify, write_missing
from dfkd.cluster.tracking import ShardSummary
from dfkd.cluster.worker import SynthesisWorker, synthesis_pool
from dfkd.config.manifest import Manifest, StorageConfig
from dfkd.config.plan import Unit, image_count, task_count, tasks
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import PublishedVersion, current
from dfkd.dataset.shards import Receipt
from dfkd.dataset.versions import begin
from dfkd.errors import InfrastructureError
from dfkd.pipeline import garbage_collection
from dfkd.pipeline.status.run import read_status
from dfkd.storage import layout
from dfkd.storage.cost_records import CostCounter
from dfkd.storage.local import open_storage
from dfkd.utils.hardware import environment
from dfkd.utils.memory import watched

T = TypeVar("T")

CHECKED_SHARDS = 20
"""Number of shards that are read back, evenly spaced."""

BATCHES = 10
"""Number of batches read from a stream."""


class ScaleWorker(SynthesisWorker):
    """A `SynthesisWorker` that makes its shards without models."""

    def do_unit(self, unit: Unit) -> list[tuple[Receipt, ShardSummary]]:
        """Make, write and commit a stand-in for the shard of each task of a unit."""
        self._maker = self._maker or StandInMaker(self.manifest)
        return super().do_unit(unit)


def sized(manifest: Manifest, classes: int) -> Manifest:
    """The manifest with one method and, unless `classes` is 0, that many made-up classes.

    The root is a separate folder, so that no reader of the run ever sees a stand-in.

    Raises:
        ManifestError: `classes` is 1.
    """
    single = manifest.with_method(manifest.method)
    if classes:
        single = single.with_classes(tuple(f"thing {number}" for number in range(classes)))
    root = StorageConfig(root=f"{manifest.storage.root.rstrip('/')}/benchmarks/scale")
    return dataclasses.replace(single, storage=root)


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Time a whole run without models, at the size given by the manifest and --classes."""
    with connected():
        return _build_and_read(sized(manifest, effort.classes))


def _build_and_read(manifest: Manifest) -> Results:
    """Build the version of a manifest from `sized` without models, then open and read it.

    Finished tasks of an earlier run are reused; `found_tasks` is their number.

    Returns:
        The sizes; and for each step its `seconds`, its `memory` as in `Watch.summary`, and the
        `requests` of this process by operation (of a folder puts and gets only). The steps are
        prompts and shards, publish, open, check, stream, status and plan a removal.
    """
    counts = RequestCounts()
    root = open_storage(manifest.storage.root).observed(lambda each: counts.add(each.operation))
    home = root.child(layout.data(manifest.method))
    unfinished = begin(home, identify(manifest))
    reused_tasks = len(unfinished.done())  # a resumed run is faster than a whole one
    steps: dict[str, Any] = {}

    def step(name: str, work: Callable[[], T]) -> T:
        counts.by_operation.clear()
        with watched() as watch:
            begun = time.perf_counter()
            result = work()
            seconds = time.perf_counter() - begun
        requests = dict(sorted(counts.by_operation.items()))
        steps[name] = {
            "seconds": round(seconds, 3),
            "memory": watch.summary(),
            "requests": requests,
        }
        return result

    with synthesis_pool(manifest.cluster) as pool:
        failed = step(
            "prompts and shards",
            lambda: write_missing(manifest, unfinished, CostCounter(), pool, kind=ScaleWorker),
        )
    if failed:
        raise InfrastructureError(
            f"benchmark: {len(failed)} tasks failed; run it again, it resumes"
        )
    step("publish", lambda: unfinished.publish(tasks(manifest), environment()))
    version = step("open", lambda: current(home))
    assert version is not None  # noqa: S101 - it has just been published
    step("check", lambda: _check(version))
    step("stream", lambda: _stream(manifest, version))
    step("status", lambda: read_status(root, manifest, lambda job: job))
    step("plan a removal", lambda: garbage_collection.plan(root, manifest, 1, 0.0))
    figures = [Figure(f"scale, {name}", "s", (cost["seconds"],)) for name, cost in steps.items()]
    sizes = _sizes(manifest, version)
    return {**sizes, "found_tasks": reused_tasks, "steps": steps, "figures": figures}


def _sizes(manifest: Manifest, version: PublishedVersion) -> dict[str, Any]:
    """Counts and bytes of the version."""
    return {
        "classes": len(manifest.classes),
        "images": image_count(manifest),
        "tasks": task_count(manifest),
        "samples": version.manifest["samples"],
        "shard_bytes": version.manifest["bytes"],
        "manifest_bytes": version.storage.size("manifest.json"),
        "index_bytes": version.storage.size("index.parquet"),
        "embedding": EMBEDDING,
    }


def _check(version: PublishedVersion) -> None:
    """Read some shards as a reader does, including verification."""
    interval = max(1, len(version.shards) // CHECKED_SHARDS)
    for receipt in version.shards[::interval]:
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
