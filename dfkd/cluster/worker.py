"""Base of the workers that build a version: model loading, cost and budget, and their pool."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import ray

from dfkd.cluster.capacity import request_resources_for, worker_resources
from dfkd.cluster.metrics import count_request
from dfkd.cluster.pool import Actor, Pool
from dfkd.config.budget import Budget
from dfkd.config.manifest import Manifest
from dfkd.config.methods import prompt_method
from dfkd.config.plan import Unit
from dfkd.dataset.versions import Version
from dfkd.errors import BudgetError, WeightsError
from dfkd.models import generator, teacher
from dfkd.storage.cost_records import CostCounter
from dfkd.utils.device import configure_process, device_name, pick_device

R = TypeVar("R")

MAX_REQUESTED_WORKERS = 256
"""Workers requested from an autoscaler if the manifest names no number. The autoscaler's own
maximum caps the cost."""


@dataclass(frozen=True)
class TaskResult(Generic[R]):
    """The result of a unit of work, and what the work cost."""

    result: R
    seconds: float
    device: str
    notes: tuple[str, ...] = ()
    """Messages for the user, for example that memory ran out."""
    node: str = ""
    """Address of the worker's node."""
    unit: str = ""
    """Id of the unit of work."""

    def count(self, cost: CostCounter) -> None:
        """Add this worker's time to a stage's cost."""
        cost.worker_seconds = (cost.worker_seconds or 0.0) + self.seconds
        cost.device = self.device


@dataclass
class Worker(Actor, ABC):
    """Base class of both workers. The first unit of work loads the models.

    If the constructor loaded them, a clear error would become an actor that dies again and again.
    """

    manifest: Manifest
    version: Version
    cpus: float
    notes: list[str] = field(default_factory=list, init=False)
    """`TaskResult.notes` of the current unit."""
    _maker: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.version = replace(self.version, home=self.version.home.observed(count_request))

    def run(self, unit: Any) -> TaskResult[Any]:
        """Do a unit of work; returns its result and its cost."""
        started = time.perf_counter()
        result, notes = self.run_task(unit), tuple(self.notes)
        self.notes.clear()
        seconds, node = time.perf_counter() - started, ray.util.get_node_ip_address()
        return TaskResult(result, seconds, device_name(pick_device()), notes, node, unit.id)

    @abstractmethod
    def run_task(self, unit: Any) -> Any:
        """Do a unit of work and leave its output in storage; returns a summary for the driver."""

    def load_teacher(self) -> teacher.Teacher:
        """The teacher on this worker's device; also sets this process's number of threads."""
        configure_process(self.cpus)
        precision = self.manifest.synthesis.precision
        device, cache = pick_device(), self.manifest.cache
        self._require_same(teacher.file_hashes(self.manifest.teacher, cache))
        return teacher.Teacher.load(self.manifest.teacher, device, precision, cache)

    def load_generator(self) -> generator.VQGAN | None:
        """The generator on this worker's device; None if the method has no latents."""
        if prompt_method(self.manifest.method) is None:
            return None
        config, precision = self.manifest.generator, self.manifest.synthesis.precision
        self._require_same(generator.file_hashes(config, self.manifest.cache))
        return generator.VQGAN.load(config, pick_device(), precision, self.manifest.cache)

    def _require_same(self, digests: Mapping[str, str]) -> None:
        """Raise `WeightsError` if a weight file of this node is not that of the fingerprint.

        Args:
            digests: sha256 of each weight file, by role.
        """
        identity = self.version.identity
        for role, digest in digests.items():
            if identity.get(f"{role}.sha256") != digest:
                raise WeightsError(
                    role,
                    "must be the same on every node",
                    f"sha256 {digest[:12]} on {ray.util.get_node_ip_address()}",
                    f"copy there the one that version {self.version.id} was begun with",
                )


@dataclass
class BudgetTracker:
    """The budget of a run and what has been spent of it."""

    budget: Budget
    cost: CostCounter
    spent: float = 0.0
    """Worker-seconds of the finished pools, failed attempts included."""

    def __post_init__(self) -> None:
        self.cost.worker_seconds = 0.0

    def allows(self, pool: Pool[Any], images: int = 0) -> bool:
        """Whether work on `images` more images may start, given the work in flight in `pool`."""
        in_flight = sum(unit.count for unit in pool.in_flight if isinstance(unit, Unit))
        seconds = self.spent + pool.busy_seconds
        return self.budget.allows(self.cost.images + in_flight + images, seconds)

    def finish(self, pool: Pool[Any]) -> None:
        """Add a finished pool's time; raises `BudgetError` if the budget stopped the pool."""
        self.spent += pool.busy_seconds
        if pool.stopped:
            raise BudgetError(
                f"budget: {self.cost.images} images and {self.spent:.0f} worker-seconds were "
                f"spent, which leaves no room under {self.budget.caps}; run the same command "
                "again, it resumes"
            )


@contextmanager
def pool_of(
    manifest: Manifest, kind: type[Worker], version: Version, size: int, tasks: int = 1
) -> Iterator[Pool[Any]]:
    """A pool of at most `size` workers of class `kind`, limited by `cluster.workers`.

    Args:
        tasks: the largest number of tasks in a unit; `cluster.task_timeout` applies to each task.
    """
    cluster = manifest.cluster
    resources = worker_resources(cluster)
    actor: Any = ray.remote(kind).options(max_restarts=0, max_task_retries=0, **resources.options)
    with request_resources_for(resources, min(size, cluster.workers or MAX_REQUESTED_WORKERS)):
        yield Pool(
            lambda: actor.remote(manifest, version, cluster.cpus_per_worker),
            min(size, cluster.workers or size),
            cluster.attempts,
            resources,
            cluster.task_timeout * tasks,
        )
