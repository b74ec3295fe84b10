"""Distillation through Ray Train: from a published version to a finished student in storage.

One worker on one machine runs in Ray Train's local mode, inside the driver: no actor to start, no
process group. More workers, or a cluster, get an actor each and DDP over nccl or gloo.

Checkpoints go through the project's own storage and not through `ray.train.report`: each is one
atomic object, so there is no moment at which one is written but not yet known. The restart of a
dead worker, the same command after a kill, and another world size all resume in that one way.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from dfkd.cluster.capacity import (
    WorkerResources,
    count_nodes,
    require_shared_storage,
    schedulable_nodes,
    wait_for_nodes,
    worker_resources,
)
from dfkd.cluster.launch import Workers, run_ranks
from dfkd.cluster.rank import Job, open_stream, train
from dfkd.config.manifest import Cluster, Manifest
from dfkd.config.methods import Method
from dfkd.dataset.published import refuse_removal
from dfkd.distillation.student_store import StudentLocation, check_teacher, locate_student
from dfkd.errors import InfrastructureError, ManifestError
from dfkd.models.student import CARD, build
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.cost_records import Cost, recorded
from dfkd.storage.lease import reading
from dfkd.storage.local import open_storage
from dfkd.utils import hardware
from dfkd.utils.device import device_name, pick_device


@dataclass(frozen=True)
class Finished:
    """A student that is in storage."""

    student: StudentLocation
    reused: bool
    """Whether an earlier run had finished it."""


def distill(
    manifest: Manifest,
    method: Method,
    seed: int,
    version: str = "",
    share: WorkerResources | None = None,
) -> Finished:
    """Train the student of a method and seed on a version, or find it finished.

    Of the current version, unless `version` names another published one; it is kept from removal
    while it is read. The same call after a kill resumes from the newest checkpoint. With one
    worker on one machine Ray need not be running; otherwise the caller has connected.

    Args:
        share: what the calling process has reserved, if its one rank is to train right in it.

    Raises:
        ManifestError: nothing published, too few shards or images, or resources that are not there.
        CorruptionError: a shard is not what its receipt says.
        InfrastructureError: workers died too often; the same command resumes.
    """
    require_shared_storage(manifest.storage.root)
    target = locate_student(manifest, method, seed, version)
    if target.finished:
        _checkpoints(target).clear()  # of a run that was killed right after it had finished
        return Finished(target, reused=True)
    _check_before_start(manifest, target)
    ranks = manifest.distillation.ranks
    workers = _in_this_process(share) if share else plan_workers(ranks, manifest.cluster)
    job = _job(manifest, target, workers)
    root = open_storage(manifest.storage.root)
    with (
        reading(root, [f"{method}/{target.version.id}"]),
        recorded(root, "distill", method, seed) as cost,
        _fill_cost(job, target, workers, cost),
    ):
        refuse_removal(target.version.home, target.version.id)
        run_ranks(train, {"job": job}, job.name, workers)
    if not target.finished:
        raise InfrastructureError(f"{target.location}: was not written; run the same command again")
    return Finished(target, reused=False)


def _job(manifest: Manifest, target: StudentLocation, workers: Workers) -> Job:
    """What each of the ranks is told of the student."""
    return Job(
        manifest=manifest,
        method=target.method,
        seed=target.seed,
        version=target.version.id,
        name=target.name,
        cpus=workers.cpus,
        gpu=workers.gpu,
        local=workers.count == 0,
        watched=sys.stderr.isatty(),
    )


def _check_before_start(manifest: Manifest, target: StudentLocation) -> None:
    """Raise here, before any rank starts, what each rank would raise."""
    config = manifest.distillation
    open_stream(manifest, target.version, target.seed, 0, config.ranks[-1])
    classes, size = len(manifest.classes), manifest.synthesis.image_size
    build(config, classes, size, target.seed, manifest.cache)
    if config.labels != "stored":
        check_teacher(manifest, target.method, target.version)


def _in_this_process(share: WorkerResources) -> Workers:
    return Workers(0, share.cpus, _own_device())


def plan_workers(ranks: tuple[int, int], cluster: Cluster) -> Workers:
    """As many ranks as fit, from the least to the most, and what each can have.

    Waits until an autoscaler, if there is one, has brought nodes for the least.

    Raises:
        ManifestError: what Ray would wait for in silence.
        InfrastructureError: the nodes have not come.
    """
    least, most = ranks
    if ray.is_initialized():
        wait_for_nodes(worker_resources(cluster), least)
    if most == 1 and count_nodes() == 1:
        return Workers(0, float(hardware.cpus()), _own_device())
    nodes = schedulable_nodes()
    gpus = WorkerResources(0.0, 1.0).slots(nodes)
    device = _gpu_name() if gpus else "cpu"
    if device != "cpu" and gpus < least:
        raise ManifestError(
            "distillation.workers",
            f"must not exceed the cluster's {gpus} GPUs",
            least,
            "lower it or add nodes",
        )
    each = float(device != "cpu")
    count = max(least, min(most, WorkerResources(1.0, each).slots(nodes)))
    cpus = cpus_per_rank(nodes, count, each)
    if not cpus:
        total = sum(node.get("CPU", 0.0) for node in nodes.values())
        raise ManifestError(
            "distillation.workers",
            f"must not exceed what the cluster's {total:g} CPUs on {len(nodes)} nodes hold",
            least,
            "lower it or add nodes",
        )
    return Workers(count, cpus, device, ranks if least < most else None)


def cpus_per_rank(nodes: Mapping[str, Mapping[str, float]], wanted: int, gpus: float) -> float:
    """The most whole CPUs that each rank can have, as none spans two nodes; 0 if they fit not."""
    most = max((int(node.get("CPU", 0.0)) for node in nodes.values()), default=0)
    fitting = (
        cpus for cpus in range(most, 0, -1) if WorkerResources(cpus, gpus).slots(nodes) >= wanted
    )
    return float(next(fitting, 0))


def _gpu_name() -> str:
    """Of a worker's GPU; `cpu` if it sees no real one: Ray believes whatever number it is told."""
    probe = ray.remote(num_gpus=1, max_retries=0)(_own_device)
    return str(ray.get(probe.remote()))


def _own_device() -> str:
    return device_name(pick_device())


@contextmanager
def _fill_cost(job: Job, target: StudentLocation, workers: Workers, cost: Cost) -> Iterator[None]:
    """Fill in what a training costs, by the steps that its checkpoints and the student tell of."""
    checkpoints = _checkpoints(target)
    before = checkpoints.newest()
    try:
        yield
    finally:
        after = checkpoints.newest()
        if target.finished:
            card = json.loads(target.storage.get(CARD))
            after, cost.bytes = card["steps"], card["bytes"]
        cost.images = max(0, after - before) * job.manifest.distillation.batch_size
        cost.workers = max(1, workers.count)
        cost.device = workers.device


def _checkpoints(target: StudentLocation) -> Checkpoints:
    return Checkpoints(target.storage.child("checkpoints"))
