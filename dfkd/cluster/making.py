"""Building a version on a cluster: prompts, then the shard of every task, then publication.

This is the driver's side; `worker.py` is the worker's. The driver lists what is in storage,
has the rest made, and publishes. It knows nothing that storage does not hold, so it may be killed.
"""

import contextlib
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfkd.cluster.connection import require_shared_storage
from dfkd.cluster.engine import Engine, Quarantined
from dfkd.cluster.metrics import count_request, report_quarantined, report_task
from dfkd.cluster.tracking import Forecast, ShardSummary, ShardTracker
from dfkd.cluster.work_order import PromptProgress, ready_work
from dfkd.cluster.worker import UnitResult, synthesis_engine
from dfkd.config import identity as identities
from dfkd.config.hashing import fingerprint
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.config.plan import (
    PromptPart,
    Unit,
    blocks,
    estimated_bytes,
    fresh_tasks,
    image_count,
    task_count,
    tasks,
    units,
)
from dfkd.dataset.published import PublishedVersion, refuse_removal
from dfkd.dataset.receipts import Receipt
from dfkd.dataset.versions import Version, begin
from dfkd.errors import BudgetError, DfkdError, InfrastructureError, PartialError
from dfkd.models import labeller
from dfkd.storage import layout
from dfkd.storage.base import Storage, require_root_space
from dfkd.storage.cost_records import CostCounter, record_cost
from dfkd.storage.lease import protecting
from dfkd.storage.local import open_storage
from dfkd.utils.hardware import environment
from dfkd.utils.progress import Progress, bar, say

REASONS = 3
"""Number of quarantined tasks whose reasons the error repeats."""


@dataclass(frozen=True)
class BuiltVersion:
    """A published version and its counts."""

    method: Method
    version: PublishedVersion
    prompts: dict[str, Any]
    """Content of `prompts.json`: diversity and faithfulness of the prompts."""

    @property
    def images(self) -> int:
        """The number of images in the version."""
        return int(self.version.facts["samples"])

    @property
    def failed(self) -> int:
        """The number of images that diverged at every attempt and are not in the version."""
        return int(self.version.facts["failed"])


def build(
    manifest: Manifest,
    identity: Mapping[str, Any],
    abandon: bool = False,
    accept_partial: bool = False,
    worker_seconds: float = math.inf,
    make_current: bool = True,
    engine: Engine[Any] | None = None,
) -> BuiltVersion:
    """Make and publish the version of a manifest with one method; resumes unfinished work.

    Args:
        identity: the manifest's identity, from `identify`.
        abandon: leave unfinished work of another manifest behind; otherwise it is an error.
        accept_partial: publish although tasks are quarantined.
        worker_seconds: limit of all workers' time; begun tasks are finished.
        make_current: False publishes a challenger that readers do not use yet.
        engine: its workers are used; None starts some, which end with this call.

    Raises:
        BudgetError: `worker_seconds` are spent; the same command resumes.
        PartialError: tasks are quarantined; the same command tries them again.
        ManifestError: no node of the cluster can hold a worker.
    """
    require_shared_storage(manifest.storage.root)
    root = open_storage(manifest.storage.root).observed(count_request)
    version = _version(root, manifest, identity)
    require_space([(manifest, identity)])
    # The lease protects an abandoned or old version from a dfkd clean that runs meanwhile. It
    # comes before `begin`, which looks for the mark of a removal: so one of the two sees the other.
    with protecting(root, [f"{manifest.method}/{version.id}"]):
        begin(version.home, identity, abandon)
        quarantined = {}
        if not version.published:
            version.lift_quarantine()
            with (
                record_cost(root, "synthesize", manifest.method) as cost,
                contextlib.ExitStack() as own,
            ):
                workers = engine or own.enter_context(synthesis_engine(manifest.cluster))
                quarantined = write_missing(manifest, version, cost, workers, worker_seconds)
        if quarantined and not accept_partial:
            shown = [f"{name}: {reason}" for name, reason in sorted(quarantined.items())[:REASONS]]
            if len(quarantined) > REASONS:
                shown.append("dfkd status shows more, with --json all")
            raise PartialError(
                f"version {version.id}: {len(quarantined)} of {task_count(manifest)} tasks "
                f"quarantined ({'; '.join(shown)}); run the same command again; dfkd synthesize "
                "--accept-partial publishes without them"
            )
        # Checked again, because a driver that was suspended may have lost its lease meanwhile.
        refuse_removal(version.home, version.id)
        published = version.publish(blocks(manifest), environment(), quarantined, make_current)
        for key in list(version.storage.list(layout.STATES)):
            version.storage.delete(key)  # what an image source kept between parts
    return BuiltVersion(manifest.method, published, published.prompts_summary())


def require_space(planned: Sequence[tuple[Manifest, Mapping[str, Any]]]) -> None:
    """Raise `ManifestError` if the disk of the root has no room for the missing shards of versions.

    Args:
        planned: manifests with one method and the same root, and the identity of each.
    """
    size, path = 0, planned[0][0].storage.root
    root = open_storage(path)
    for manifest, identity in planned:
        version = _version(root, manifest, identity)
        if version.published:
            continue
        done = version.done()
        if identity.get("carried.from"):
            # A regeneration takes all but its fresh shards from another version.
            images = sum(task.count for task in fresh_tasks(manifest) if task.id not in done)
        else:
            # Not task by task, because a mistake in the manifest may ask for any number of them.
            left = task_count(manifest) - len(done)
            images = min(image_count(manifest), left * manifest.synthesis.shard_size)
        size += estimated_bytes(manifest, images)
    if size:
        require_root_space(path, size)


def _version(root: Storage, manifest: Manifest, identity: Mapping[str, Any]) -> Version:
    """The version of an identity, which may not have been begun."""
    return Version(root.child(layout.data(manifest.method)), fingerprint(identity))


def is_published(manifest: Manifest, identity: Mapping[str, Any]) -> bool:
    """Whether the version of this identity is published already."""
    return _version(open_storage(manifest.storage.root), manifest, identity).published


def identify(manifest: Manifest, base: str = "") -> dict[str, Any]:
    """The identity of a manifest with one method, which the fingerprint hashes.

    It reads the weight files completely, and those of the prompts.

    Args:
        base: fingerprint of the version from which all tasks but the regenerated are carried over.
    """
    cache = manifest.cache
    weights = labeller.file_hashes(manifest.teacher, cache)
    if manifest.source.follows_prompts:
        weights = weights | manifest.generator.settings.hashes(cache)
        weights = weights | manifest.prompt_settings.hashes()
    return identities.identity(manifest, weights, base)


def demand(manifest: Manifest, done: Container[str]) -> tuple[int, float]:
    """How many workers a run can use, and the seconds that one of its units may take (0: any).

    Args:
        done: the ids of the finished tasks.
    """
    count, largest = 0, 1
    for unit in units(manifest, done):  # which may be millions, so they are not kept
        count, largest = count + 1, max(largest, len(unit.generated))
    size = max(1, count)
    return min(size, manifest.cluster.workers or size), manifest.cluster.task_timeout * largest


def write_missing(
    manifest: Manifest,
    version: Version,
    cost: CostCounter,
    engine: Engine[Any],
    worker_seconds: float = math.inf,
) -> dict[str, str]:
    """Make every missing part of the prompts, prompts.json, and every task without a receipt.

    Parts of the prompts are made one after the other, because contrastive ones depend on earlier
    ones; images are made meanwhile, as soon as their prompts are there. Each result is shown: in
    progress bars, TensorBoard, metrics and log.

    Args:
        worker_seconds: those at which no more work starts.

    Returns:
        The reason for each quarantined task, by task id.

    Raises:
        DfkdError: a part of the prompts failed at every attempt.
        BudgetError: `worker_seconds` are spent.
    """
    version.carry(fresh_tasks(manifest))
    # Receipts alone say what is done, so a call after a kill makes exactly what is missing.
    done = version.done()
    engine.size, engine.timeout = demand(manifest, done)
    engine.assignment = (manifest, version)
    storage = open_storage(manifest.storage.root).child(
        f"{layout.TENSORBOARD}synthesis-{manifest.method}"
    )
    finished = sum(task.count for task in tasks(manifest) if task.id in done)

    def failed_prompts() -> list[Quarantined[Any]]:
        """What is quarantined of the prompts, without which all the rest is in vain."""
        return [item for item in engine.quarantine if not isinstance(item.unit, Unit)]

    with (
        PromptProgress.of(manifest, version) as prompts,
        bar(f"{manifest.method} images", image_count(manifest), "img", finished) as progress,
        ShardTracker(storage, manifest.synthesis.image_size, finished) as tracker,
    ):
        report = _ShardReport(manifest, version, engine, cost, progress, tracker)
        # Units of these kinds have been finished before, so their time-outs are retried. Two of a
        # kind that has never succeeded mean that `cluster.task_timeout` is too short.
        known = ((Unit, done), (PromptPart, prompts.done))
        engine.succeeded = {kind for kind, some in known if some}
        work = ready_work(prompts, units(manifest, done), lambda: bool(failed_prompts()))
        try:
            for made in engine.run(work, lambda unit: engine.busy_seconds < worker_seconds):
                cost.device = made.device
                if isinstance(made.result, list):
                    report.record(made)
                else:
                    prompts.record(made.result)
        finally:
            # With failed and interrupted attempts, which have cost something too.
            cost.worker_seconds = engine.busy_seconds
            # Also after an error: what failed in every attempt may be its cause.
            report.show_failures()
    if failed := failed_prompts():
        version.quarantine("prompts", failed[0].reason)
        told = f"prompts: {failed[0].reason}; fix it and run again"
        raise InfrastructureError(told) if failed[0].curable else DfkdError(told)
    if engine.stopped:
        raise BudgetError(
            f"budget: {cost.images} images and {engine.busy_seconds:.0f} worker-seconds were "
            f"spent, and the limit is {worker_seconds:g} worker-seconds; run the same command "
            "again, it resumes"
        )
    reasons = {task.id: item.reason for item in engine.quarantine for task in item.unit.tasks}
    # Another driver may have finished what failed here.
    made_since = version.done() if reasons else ()
    return {name: reason for name, reason in reasons.items() if name not in made_since}


@dataclass
class _ShardReport:
    """Counts and shows each unit of a synthesis once, when it is finished or quarantined."""

    manifest: Manifest
    version: Version
    engine: Engine[Any]
    cost: CostCounter
    progress: Progress
    tracker: ShardTracker
    _quarantined: int = 0
    """The number of quarantined units reported so far."""
    _forecast: Forecast = field(default_factory=Forecast)

    def record(self, result: UnitResult[list[tuple[Receipt, ShardSummary]]]) -> None:
        """Count and show the shards of a finished unit."""
        self.cost.workers = self.engine.largest
        for receipt, summary in result.result:
            self.cost.images += receipt.samples
            self.cost.bytes += receipt.bytes
            self.tracker.record(summary)
            self.progress.update(receipt.samples)
            # The tasks of a unit are made together, so each counts an equal part of its time.
            seconds = result.seconds / len(result.result)
            report_task(
                self.manifest,
                self.version.id,
                receipt,
                steps=summary.steps,
                seconds=seconds,
                node=result.node,
                attempt=self.engine.tries(result.unit),
            )
        for note in result.notes:
            say(f"note: unit {result.unit}: {note}")
        if result.warm:
            made = sum(receipt.samples + len(receipt.failed) for receipt, _ in result.result)
            self._forecast.add(result.seconds, made)
            left = image_count(self.manifest) - self.tracker.done - self.tracker.failed
            gpus = 0 if result.device == "cpu" else self.engine.resources.gpus
            self._forecast.tell(self.manifest, left, self.engine.largest, gpus)
        self.show_failures()

    def show_failures(self) -> None:
        """Report and store newly quarantined tasks; show how many images and tasks have failed."""
        # The list only grows, so what lies behind the reported ones is new.
        new = self.engine.quarantine[self._quarantined :]
        self._quarantined += len(new)
        for item in new:
            if not isinstance(item.unit, Unit):
                continue  # of the prompts, with which the run ends
            report_quarantined(self.manifest, self.version.id, item)
            # Some tasks of a large unit may have been finished by an attempt that failed later.
            finished = self.version.done() if len(item.unit.tasks) > 1 else ()
            for task in item.unit.tasks:
                if task.id not in finished:
                    self.version.quarantine(task.id, item.reason)
        counts = {"failed": self.tracker.failed, "quarantined": len(self.engine.quarantine)}
        shown = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        self.progress.set_postfix_str(shown, refresh=False)
