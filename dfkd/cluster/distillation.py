"""Distillation through Ray Train: from a published version to a finished student in storage.

Students of one rank train side by side, each in an actor that has reserved a GPU or a share of the
CPUs. A single one trains inside the driver if there is one machine only. Both use Ray Train's local
mode, which has no process group. Several ranks run as one actor each with DDP over nccl or gloo.

Checkpoints are single atomic objects in the project's own storage; `ray.train.report` is not used,
so a checkpoint is never written but not yet registered. A restarted worker, the same command after
a kill, and a run with another world size all resume from the newest checkpoint.
"""

import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dfkd.cluster.capacity import (
    CAPACITY_WAIT_SECONDS,
    WorkerResources,
    count_nodes,
    cpus_per_rank,
    no_capacity_error,
    plan_students,
    rank_resources,
    require_shared_storage,
    schedulable_nodes,
    see_reserved_gpus,
    wait_for_nodes,
)
from dfkd.cluster.launch import LeavingError, Workers, run_ranks
from dfkd.cluster.pool import Actor, Pool
from dfkd.cluster.rank import BarPlace, Job, open_stream, train
from dfkd.config.manifest import Cluster, Manifest
from dfkd.config.methods import Method
from dfkd.dataset.loader import steps_per_epoch
from dfkd.dataset.published import refuse_removal
from dfkd.distillation.embedding import embedding_objective
from dfkd.distillation.student_store import (
    StudentLocation,
    check_teacher,
    locate_student,
    require_replaceable_classes,
)
from dfkd.errors import InfrastructureError, ManifestError
from dfkd.models.student import CARD, build
from dfkd.storage import layout
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.cost_records import CostCounter, record_cost
from dfkd.storage.lease import reading
from dfkd.storage.local import open_storage
from dfkd.utils import hardware
from dfkd.utils.device import device_name, pick_device


@dataclass(frozen=True)
class Finished:
    """A student that is complete in storage."""

    student: StudentLocation
    reused: bool
    """Whether an earlier run had finished it already."""


def distill(
    manifest: Manifest,
    method: Method,
    seed: int,
    version: str = "",
    resources: WorkerResources | None = None,
    bar: BarPlace | None = None,
) -> Finished:
    """Train the student of a method and seed on a version, unless it is finished already.

    A lease protects the version from removal while it is read. The same call after a kill resumes
    from the newest checkpoint. One worker on one machine needs no running Ray; in all other cases
    the caller must have connected.

    Args:
        version: id of a published version; the current one if empty.
        resources: resources that the calling actor has reserved. If given, the only rank trains
            inside the calling process.
        bar: where the progress is shown; None if this process is the driver.

    Raises:
        ManifestError: nothing is published, too few shards or images, or too small a cluster.
        CorruptionError: a shard does not match its receipt.
        LeavingError: the only rank's node is about to be taken away.
        InfrastructureError: workers died too often; the same command resumes.
    """
    require_shared_storage(manifest.storage.root)
    target = locate_student(manifest, method, seed, version)
    if target.finished:
        _checkpoints(target).clear()  # left by a run that was killed just after it finished
        return Finished(target, reused=True)
    if resources:
        workers = Workers(0, resources.cpus, _own_device())
    else:
        if not trains_here(manifest.distillation.ranks):
            _raise_errors_of_ranks(manifest, target)
        workers = plan_workers(manifest.distillation.ranks, manifest.cluster)
    _train(manifest, target, workers, bar or bar_place(workers.count == 0))
    if not target.finished:
        raise InfrastructureError(f"{target.location}: was not written; run the same command again")
    return Finished(target, reused=False)


def distill_all(manifest: Manifest, students: Sequence[tuple[Method, int]]) -> Iterator[Finished]:
    """Train students of the current versions, given by method and seed; yield each as it finishes.

    Students of one rank train side by side if Ray runs: as many as there are GPUs or, without any,
    CPUs, and at most `cluster.workers`. Students of several ranks train one after the other.

    Raises:
        ManifestError, CorruptionError, InfrastructureError: as `distill`. Other students in
            training end at once; the same call resumes them.
    """
    tasks = []
    for method, seed in students:
        target = locate_student(manifest, method, seed)
        if target.finished:
            yield distill(manifest, method, seed, target.version.id)
        else:
            tasks.append(StudentTask(method, seed, target.version.id))
    if len(tasks) < 2 or manifest.distillation.ranks != (1, 1) or not ray.is_initialized():
        for task in tasks:
            yield distill(manifest, task.method, task.seed, task.version)
        return
    yield from _distill_side_by_side(manifest, tasks)


def _distill_side_by_side(manifest: Manifest, tasks: Sequence["StudentTask"]) -> Iterator[Finished]:
    """`distill_all` with a pool of actors."""
    require_shared_storage(manifest.storage.root)
    cluster, bar = manifest.cluster, bar_place(in_driver=False)
    pool = student_pool(StudentDistiller, cluster, len(tasks), cluster.workers, manifest, bar)
    for task, error in pool.run(iter(tasks)):
        if error is not None:
            raise error
        yield Finished(locate_student(manifest, task.method, task.seed, task.version), reused=False)
    if pool.quarantine:
        task, reason = pool.quarantine[0].task, pool.quarantine[0].reason
        raise InfrastructureError(
            f"{task.id}: failed {cluster.attempts} times ({reason}); run the same command again, "
            "it resumes"
        )


@dataclass(frozen=True)
class StudentTask:
    """An unfinished student."""

    method: Method
    seed: int
    version: str
    """Id of the version that it learns from."""

    @property
    def id(self) -> str:
        """Name of the student in messages."""
        return f"{self.method} student of seed {self.seed}"


class StudentActor(Actor):
    """Base class of actors that train students of one rank; a subclass adds `train(task)`."""

    def __init__(self, resources: WorkerResources) -> None:
        """`resources` is what the actor has reserved."""
        self.resources = resources

    def run(self, task: Any) -> Any:
        """Call `train`; the actor ends itself if its node is about to be taken away."""
        try:
            return self.train(task)  # type: ignore[attr-defined]
        except LeavingError:
            # The pool counts this as a loss of the node, and starts the task on another one, where
            # it resumes from the checkpoint of its last step.
            ray.actor.exit_actor()


def student_pool(
    kind: type[StudentActor], cluster: Cluster, students: int, at_most: int, *arguments: Any
) -> Pool[Any]:
    """A pool of actors that train one student each at a time; see `plan_students`.

    Args:
        kind: the actor's class, called with its resources and `arguments`.
        at_most: students trained at once; 0 is no limit.
    """
    count, resources = plan_students(cluster, students, at_most)
    actor: Any = ray.remote(kind).options(max_restarts=0, max_task_retries=0, **resources.options)
    return Pool(lambda: actor.remote(resources, *arguments), count, cluster.attempts, resources)


class StudentDistiller(StudentActor):
    """Trains students of one manifest."""

    def __init__(self, resources: WorkerResources, manifest: Manifest, bar: BarPlace) -> None:
        super().__init__(resources)
        self.manifest, self.bar = manifest, bar

    def train(self, task: StudentTask) -> tuple[StudentTask, Exception | None]:
        """Train a student; returns an error that another attempt would meet again."""
        try:
            distill(self.manifest, task.method, task.seed, task.version, self.resources, self.bar)
        except InfrastructureError:
            raise
        except Exception as error:
            error.add_note(f"Raised in a worker:\n{traceback.format_exc()}")
            return task, error
        return task, None


def _raise_errors_of_ranks(manifest: Manifest, target: StudentLocation) -> None:
    """Raise what every rank would raise, before ranks in other processes wait for and take GPUs.

    A rank inside this process raises the same errors just as early.
    """
    config = manifest.distillation
    open_stream(manifest, target.version, target.seed, 0, config.ranks[-1])
    classes, size = len(manifest.classes), manifest.synthesis.image_size
    build(config, classes, size, target.seed, manifest.cache)
    if config.labels != "stored":
        check_teacher(manifest, target.method, target.version)


def bar_place(in_driver: bool) -> BarPlace:
    """Where the progress of ranks is shown: on the driver's terminal if there is one."""
    if not sys.stderr.isatty():
        return "log"
    return "terminal" if in_driver else "relayed"


def _train(manifest: Manifest, target: StudentLocation, workers: Workers, bar: BarPlace) -> None:
    """Train with the ranks of `workers`, and record what that cost."""
    method, seed = target.method, target.seed
    root = open_storage(manifest.storage.root)
    with (
        reading(root, [f"{method}/{target.version.id}"]),
        record_cost(root, "distill", method, seed) as cost,
        _fill_cost(target, workers, cost, manifest.distillation.batch_size),
    ):
        # Only now that the lease is taken: a removal that began earlier has left its mark.
        refuse_removal(target.version.home, target.version.id)
        job = _job(manifest, target, workers, bar)
        run_ranks(train, {"job": job}, target.name, workers, _checkpoints(target).newest)


def _job(manifest: Manifest, target: StudentLocation, workers: Workers, bar: BarPlace) -> Job:
    """The input of the ranks."""
    embedding = None
    if manifest.distillation.target == "embedding":
        # Errors come before all shards are read.
        steps_per_epoch(target.version.manifest["samples"], manifest.distillation.batch_size)
        require_replaceable_classes(manifest, target.method, target.version)
        embedding = embedding_objective(manifest, target.version)
    return Job(
        manifest=manifest,
        method=target.method,
        seed=target.seed,
        version=target.version.id,
        name=target.name,
        cpus=workers.cpus,
        gpu=workers.gpu,
        embedding=embedding,
        local=workers.count == 0,
        bar=bar,
    )


def trains_here(ranks: tuple[int, int]) -> bool:
    """Whether a run with these limits on its ranks has one only, inside this process."""
    return ranks[1] == 1 and count_nodes() == 1


def plan_workers(ranks: tuple[int, int], cluster: Cluster) -> Workers:
    """The number of ranks that fit, between the two limits of `ranks`, and the resources of each.

    With an autoscaler it waits until there are nodes for the smallest number of ranks.

    Raises:
        ManifestError: the smallest number does not fit; Ray would wait for it without a message.
        InfrastructureError: the autoscaler's nodes did not come in time, or torch cannot use the
            GPUs.
    """
    least, most = ranks
    if ray.is_initialized():
        wait_for_nodes(rank_resources(cluster), least)
    if trains_here(ranks):
        return Workers(0, float(hardware.cpu_count()), _own_device())
    # On a machine with GPUs each rank takes one; otherwise the ranks divide the CPUs.
    nodes = schedulable_nodes()
    gpus = WorkerResources(0.0, 1.0).slots(nodes)
    device = _gpu_name() if gpus else "cpu"
    if 0 < gpus < least:
        raise _too_many_ranks(f"the cluster's {gpus} GPUs", least)
    # Ranks may wait for each other at every step, so all of them must fit at the same time.
    each = float(gpus > 0)
    count = max(least, min(most, WorkerResources(1.0, each).slots(nodes)))
    cpus = cpus_per_rank(nodes, count, each)
    if not cpus:
        total = sum(node.get("CPU", 0.0) for node in nodes.values())
        held = f"what the cluster's {total:g} CPUs on {len(nodes)} nodes hold"
        raise _too_many_ranks(held, least)
    return Workers(count, cpus, device, ranks if least < most else None)


def _too_many_ranks(most: str, ranks: int) -> ManifestError:
    """The error for a smallest number of ranks that exceeds `most`."""
    rule = f"must not exceed {most}"
    return ManifestError("distillation.workers", rule, ranks, "lower it or add nodes")


def _gpu_name() -> str:
    """The name of a worker's GPU.

    Raises:
        InfrastructureError: torch cannot use it, or no GPU was free within `CAPACITY_WAIT_SECONDS`.
    """
    probe = ray.remote(num_gpus=1, max_retries=0)(_reserved_device)
    try:
        return str(ray.get(probe.remote(), timeout=CAPACITY_WAIT_SECONDS))
    except RayTaskError as error:
        if isinstance(error.cause, InfrastructureError):
            raise error.cause from None
        raise  # a defect of ours, which keeps its traceback
    except RayError:  # the probe died, or other jobs held all GPUs
        raise no_capacity_error(WorkerResources(1.0, 1.0)) from None


def _reserved_device() -> str:
    """The name of the GPU that this process has reserved."""
    see_reserved_gpus()
    return _own_device()


def _own_device() -> str:
    """The name of this process's device."""
    return device_name(pick_device())


@contextmanager
def _fill_cost(
    target: StudentLocation, workers: Workers, cost: CostCounter, batch_size: int
) -> Iterator[None]:
    """Count the images of the training in the block, from the steps in its checkpoints and card.

    The driver sees no steps, so an interrupted training counts up to its newest checkpoint.
    """
    # A resumed training has made the steps up to its newest checkpoint in an earlier call.
    checkpoints = _checkpoints(target)
    before = checkpoints.newest()
    try:
        yield
    finally:
        after = checkpoints.newest()
        # The last checkpoint is deleted with the end of the training; then its card has the count.
        if target.finished:
            card = json.loads(target.storage.get(CARD))
            after, cost.bytes = card["steps"], card["bytes"]
        cost.images = max(0, after - before) * batch_size
        cost.workers = max(1, workers.count)
        cost.device = workers.device


def _checkpoints(target: StudentLocation) -> Checkpoints:
    """The checkpoints of an unfinished training."""
    return Checkpoints(target.storage.child(layout.CHECKPOINTS))
