"""Run a study: take each cell through the stages under one root, and reuse what is finished.

Data sets are made one after the other, each by the whole cluster; then students are trained in
parallel.

The names of data sets, students and scores cover everything that can change them. So cells share
what they have in common, also across studies; a killed study resumes; and a cell with scores is
skipped. `current` is never moved: readers in a study name their version.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dfkd.cluster.capacity import divide_resources, schedulable_nodes
from dfkd.cluster.connection import cluster_address, connected
from dfkd.cluster.engine import Engine
from dfkd.cluster.making import build, identify, is_published
from dfkd.cluster.worker import synthesis_engine
from dfkd.config.hashing import fingerprint
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.distillation.student_names import student_name
from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.evaluation.data import Domains, open_data
from dfkd.lab.few_shot.run import require_trainable, unknown_domain
from dfkd.lab.studies import cells
from dfkd.lab.studies.cells import CellResult, CellStore
from dfkd.lab.studies.judge import Judge, read_judge
from dfkd.lab.studies.paired import require_scipy
from dfkd.lab.studies.parallel_students import (
    StudentJob,
    StudentResult,
    run_in_parallel,
    run_job,
    score,
)
from dfkd.lab.studies.results import CellScore, StudyCells, student_shape
from dfkd.lab.studies.study import Cell, Study
from dfkd.lab.studies.tsne import require_tsne
from dfkd.operations.preflight import check_batches, check_distillation, check_synthesis
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.storage.lease import protecting
from dfkd.storage.local import open_storage
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import cpu_count

OnCell = Callable[[str, CellResult | str, bool], object]
"""Called for each cell at once with its label, its result or the reason why there is none, and
whether the result was reused."""


def open_evaluation(study: Study) -> Domains | None:
    """The evaluation data of all students; None for a gallery.

    Raises:
        ManifestError: unusable data, or without a domain that an embedding can train on.
    """
    if not study.trains:
        return None
    data = open_data(study.manifest.evaluation, study.manifest.classes)
    adaptation = study.described.adaptation
    if adaptation:
        if adaptation.domain not in data.names:
            raise unknown_domain("adaptation.domain", data, adaptation.domain)
        require_trainable("adaptation.domain", data, adaptation.domain)
    return data


def reproduce(
    study: Study,
    data: Domains | None,
    threads: int = 0,
    on_cell: OnCell = lambda label, outcome, reused: None,
    at_once: int = 0,
) -> StudyCells:
    """Run every unfinished cell. A cell that fails is reported in the result, and the others go on.

    Args:
        study: the study, checked by `read`.
        data: the evaluation data, as `open_evaluation` returns them.
        threads: threads that decode images while scoring; 0 means one for each processor.
        on_cell: called for each cell that is finished or has failed.
        at_once: students trained at once; 0 is as many as there are GPUs or, without any, CPUs.

    Returns:
        All cells of the study, finished by this call or an earlier one.

    Raises:
        ManifestError: weights, names, sizes or students that cannot work; nothing has been started.
        InfrastructureError: storage or cluster failed; the same call resumes.
    """
    # Missing packages, weights and wrong sizes are refused now, not after hours of training.
    _require_packages(study)
    manifest, device = study.manifest, pick_device()
    size = manifest.synthesis.image_size
    judge = read_judge(study.described.chosen_judge, manifest.classes, size, device)
    root = open_storage(manifest.storage.root)
    # Before any data set, because garbage collection would remove those that no cell protects yet.
    root.put_if_absent(layout.STUDIES, b"")
    cell_jobs = list(_cell_jobs(study, root, data, judge.sha256 if judge else ""))
    # Only of unfinished cells, because the checks load models.
    _check_jobs([cell_job for cell_job in cell_jobs if not cell_job.finished])
    named = judge.accuracy(data, size, threads) if judge and data else None
    with contextlib.ExitStack() as runtime:
        found = _Runner(study, threads, at_once, on_cell, runtime, judge).run(cell_jobs)
        return dataclasses.replace(found, judge_accuracy=named)


def _require_packages(study: Study) -> None:
    """Raise `ManifestError` if a package that the study's result needs is not installed."""
    if study.described.kind == "embedding":
        require_tsne()
    if study.described.compare:
        require_scipy()


@dataclass(frozen=True)
class _DataSet:
    """A data set that a cell needs, made or not."""

    manifest: Manifest
    identity: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Its fingerprint; equal data sets have the same."""
        return fingerprint(self.identity)

    @property
    def finished(self) -> bool:
        """Whether it is published."""
        return is_published(self.manifest, self.identity)


@dataclass(frozen=True)
class _CellJob:
    """A cell, with its data sets and the location of its result."""

    cell: Cell
    data: _DataSet
    held_out: _DataSet | None
    """The data set that measures agreement."""
    store: CellStore | None
    """Where the cell's result goes; None in a gallery, whose cells are data sets."""
    teacher: CellStore | None
    """Where the teacher's zero-shot result goes; None if it is not requested."""
    mapped: bool
    """Whether maps show the features of the cell's student, which must then be there too."""

    @property
    def stored(self) -> CellResult | None:
        """The cell's result; None if it has yet to be made, or its student again for maps."""
        if self.store is None:
            return None
        card = f"{layout.student(self.store.model)}/{layout.STUDENT_CARD}"
        if self.mapped and not self.store.storage.exists(card):
            return None
        return self.store.read()

    @property
    def finished(self) -> bool:
        """Whether everything of the cell exists."""
        if self.store is None:
            return self.data.finished
        return bool(self.stored and (self.teacher is None or self.teacher.read()))


def _cell_jobs(study: Study, root: Storage, data: Domains | None, judge: str) -> Iterator[_CellJob]:
    """Yield the job of each cell; `ManifestError` if there are several teachers for one row."""
    digest = cells.evaluation_digest(data) if data else ""
    unseen_data = cells.unseen_digest(study) if data else ""
    # Each data set is identified once, because `identify` hashes whole weight files.
    data_sets = {
        key: _DataSet(manifest, identify(manifest)) for key, manifest in study.data_sets().items()
    }

    def data_set(manifest: Manifest) -> _DataSet:
        return data_sets[fingerprint(identity(manifest, {}))]

    teachers: set[str] = set()
    for cell in study.cells:
        images, held_out_manifest = data_set(cell.manifest), study.held_out(cell)
        held_out = data_set(held_out_manifest) if held_out_manifest else None
        store = teacher = None
        if study.trains:
            measured = held_out.fingerprint if held_out else ""
            # Students of distances know only their own classes.
            unseen = unseen_data if cell.manifest.distillation.embeds else ""
            version = images.fingerprint
            name = student_name(cell.manifest, version, cell.method, cell.seed)
            store = CellStore(root, name, version, digest, measured, judge, unseen)
        if study.described.teacher and study.trains:
            teacher = cells.cell_of_teacher(root, images.identity, digest, unseen_data)
            teachers.add(teacher.model)
        # The table has a single row for the teacher, so all rows must share one.
        if len(teachers) > 1:
            raise ManifestError(
                "teacher",
                f"must be empty where rows have several teachers, as {cell.row} has another",
                study.described.teacher,
                "empty it, or move the teacher to settings",
            )
        mapped = study.described.kind == "embedding" and cell is study.rows[cell.row][0]
        yield _CellJob(cell, images, held_out, store, teacher, mapped)


def _check_jobs(cell_jobs: list[_CellJob]) -> None:
    """Refuse now what workers would only refuse after hours."""
    for cell_job in cell_jobs:
        if cell_job.store:
            check_batches(cell_job.cell.manifest)
    # Each check once for all cells that share a data set or a shape, because it reads weights.
    data_sets = {cell_job.data.fingerprint: cell_job.data.manifest for cell_job in cell_jobs}
    for manifest in data_sets.values():
        check_synthesis(manifest)
    students = {
        student_shape(cell_job.cell.manifest): cell_job.cell.manifest
        for cell_job in cell_jobs
        if cell_job.store
    }
    for manifest in students.values():
        check_distillation(manifest)


@dataclass
class _Runner:
    """The state of one call of `reproduce`."""

    study: Study
    threads: int
    at_once: int
    on_cell: OnCell
    runtime: contextlib.ExitStack
    """Closes Ray, which starts with the first cell that needs it."""
    judge: Judge | None
    teacher: CellScore | None = None
    versions: dict[str, PublishedVersion] = field(default_factory=dict)
    broken: dict[str, DfkdError] = field(default_factory=dict)
    """Errors of data sets that could not be made, by fingerprint; other seeds do not retry them."""
    recognised: dict[str, float] = field(default_factory=dict)
    """Share of each data set's images that the judge recognises, by the data set's id."""
    outcomes: dict[str, CellResult] = field(default_factory=dict)
    """Results by the cell's label."""
    failed: dict[str, str] = field(default_factory=dict)
    engine: Engine[Any] | None = None
    """Its workers make data sets; None before the first one that is not there."""

    def run(self, cell_jobs: list[_CellJob]) -> StudyCells:
        """Make all data sets first, so that as many students as possible then train in parallel."""
        student_jobs = []
        for cell_job in cell_jobs:
            try:
                student_jobs += self._begin(cell_job)
            # Without storage or cluster every other cell would fail too, so the call ends here.
            except InfrastructureError:
                raise
            except DfkdError as error:
                self._take(cell_job.cell.label, " ".join(str(error).split()))
        if self.engine:
            self.engine.close()  # students need what these workers have reserved
        with self._kept(student_jobs):
            for student_job, outcome in self._made(student_jobs):
                self._take(student_job.cell.label, outcome)
        labels = [cell_job.cell.label for cell_job in cell_jobs]
        # In the order of the cells, because students that train in parallel finish in any order.
        failed = {label: self.failed[label] for label in labels if label in self.failed}
        return StudyCells(self.teacher, self._students(cell_jobs), self.versions, failed)

    def _kept(self, student_jobs: list[StudentJob]) -> contextlib.AbstractContextManager[None]:
        """A lease on the data sets of untrained students, so that garbage collection keeps them."""
        if not student_jobs:
            return contextlib.nullcontext()
        needed = {
            f"{student_job.cell.method}/{version}"
            for student_job in student_jobs
            for version in filter(None, (student_job.version, student_job.held_out))
        }
        return protecting(open_storage(self.study.manifest.storage.root), sorted(needed))

    def _begin(self, cell_job: _CellJob) -> list[StudentJob]:
        """Make or reuse all of a cell except its student; returns a job for a missing student."""
        cell = cell_job.cell
        if self.study.described.pictures and cell.row not in self.versions:
            self.versions[cell.row] = self._version(cell_job.data)
        # All cells share one teacher (`_cell_jobs` checks that), so the first one scores it.
        if cell_job.teacher and self.teacher is None:
            outcome = cell_job.teacher.read() or score(
                cell.manifest.with_values(evaluation={"models": ("teacher",)}),
                cell_job.teacher,
                threads=self.threads,
                unseen=self.study.described.unseen,
            )
            self.teacher = CellScore(0, cell_job.teacher.folder, outcome)
        if cell_job.store is None:
            return []
        # Before the data set: a finished cell needs none, even if it was deleted since.
        if stored := cell_job.stored:
            self._take(cell.label, stored, reused=True)
            return []
        held_out = self._version(cell_job.held_out).id if cell_job.held_out else ""
        version, image_size = self._version(cell_job.data), cell.manifest.synthesis.image_size
        # Students of one data set share its value.
        if self.judge and version.id not in self.recognised:
            self.recognised[version.id] = self.judge.recognised(version, image_size)
        recognised = self.recognised.get(version.id)
        unseen = self.study.described.unseen if cell.manifest.distillation.embeds else ()
        return [StudentJob(cell, cell_job.store, version.id, held_out, recognised, unseen)]

    def _version(self, data: _DataSet) -> PublishedVersion:
        """The published version of a data set, made or reused."""
        key = data.fingerprint
        # Several cells may need the same data set, which is tried once.
        if key in self.broken:
            raise self.broken[key]
        try:
            # With `abandon`, another cell's unfinished version is no error; that cell resumes it.
            engine = None if data.finished else self._workers()
            return build(
                data.manifest, data.identity, abandon=True, make_current=False, engine=engine
            ).version
        except DfkdError as error:
            self.broken[key] = error
            raise

    def _workers(self) -> Engine[Any]:
        """The engine whose workers make one data set after another."""
        self._connect()
        self.engine = self.engine or synthesis_engine(self.study.manifest.cluster)
        return self.engine

    def _made(self, student_jobs: list[StudentJob]) -> Iterator[StudentResult]:
        """Yield each job's result; jobs of one rank run in parallel if there are resources."""
        # A student with several ranks may need the whole cluster, so these train one by one.
        single_rank: list[StudentJob] = []
        multi_rank: list[StudentJob] = []
        for each in student_jobs:
            ranks = each.cell.manifest.distillation.rank_limits
            (single_rank if ranks == (1, 1) else multi_rank).append(each)
        if single_rank and self._have_room(len(single_rank)):
            yield from run_in_parallel(single_rank, self.at_once, self.threads)
            single_rank = []
        # A single rank trains in this process, so jobs that do not run in parallel need no Ray.
        if multi_rank:
            self._connect()
        for student_job in [*single_rank, *multi_rank]:
            try:
                yield run_job(student_job, self.threads)
            except InfrastructureError:
                raise
            except Exception as error:  # e.g. too little memory for this cell
                yield student_job, " ".join(repr(error).split())

    def _have_room(self, students: int) -> bool:
        """Whether there is a cluster, or this machine can train more than one student at once."""
        # A local Ray takes seconds to start, so it is started only where it can be of use.
        gpus = self.study.manifest.cluster.gpus_per_worker != 0
        if cluster_address() or (min(students, cpu_count()) > 1 and self.at_once != 1):
            self._connect()
            fitting, _ = divide_resources(schedulable_nodes(), self.at_once or students, gpus)
            return bool(cluster_address()) or fitting > 1
        return False

    def _take(self, label: str, outcome: CellResult | str, reused: bool = False) -> None:
        """Record a cell's result, or why it has none, and report it to the caller."""
        if isinstance(outcome, str):
            self.failed[label] = outcome
        else:
            self.outcomes[label] = outcome
        self.on_cell(label, outcome, reused)

    def _students(self, cell_jobs: list[_CellJob]) -> dict[str, tuple[CellScore, ...]]:
        """Finished students by row, in the order of the cells."""
        students: dict[str, tuple[CellScore, ...]] = {}
        for cell_job in cell_jobs:
            if cell_job.store and (outcome := self.outcomes.get(cell_job.cell.label)):
                row = students.get(cell_job.cell.row, ())
                students[cell_job.cell.row] = (
                    *row,
                    CellScore(cell_job.cell.seed, cell_job.store.folder, outcome),
                )
        return students

    def _connect(self) -> None:
        """Join a cluster or start a local one, unless that has been done."""
        self.runtime.enter_context(connected())
