"""Students in parallel: each actor trains and scores one student at a time, on a GPU or on CPUs."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dfkd.cluster import students
from dfkd.cluster.capacity import plan_students
from dfkd.cluster.students import StudentActor, student_engine
from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import open_version
from dfkd.distillation.student_store import (
    StudentLocation,
    check_initial_weights,
    load_located,
    locate_student,
)
from dfkd.errors import DfkdError, InfrastructureError, PartialError
from dfkd.evaluation.scoring import evaluate
from dfkd.lab.studies import cells
from dfkd.lab.studies.cells import CellResult, CellStore
from dfkd.lab.studies.study import Cell
from dfkd.storage import layout
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.local import open_storage
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import describe_machine, environment
from dfkd.utils.pixels import from_batch


@dataclass(frozen=True)
class StudentJob:
    """A cell whose data set exists and whose student has yet to be trained and scored."""

    cell: Cell
    store: CellStore
    """Where the cell's result goes."""
    version: str
    """Id of the data set."""
    held_out: str = ""
    """Id of the data set that measures agreement; empty without one."""
    recognised: float | None = None
    """Share of the data set's images that the judge recognises; None without a judge."""
    unseen: tuple[str, ...] = ()
    """Classes that the student did not learn, to score it on."""

    @property
    def id(self) -> str:
        """Name of the job in messages."""
        return self.cell.label


StudentResult = tuple[StudentJob, CellResult | str]
"""A job with its scores, or with the reason why there are none."""


def run_job(job: StudentJob, threads: int, actor_cpus: float | None = None) -> StudentResult:
    """Train a cell's student unless it is stored, then score it.

    Args:
        threads: for decoding images while scoring; 0 uses one for each processor.
        actor_cpus: as for `distillation.distill_located`.

    Raises:
        InfrastructureError: a machine or the storage is lost, so that other cells would fail too.
    """
    cell = job.cell
    try:
        student = locate_student(cell.manifest, cell.method, cell.seed, job.version)
        # An actor's node may have another file of initial weights than the driver, which has named
        # the student.
        check_initial_weights(
            cell.manifest, student.version, cell.method, cell.seed, job.store.model
        )
        students.distill_located(cell.manifest, student, actor_cpus)
        # Before the scores: once the cell is stored, nothing is added to it.
        agreed = measure_agreement(cell, student, job.held_out) if job.held_out else None
        return job, score(
            cell.manifest, job.store, job.version, threads, agreed, job.recognised, job.unseen
        )
    except InfrastructureError:
        raise
    except DfkdError as error:
        return job, " ".join(str(error).split())


def measure_agreement(cell: Cell, student: StudentLocation, held_out: str) -> float:
    """Share of the images of version `held_out` that student and teacher put into one class."""
    manifest, device = cell.manifest, pick_device()
    home = open_storage(manifest.storage.root).child(layout.data(cell.method))
    # Batches of one image, because a stream leaves out the images that do not fill a batch.
    images = Stream(open_version(home, held_out), manifest.synthesis.image_size, 1, seed=0)
    model, _ = load_located(student, manifest.classes, device)
    return agreement(model, images, device)


@torch.no_grad()
def agreement(student: nn.Module, images: Stream, device: torch.device) -> float:
    """Share of images, 0-1, for which student and teacher have the same nearest class.

    Args:
        student: in eval mode on `device`.
        images: with the teacher's stored distances.
    """
    same = [
        student(from_batch(batch.pixels, device)).argmin(1).cpu() == batch.distances.argmin(1)
        for batch in images.batches(0)
    ]
    return float(torch.cat(same).double().mean())


def _accuracy_on(
    classes: tuple[str, ...], manifest: Manifest, store: CellStore, version: str, threads: int
) -> float:
    """Accuracy on the images of all domains of classes that the model did not learn.

    All images count alike, because a domain may have few images of some of these classes.
    """
    folder = f"{store.folder}/unseen"
    rows = _complete_results(manifest, threads, version, folder, classes)["rows"]
    return cells.pooled_accuracy(cells.scores(rows))


def _complete_results(
    manifest: Manifest, threads: int, version: str, folder: str, classes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The content of results.json; `PartialError` if there are images that could not be read."""
    results = evaluate(manifest, threads, version, folder, classes).results
    # A cell that lacks images cannot be compared with the others, so none is stored.
    if unreadable := results["data"]["unreadable"]:
        raise PartialError(
            f"evaluation.data: {len(unreadable)} images could not be read, the first is "
            f"{unreadable[0]}; fix or remove them"
        )
    return results


def score(
    manifest: Manifest,
    store: CellStore,
    version: str = "",
    threads: int = 0,
    agreement: float | None = None,
    recognised: float | None = None,
    unseen: tuple[str, ...] = (),
) -> CellResult:
    """Score the one model that the manifest's evaluation names, and store the result.

    Args:
        store: where the result goes.
        version: id of the data set that the student learned from; empty for another model.
        threads: for decoding images; 0 uses one for each processor.
        agreement: see `CellResult`, as for `recognised`.
        unseen: classes that the model did not learn, to score it on as well.

    Raises:
        PartialError: an image cannot be read.
    """
    results = _complete_results(manifest, threads, version, store.folder)
    return store.keep(
        CellResult(
            model=store.model,
            version=store.version,
            data=store.data,
            held_out=store.held_out,
            agreement=agreement,
            judge=store.judge,
            recognised=recognised,
            unseen_data=store.unseen_data,
            unseen=_accuracy_on(unseen, manifest, store, version, threads) if unseen else None,
            scores=cells.scores(results["rows"]),
            notes=tuple(results["data"]["notes"]),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            machine=describe_machine(),
            environment=environment(),
        )
    )


class StudentTrainer(StudentActor):
    """An actor that trains and scores one student after the other."""

    def __init__(self, cpus: float, threads: int) -> None:
        super().__init__(cpus)
        self.threads = threads or max(1, int(cpus))

    def train(self, job: StudentJob) -> StudentResult:
        """Run a job; see `run_job`."""
        return run_job(job, self.threads, self.cpus)


def run_in_parallel(
    jobs: Sequence[StudentJob], at_most: int = 0, threads: int = 0
) -> Iterator[StudentResult]:
    """Yield the result of each job as it finishes. Each student is trained by one rank; the caller
    has connected to Ray.

    Args:
        at_most: students trained at once; 0 is as many as there are GPUs or, without any, CPUs. An
            autoscaler adds nodes for them, and then 0 is no limit.
        threads: as for `run_job`; 0 uses the CPUs that the actor has reserved.

    Raises:
        InfrastructureError: as `Engine.run` and `wait_for_nodes`.
    """
    cluster = jobs[0].cell.manifest.cluster
    count = min(len(jobs), at_most or len(jobs))
    share = plan_students(cluster, count)
    engine = student_engine(StudentTrainer, share, count, cluster, _newest_checkpoint, threads)
    yield from engine.run(iter(jobs))
    # These failed at every attempt; the study reports them as missing.
    for each in engine.quarantine:
        yield each.unit, each.reason


def _newest_checkpoint(job: StudentJob) -> int:
    """The step of a student's newest checkpoint; 0 without one."""
    student = job.store.storage.child(layout.student(job.store.model))
    return Checkpoints(student.child(layout.CHECKPOINTS)).newest()
