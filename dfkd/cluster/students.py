"""Distillation through Ray Train: from a published version to a finished student in storage.

Students of one rank train side by side, each in an actor that has reserved a GPU or a share of the
CPUs. A single one trains inside the driver if there is one machine only. Both use Ray Train's local
mode, which has no process group. Several ranks run as one actor each with DDP over nccl or gloo.

Checkpoints are single atomic objects in the project's own storage; `ray.train.report` is not used,
so a checkpoint is never written but not yet registered. A restarted worker, the same command after
a kill, and a run with another world size all resume from the newest checkpoint.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from dfkd.cluster.capacity import (
    Ranks,
    WorkerResources,
    enter_folder,
    gpu_name,
    own_device,
    plan_ranks,
    plan_students,
    see_reserved_gpus,
    trains_here,
)
from dfkd.cluster.connection import require_on_this_node, require_shared_storage
from dfkd.cluster.engine import Actor, Engine
from dfkd.cluster.launch import PreemptedError, run_ranks
from dfkd.cluster.rank import BarPlace, Job, open_stream, train
from dfkd.cluster.ray_internals import ray_reason
from dfkd.config.manifest import Cluster, Manifest
from dfkd.config.methods import Method
from dfkd.dataset.loader import steps_per_epoch
from dfkd.dataset.published import open_version, refuse_removal
from dfkd.distillation.embedding import embedding_objective
from dfkd.distillation.label_moments import key_of, measure, moments_of
from dfkd.distillation.student_store import (
    StudentLocation,
    check_initial_weights,
    check_teacher,
    locate_student,
    require_replaceable_classes,
)
from dfkd.errors import DfkdError, InfrastructureError
from dfkd.models.student import CARD, build
from dfkd.storage import layout
from dfkd.storage.base import CLEANUP_ATTEMPTS
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.cost_records import record_cost
from dfkd.storage.lease import protecting
from dfkd.storage.local import open_storage
from dfkd.utils.device import configure_process, pick_device
from dfkd.utils.progress import Closing, say

RANK_GRACE_SECONDS = 600.0
"""How much longer than for a step ranks wait for each other, in seconds."""


@dataclass(frozen=True)
class FinishedStudent:
    """A student that is complete in storage."""

    student: StudentLocation
    reused: bool
    """Whether an earlier run had finished it already."""


def distill(manifest: Manifest, method: Method, seed: int, version: str = "") -> FinishedStudent:
    """`distill_located` for the student of a method and seed.

    Args:
        version: id of a published version; the current one if empty.

    Raises:
        ManifestError: nothing is published for this method.
    """
    return distill_located(manifest, locate_student(manifest, method, seed, version))


def distill_located(manifest: Manifest, target: StudentLocation) -> FinishedStudent:
    """Train a student on its version, unless it is finished already.

    A lease protects the version from removal while it is read. The same call after a kill resumes
    from the newest checkpoint. One worker on one machine needs no running Ray; in all other cases
    the caller must have connected.

    Raises:
        ManifestError: too few shards or images, or too small a cluster.
        CorruptionError: a shard does not match its receipt.
        PreemptedError: the only rank's node is about to be taken away.
        InfrastructureError: workers died too often; the call resumes.
        torch.AcceleratorError: the GPU of this process failed; another process resumes.
    """
    require_shared_storage(manifest.storage.root)
    manifest = manifest.with_student(target.architecture)
    if target.finished:
        _checkpoints(target).clear()  # left by a run that was killed just after it finished
        return FinishedStudent(target, reused=True)
    config = manifest.distillation
    if not trains_here(config.rank_limits):
        # What every rank would raise, before ranks in other processes wait for and take GPUs.
        # A rank inside this process raises the same errors just as early.
        some = Ranks(0, 1.0, "cpu")  # what ranks will have changes none of these errors
        open_stream(manifest, target.version, target.seed, 0, config.rank_limits[-1], some)
        classes, size = len(manifest.classes), manifest.synthesis.image_size
        build(config, classes, size, target.seed, manifest.cache)
        if not config.stored_labels:
            check_teacher(manifest, target.method, target.version)
    ranks = plan_ranks(config.rank_limits, manifest.cluster)
    measure_labels(manifest, [target])
    with _lease_and_record(manifest, target, ranks):
        _train(manifest, target, ranks, bar_place(ranks.local))
    return FinishedStudent(target, reused=False)


def distill_all(
    manifest: Manifest, students: Sequence[StudentLocation]
) -> Iterator[FinishedStudent]:
    """Train students that are not finished yet; yield each of all as it finishes.

    Students of one rank train side by side if Ray runs: as many as there are GPUs or, without any,
    CPUs, and at most `cluster.workers`. Students of several ranks train one after the other.

    Raises:
        ManifestError, CorruptionError, InfrastructureError: as `distill_located`. Other students
            in training end at once; the same call resumes them.
        DfkdError: a student failed at every attempt, of something that stays.
    """
    targets = []
    for target in students:
        if target.finished:
            yield distill_located(manifest, target)
        else:
            targets.append(target)
    if len(targets) > 1 and manifest.distillation.rank_limits == (1, 1) and ray.is_initialized():
        yield from _distill_side_by_side(manifest, targets)
        return
    for target in targets:
        yield distill_located(manifest, target)


def measure_labels(manifest: Manifest, targets: Sequence[StudentLocation]) -> None:
    """Measure what standardises the labels of students (`dfkd.distillation.label_moments`).

    Each version is measured once, before its students start: by a Ray task with the resources of a
    student if Ray runs, else in this process.

    Raises:
        CorruptionError, ManifestError, WeightsError: as `measure`.
        InfrastructureError: workers died too often; the same call resumes.
    """
    if manifest.distillation.labelled_by_teacher:
        return
    root = open_storage(manifest.storage.root)
    for target in {each.version.id: each for each in targets}.values():
        if root.exists(key_of(manifest, target.version)):
            continue
        with protecting(root, [f"{target.method}/{target.version.id}"]):
            refuse_removal(target.version.home, target.version.id)
            if not ray.is_initialized():
                on_gpu = manifest.cluster.gpus_per_worker != 0
                device = pick_device() if on_gpu else torch.device("cpu")
                measure(manifest, target.version, root, device)
                continue
            say(f"labels {target.version.facts['samples']} images to standardise the labels")
            share = plan_students(manifest.cluster, 1)
            task: Any = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(_measure)
            try:
                ray.get(
                    task.remote(manifest, target.method, target.version.id, share.cpus, os.getcwd())
                )
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                raise InfrastructureError(
                    f"distillation: workers that label died ({ray_reason(error)}); run the same "
                    "command again, it resumes"
                ) from None


def _measure(manifest: Manifest, method: Method, version: str, cpus: float, folder: str) -> None:
    """`measure` as a Ray task, in the driver's working directory."""
    see_reserved_gpus()
    enter_folder(folder)
    configure_process(cpus)
    root = open_storage(manifest.storage.root)
    home = root.child(layout.data(method))
    require_on_this_node(home.child(layout.version(version)), layout.PUBLISHED)
    measure(manifest, open_version(home, version), root, pick_device())


class _Records(Closing):
    """The leases and cost records of students in training.

    The driver has them, because a killed actor would record nothing and leave its lease behind.
    """

    def __init__(self, manifest: Manifest, ranks: Ranks) -> None:
        self.manifest, self.ranks = manifest, ranks
        self._open: dict[str, contextlib.AbstractContextManager[None]] = {}
        """By the student's name, from its first attempt to its end."""

    def begin(self, target: StudentLocation) -> None:
        """Begin those of a student, unless an earlier attempt has."""
        if target.name not in self._open:
            record = _lease_and_record(self.manifest, target, self.ranks)
            record.__enter__()
            self._open[target.name] = record

    def end(self, name: str) -> None:
        """End those of a student."""
        self._open.pop(name).__exit__(None, None, None)

    def close(self) -> None:
        """End those of all students that are left after an error."""
        while self._open:
            self.end(next(iter(self._open)))


def _distill_side_by_side(
    manifest: Manifest, targets: Sequence[StudentLocation]
) -> Iterator[FinishedStudent]:
    """`distill_all` with an actor for each student."""
    require_shared_storage(manifest.storage.root)
    measure_labels(manifest, targets)
    cluster = manifest.cluster
    count = min(len(targets), cluster.workers or len(targets))
    share = plan_students(cluster, count)
    ranks = Ranks(0, share.cpus, gpu_name() if share.gpus else "cpu")
    by_name = {target.name: target for target in targets}
    tasks = [
        StudentTask(each.method, each.seed, each.version.id, each.architecture, each.name)
        for each in targets
    ]

    def newest(task: StudentTask) -> int:
        """The step of a student's newest checkpoint."""
        return _checkpoints(by_name[task.name]).newest()

    bar = bar_place(in_driver=False)
    engine = student_engine(StudentDistiller, share, count, cluster, newest, manifest, bar)
    with _Records(manifest, ranks) as records:
        done = engine.run(iter(tasks), on_start=lambda task: records.begin(by_name[task.name]))
        for task, error in done:
            records.end(task.name)
            if error is not None:
                raise error
            yield FinishedStudent(by_name[task.name], reused=False)
    if engine.quarantine:
        item = engine.quarantine[0]
        problem = f"{item.unit.id}: failed at every attempt ({item.reason})"
        told = f"{problem}; fix that and run the same command again, it resumes"
        raise InfrastructureError(told) if item.curable else DfkdError(told)


@dataclass(frozen=True)
class StudentTask:
    """An unfinished student."""

    method: Method
    seed: int
    version: str
    """Id of the version that it learns from."""
    architecture: str
    name: str
    """Its folder."""

    @property
    def id(self) -> str:
        """Name of the student in messages."""
        return f"{self.method} student {self.architecture} of seed {self.seed}"


class StudentActor(Actor):
    """Base class of actors that train students of one rank; a subclass adds `train(task)`."""

    def __init__(self, cpus: float) -> None:
        """`cpus`: CPUs that it computes on."""
        self.cpus = cpus

    def run(self, task: Any) -> Any:
        """Call `train`; the actor ends itself if its node is about to be taken away."""
        try:
            return self.train(task)  # type: ignore[attr-defined]
        except PreemptedError:
            # A loss of the node for the engine, which gives the task to another actor; that one
            # resumes from the checkpoint of the last step.
            ray.actor.exit_actor()


def student_engine(
    kind: type[StudentActor],
    share: WorkerResources,
    count: int,
    cluster: Cluster,
    newest: Callable[[Any], int],
    *arguments: Any,
) -> Engine[Any]:
    """An engine of at most `count` actors that train one student each at a time.

    Args:
        kind: the actor's class, called with its CPUs and `arguments`.
        share: what each actor has.
        newest: the step of a task's newest checkpoint. Attempts that got further do not count.
    """
    # With a GPU it reserves one CPU only, because the GPU alone decides its place: a second job may
    # hold CPUs of the node.
    resources = WorkerResources(1.0, 1.0) if share.gpus else share
    return Engine(
        kind, (share.cpus, *arguments), count, cluster.attempts, resources, progress=newest
    )


class StudentDistiller(StudentActor):
    """Trains students of one manifest; its driver records them."""

    def __init__(self, cpus: float, manifest: Manifest, bar: BarPlace) -> None:
        super().__init__(cpus)
        self.manifest, self.bar = manifest, bar

    def train(self, task: StudentTask) -> tuple[StudentTask, Exception | None]:
        """Train a student; returns the task, with the error if a retry would only repeat it."""
        try:
            home = open_storage(self.manifest.storage.root).child(layout.data(task.method))
            require_on_this_node(home.child(layout.version(task.version)), layout.PUBLISHED)
            manifest = self.manifest.with_student(task.architecture)
            target = locate_student(manifest, task.method, task.seed, task.version)
            check_initial_weights(manifest, target.version, task.method, task.seed, task.name)
            _train(manifest, target, Ranks(0, self.cpus, own_device()), self.bar)
        except (InfrastructureError, OSError, torch.AcceleratorError):
            # The latter two are faults of this node or GPU, and may pass: another actor takes this
            # one's place, and the task resumes.
            raise
        except Exception as error:
            error.add_note(f"Raised in a worker:\n{traceback.format_exc()}")
            return task, error
        return task, None


def bar_place(in_driver: bool) -> BarPlace:
    """Where the progress of ranks is shown: on the driver's terminal if there is one."""
    if not sys.stderr.isatty():
        return "log"
    return "terminal" if in_driver else "relayed"


@contextmanager
def _lease_and_record(manifest: Manifest, target: StudentLocation, ranks: Ranks) -> Iterator[None]:
    """Hold a lease on the student's version, and record the cost of the training in the block.

    The images are counted from the steps in checkpoints and card, because the driver sees no steps.
    An interrupted training counts up to its newest checkpoint.
    """
    root = open_storage(manifest.storage.root)
    with (
        protecting(root, [f"{target.method}/{target.version.id}"]),
        record_cost(root, "distill", target.method, target.seed) as cost,
    ):
        # A resumed training has made the steps up to its newest checkpoint in an earlier call.
        before = _checkpoints(target).newest()
        cost.workers, cost.device = max(1, ranks.count), ranks.device
        # Only now that the lease is taken: a removal that began earlier has left its mark.
        refuse_removal(target.version.home, target.version.id)
        try:
            yield
        finally:
            # A storage that fails now must not hide the error of the training, nor delay it.
            with contextlib.suppress(DfkdError, OSError):
                after = _checkpoints(target, CLEANUP_ATTEMPTS).newest()
                # The last checkpoint goes with the end of the training; its card has the count.
                if target.finished:
                    card = json.loads(target.storage.get(CARD))
                    after, cost.bytes = card["steps"], card["bytes"]
                cost.images = max(0, after - before) * manifest.distillation.batch_size


def _train(manifest: Manifest, target: StudentLocation, ranks: Ranks, bar: BarPlace) -> None:
    """Train with these ranks."""
    embedding = None
    if manifest.distillation.embeds:
        # Errors come before all shards are read.
        steps_per_epoch(target.version.facts["samples"], manifest.distillation.batch_size)
        require_replaceable_classes(manifest, target.method, target.version)
        moments = moments_of(manifest, target.version, open_storage(manifest.storage.root))
        embedding = embedding_objective(manifest, target.version, moments)
    job = Job(
        manifest=manifest,
        method=target.method,
        seed=target.seed,
        version=target.version.id,
        name=target.name,
        ranks=ranks,
        embedding=embedding,
        folder=os.getcwd(),
        bar=bar,
    )
    longest, newest = manifest.cluster.task_timeout, _checkpoints(target).newest
    # The watch of the rank that hangs ends it first, and shows where it hangs.
    timeout = longest + RANK_GRACE_SECONDS if longest else 0.0  # 0: without end
    run_ranks(train, job.as_config(), target.name, ranks, newest, timeout)


def _checkpoints(target: StudentLocation, attempts: int = 0) -> Checkpoints:
    """The checkpoints of an unfinished training, read with so many attempts (0: the usual ones)."""
    storage = target.storage.with_attempts(attempts) if attempts else target.storage
    return Checkpoints(storage.child(layout.CHECKPOINTS))
