"""Building a version on a cluster: prompts, then the shard of every task, then publication."""

import contextlib
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa

from dfkd.cluster.capacity import require_shared_storage
from dfkd.cluster.metrics import WORKER_RATE, TaskReporter, count_request
from dfkd.cluster.prompt_worker import write_prompts
from dfkd.cluster.tracking import MeanLoss, ShardSummary, ShardTracker
from dfkd.cluster.worker import BudgetTracker, TaskResult, Worker, pool_of
from dfkd.config import fingerprint as fingerprints
from dfkd.config.budget import Budget
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method, has_dependent_parts, prompt_method
from dfkd.config.plan import (
    Task,
    Unit,
    estimated_bytes,
    fresh_tasks,
    image_count,
    part_name,
    task_count,
    tasks,
    units,
)
from dfkd.dataset.chain import Chain
from dfkd.dataset.publication import PROMPTS_KEY
from dfkd.dataset.published import refuse_removal
from dfkd.dataset.shards import parse_shard
from dfkd.dataset.versions import PublishedVersion, Receipt, Version, begin
from dfkd.errors import InfrastructureError, PartialError
from dfkd.models import generator, teacher
from dfkd.storage import layout
from dfkd.storage.cost_records import record_cost
from dfkd.storage.lease import reading
from dfkd.storage.local import Storage, open_storage, require_disk_space, require_root_space
from dfkd.synthesis.shard_maker import ShardMaker
from dfkd.utils.progress import bar

LIBRARIES = (
    "dfkd",
    "torch",
    "torchvision",
    "open_clip_torch",
    "taming-transformers",
    "timm",
    "pillow",
    "numpy",
)
"""Libraries whose version can change a pixel or a student; recorded if installed."""


@dataclass(frozen=True)
class Built:
    """A published version and its counts."""

    method: Method
    version: PublishedVersion
    images: int
    """The number of images in the version."""
    failed: int
    """Images that diverged at every attempt and are not in the version."""
    prompts: dict[str, Any]
    """Content of `prompts.json`: diversity and faithfulness of the prompts."""


def build(
    manifest: Manifest,
    identity: Mapping[str, Any],
    abandon: bool = False,
    accept_partial: bool = False,
    budget: Budget | None = None,
    make_current: bool = True,
) -> Built:
    """Make and publish the version of a manifest with one method; resumes unfinished work.

    Args:
        identity: the manifest's identity, from `identify`.
        abandon: leave unfinished work of another manifest behind; otherwise it is an error.
        accept_partial: publish although tasks are quarantined.
        budget: limit on what this call spends on prompts and shards.
        make_current: False publishes a candidate that readers do not use yet.

    Raises:
        BudgetError: the budget is spent; finished work is kept, and the same command resumes.
        PartialError: tasks are quarantined; all others are kept, and the same command retries.
        ManifestError: no node of the cluster can hold a worker.
    """
    method = manifest.method
    require_root_space(manifest.storage.root, estimated_bytes(manifest))
    require_shared_storage(manifest.storage.root)
    root = open_storage(manifest.storage.root).observed(count_request)
    version = Version(root.child(layout.data(method)), fingerprints.fingerprint(identity))
    # The lease protects an abandoned or old version from a jobs/clean.py that runs meanwhile.
    with reading(root, [f"{method}/{version.id}"]):
        begin(version.home, identity, abandon)
        quarantined = {} if version.published else _make_missing(manifest, root, version, budget)
        if quarantined and not accept_partial:
            _refuse_quarantined(manifest, version, quarantined)
        refuse_removal(version.home, version.id)
        published = version.publish(
            tasks(manifest), environment(), quarantined.keys(), make_current
        )
    images = sum(receipt.samples for receipt in published.shards)
    failed = sum(len(receipt.failed) for receipt in published.shards)
    return Built(method, published, images, failed, _prompts(version))


def _make_missing(
    manifest: Manifest, root: Storage, version: Version, budget: Budget | None
) -> dict[str, str]:
    """Make the missing prompts and shards; returns the reason for each quarantined task id."""
    with record_cost(root, "synthesize", manifest.method) as cost:
        budget_tracker = BudgetTracker(budget or Budget(), cost)
        write_prompts(manifest, version, budget_tracker)
        return write_shards(manifest, version, budget_tracker)


def _prompts(version: Version) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(version.storage.get(PROMPTS_KEY))
    return facts


def _refuse_quarantined(
    manifest: Manifest, version: Version, quarantined: Mapping[str, str]
) -> None:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(quarantined.items()))
    raise PartialError(
        f"version {version.id}: {len(quarantined)} of {task_count(manifest)} tasks quarantined "
        f"({reasons}); run the same command again, or add --accept-partial to publish without"
    )


def finished(manifest: Manifest, identity: Mapping[str, Any]) -> bool:
    """Whether the version of this identity is published already."""
    home = open_storage(manifest.storage.root).child(layout.data(manifest.method))
    return Version(home, fingerprints.fingerprint(identity)).published


def identify(manifest: Manifest, base: str = "") -> dict[str, Any]:
    """The identity of a manifest with one method, which the fingerprint hashes.

    It reads the weight files completely.

    Args:
        base: fingerprint of the version from which all tasks but the regenerated are carried over.
    """
    cache = manifest.cache
    weights = teacher.file_hashes(manifest.teacher, cache)
    if prompt_method(manifest.method):
        weights = weights | generator.file_hashes(manifest.generator, cache)
    return fingerprints.identity(manifest, weights, base)


def environment() -> dict[str, Any]:
    """Versions of Python and libraries, for published manifests and scores."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


class SynthesisWorker(Worker):
    """Makes the shards of units of tasks."""

    def run_task(self, unit: Unit) -> list[tuple[Receipt, ShardSummary]]:
        """Synthesise, write and commit a unit's tasks; returns receipt and summary of each."""
        # A maker that raises may be half-way through a part, so the next attempt loads a new one.
        maker, self._maker = self._maker or self._load(unit), None
        curve, started = MeanLoss(), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                size = estimated_bytes(self.manifest) * unit.count // image_count(self.manifest)
                require_disk_space(Path(folder, "shards"), size)
                prompts = self._prompts(unit)
                failed = maker.shards(unit, prompts, Path(folder), curve)
                committed = [
                    self._commit(task, Path(folder), failed[task], curve) for task in unit.tasks
                ]
            except OSError as error:
                raise InfrastructureError(
                    f"task {unit.id}: {error}; free space, run again"
                ) from None
        if has_dependent_parts(self.manifest.method):
            # The next part of a chained method continues from this state.
            Chain(self.version).keep(self.manifest, unit.part, maker.state())
        self._maker = maker
        rate = sum(summary.samples for _, summary in committed) / (time.perf_counter() - started)
        WORKER_RATE.set(rate, manifest=self.manifest.name, method=self.manifest.method)
        return committed

    def _load(self, unit: Unit) -> ShardMaker:
        manifest, loaded = self.manifest, self.load_teacher()
        chain, decoder = Chain(self.version), self.load_generator()
        earlier = partial(chain.images, manifest)
        maker = ShardMaker(manifest, loaded, decoder, self.notes.append, earlier)
        if has_dependent_parts(manifest.method) and unit.part:
            maker.restore(chain.states.read(unit.part))
        return maker

    def _prompts(self, unit: Unit) -> pa.Table:
        if len(unit.generated) == 1:
            return self.version.prompts(unit.generated[0])
        return self.version.prompt_part(part_name(unit.part))

    def _commit(
        self, task: Task, folder: Path, failed: tuple[int, ...], curve: MeanLoss
    ) -> tuple[Receipt, ShardSummary]:
        tar = folder / f"{task.id}.tar"
        receipt = self.version.commit(task, tar, failed)
        samples = list(parse_shard(tar.read_bytes(), receipt.shard))
        name = self.manifest.classes[task.class_index]
        return receipt, ShardSummary.of(name, samples, len(failed), curve, task.shard_index == 0)


def write_shards(
    manifest: Manifest,
    version: Version,
    budget_tracker: BudgetTracker,
    kind: type[Worker] = SynthesisWorker,
) -> dict[str, str]:
    """Make every task without a receipt on actors of class `kind`.

    Returns:
        The reason for each quarantined task, by task id.

    Raises:
        BudgetError: the budget is spent.
    """
    version.carry(fresh_tasks(manifest))
    done, chain = version.done(), Chain(version) if has_dependent_parts(manifest.method) else None
    # A chained method makes one unit after another, so one actor is all that it can use.
    sizes = [len(unit.generated) for unit in units(manifest, done)]
    left, largest = len(sizes), max(sizes, default=1)
    finished = sum(task.count for task in tasks(manifest) if task.id in done)
    method = manifest.method
    board = open_storage(manifest.storage.root).child(f"{layout.TENSORBOARD}synthesis-{method}")
    cost = budget_tracker.cost
    with (
        pool_of(manifest, kind, version, 1 if chain else left, largest) as pool,
        bar(f"{method} images", image_count(manifest), "img", finished) as progress,
        ShardTracker(board, manifest.synthesis.image_size, finished) as tracker,
    ):
        reporter = TaskReporter(manifest, version, pool)
        remaining = chain.units(manifest, done) if chain else units(manifest, done)
        for result in pool.run(remaining, lambda unit: budget_tracker.allows(pool, unit.count)):
            result.count(cost)
            cost.workers = pool.largest
            for receipt, summary in result.result:
                cost.images += receipt.samples
                cost.bytes += receipt.bytes
                tracker.record(summary)
                progress.update(receipt.samples)
            _report_done(result, pool.tries(result.unit), reporter)
            for note in result.notes:
                progress.say(f"note: task {result.unit}: {note}")
            progress.note(_failures(tracker.failed, len(pool.quarantine)))
        reporter.report_quarantined()
        progress.note(_failures(tracker.failed, len(pool.quarantine)))
    budget_tracker.finish(pool)
    if chain:
        return chain.close(manifest, pool.quarantine[0].reason if pool.quarantine else "")
    return {task.id: item.reason for item in pool.quarantine for task in item.task.tasks}


def _report_done(result: TaskResult[Any], tries: int, reporter: TaskReporter) -> None:
    """Report the tasks of a unit, and those that were quarantined meanwhile."""
    for receipt, summary in result.result:
        # The tasks of a unit are made together, so each counts an equal part of its time.
        seconds = result.seconds / len(result.result)
        reporter.report_done(receipt, summary.steps, seconds, result.node, tries)
    reporter.report_quarantined()


def _failures(images: int, tasks: int) -> str:
    """Text for the progress bar with the non-zero counts; empty if nothing failed."""
    counts = {"failed": images, "quarantined": tasks}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
