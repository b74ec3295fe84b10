"""Running a study: each cell through the stages, under one root, and found again once finished.

Data sets are made one after the other, by all of the cluster; then students side by side.

Data sets, students and scores lie under names that cover all that can change them. So cells, also
of different studies, share what they have in common; a killed study goes on where it was; and a
cell is skipped as soon as its scores are there. `current` is never moved: readers of a study name
their version.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dfkd.cluster.capacity import schedulable_nodes
from dfkd.cluster.connection import cluster_address, connected
from dfkd.cluster.synthesis import build, finished, identify
from dfkd.config.fingerprint import fingerprint, identity
from dfkd.config.manifest import Manifest
from dfkd.dataset.versions import PublishedVersion
from dfkd.distillation.text_only import load_tower
from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.evaluation import footprint
from dfkd.evaluation.data import Domains, open_data
from dfkd.evaluation.few_shot import read_domain
from dfkd.evaluation.footprint import NetworkSize
from dfkd.models.student import load_student
from dfkd.pipeline.preflight import check_distillation, check_synthesis
from dfkd.storage import layout
from dfkd.storage.lease import reading
from dfkd.storage.local import Storage, open_storage
from dfkd.studies import cells
from dfkd.studies.cells import CellResult, CellStore
from dfkd.studies.parallel_students import Order, StudentResult, abreast, attempt, score, shares
from dfkd.studies.results import CellScore, Found, Map
from dfkd.studies.study import Cell, Study
from dfkd.studies.tsne import before_and_after, require_tsne
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import cpu_count
from dfkd.utils.paired import require_scipy

Tell = Callable[[str, CellResult, bool], object]
"""Called with the label, the outcome, and whether it was found, of each cell that is there."""


def open_evaluation(study: Study) -> Domains | None:
    """What all its students are scored on; None of a gallery.

    Raises:
        ManifestError: unusable data, or without the domain of an embedding.
    """
    if not study.trains:
        return None
    data = open_data(study.manifest.evaluation, study.manifest.classes)
    shown = study.described.adaptation
    if shown and shown.domain not in data.names:
        raise ManifestError(
            "adaptation.domain",
            f"must be among those of evaluation.data ({', '.join(data.names)})",
            shown.domain,
            "name one of them",
        )
    return data


def reproduce(
    study: Study,
    data: Domains | None,
    threads: int = 0,
    tell: Tell = lambda label, outcome, found: None,
    at_once: int = 0,
) -> Found:
    """Make every cell that is not finished; a cell that fails is named and left out.

    Args:
        data: from `open_evaluation`.
        threads: that decode images for scoring; 0 is one for each processor.
        tell: told of each cell.
        at_once: students that are trained at once; 0 is as many as there are GPUs, or CPUs.

    Returns:
        What all cells of the study have left, now or before.

    Raises:
        ManifestError: weights, names, sizes or students that cannot be; nothing has been started.
        InfrastructureError: storage or cluster failed; the same call resumes.
    """
    if study.described.kind == "embedding":
        require_tsne()  # now, and not after the students
    if study.described.compare:
        require_scipy()
    root = open_storage(study.manifest.storage.root)
    jobs = list(_jobs(study, root, cells.digest(data) if data else ""))
    _check([job for job in jobs if not job.finished])
    if study.described.text_only:
        load_tower(study.manifest, pick_device())  # refuses now what would be refused after hours
    with contextlib.ExitStack() as runtime:
        found = _Runner(study, threads, at_once, tell, runtime).run(jobs)
    if data is None or not study.described.text_only:
        return found
    return dataclasses.replace(found, text_only=tuple(_text_only(study, root, data, threads)))


def _text_only(study: Study, root: Storage, data: Domains, threads: int) -> Iterator[CellScore]:
    """The text-only classifier of each seed, made or found."""
    digest, manifest = cells.digest(data), study.manifest
    evaluation = dataclasses.replace(manifest.evaluation, models=("text-only",))
    for seed in study.described.chosen_seeds:
        place = cells.of_text_only(root, manifest, seed, digest)
        distillation = dataclasses.replace(manifest.distillation, seeds=(seed,))
        alone = dataclasses.replace(manifest, evaluation=evaluation, distillation=distillation)
        outcome = place.read() or score(alone, place, threads=threads)
        yield CellScore(seed, place.folder, outcome)


@dataclass(frozen=True)
class _Job:
    """A cell, and what its data set and its outcome are called."""

    cell: Cell
    identity: dict[str, Any]
    """Of its data set."""
    place: CellStore | None
    """None in a gallery, whose cells are data sets."""
    teacher: CellStore | None
    """Where the zero-shot scores of its teacher belong; None unless they are asked for."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be made."""
        places = [place for place in (self.place, self.teacher) if place]
        if not places:
            return finished(self.cell.manifest, self.identity)
        return all(place.read() for place in places)


def _jobs(study: Study, root: Storage, data: str) -> Iterator[_Job]:
    identities: dict[str, dict[str, Any]] = {}
    teachers: set[str] = set()
    for cell in study.cells:
        key = fingerprint(identity(cell.manifest, {}))
        if key not in identities:  # its weight files are read whole
            identities[key] = identify(cell.manifest)
        known = identities[key]
        place = cells.of_student(root, cell, fingerprint(known), data) if study.trains else None
        teacher = None
        if study.described.teacher and study.trains:
            teacher = cells.of_teacher(root, known, data)
            teachers.add(teacher.model)
        if len(teachers) > 1:
            raise ManifestError(
                "teacher",
                f"must be empty where rows have several teachers, as {cell.row} has another",
                study.described.teacher,
                "empty it, or move the teacher to settings",
            )
        yield _Job(cell, known, place, teacher)


def _check(jobs: list[_Job]) -> None:
    """Refuse now what workers would refuse after hours."""
    data_sets = {fingerprint(job.identity): job.cell.manifest for job in jobs}
    for manifest in data_sets.values():
        check_synthesis(manifest)
    students = {_shape(job.cell.manifest): job.cell.manifest for job in jobs if job.place}
    for manifest in students.values():
        check_distillation(manifest)


def _shape(manifest: Manifest) -> tuple[object, ...]:
    """All that decides whether a student can be built."""
    config = manifest.distillation
    return config.student, config.weights, config.stem, manifest.synthesis.image_size


@dataclass
class _Runner:
    """One call of `reproduce`."""

    study: Study
    threads: int
    at_once: int
    tell: Tell
    runtime: contextlib.ExitStack
    """Of Ray, which starts with the first cell that needs it."""
    teacher: CellScore | None = None
    versions: dict[str, PublishedVersion] = field(default_factory=dict)
    broken: dict[str, DfkdError] = field(default_factory=dict)
    """Data sets that could not be made, by fingerprint: the other seeds need not try again."""
    outcomes: dict[str, CellResult] = field(default_factory=dict)
    """Of cells, by label."""
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, jobs: list[_Job]) -> Found:
        """All data sets, then all students, so that as many as can train side by side."""
        orders = []
        for job in jobs:
            try:
                orders += self._begin(job)
            except InfrastructureError:
                raise
            except DfkdError as error:
                self.failed[job.cell.label] = " ".join(str(error).split())
        with self._kept(orders):
            for done in self._made(orders):
                label = done.order.cell.label
                if done.outcome is None:
                    self.failed[label] = done.failure
                else:
                    self._take(label, done.outcome, found=False)
        return Found(self.teacher, self._students(jobs), self.versions, self._failures(jobs))

    def _kept(self, orders: list[Order]) -> contextlib.AbstractContextManager[None]:
        """Keeps the data sets of students that are still to be trained from removal."""
        if not orders:
            return contextlib.nullcontext()
        needed = {f"{order.cell.method}/{order.version}" for order in orders}
        return reading(open_storage(self.study.manifest.storage.root), sorted(needed))

    def _begin(self, job: _Job) -> list[Order]:
        """Make or find all of a cell but its student; returns the order of one that is missing."""
        cell = job.cell
        if self.study.described.pictures and cell.row not in self.versions:
            self.versions[cell.row] = self._version(job)
        if job.teacher and self.teacher is None:
            evaluation = dataclasses.replace(cell.manifest.evaluation, models=("teacher",))
            scored = dataclasses.replace(cell.manifest, evaluation=evaluation)
            outcome = job.teacher.read() or score(scored, job.teacher, threads=self.threads)
            self.teacher = CellScore(0, job.teacher.folder, outcome)
        if job.place is None:
            return []
        if found := job.place.read():
            self._take(cell.label, found, found=True)
            return []
        return [Order(cell, job.place, self._version(job).id)]

    def _version(self, job: _Job) -> PublishedVersion:
        """The cell's data set, made or found."""
        key = fingerprint(job.identity)
        if key in self.broken:
            raise self.broken[key]
        if not finished(job.cell.manifest, job.identity):
            self._connect()
        try:
            # Whatever else is unfinished under this root is another cell's, which takes it up.
            return build(job.cell.manifest, job.identity, abandon=True, make_current=False).version
        except DfkdError as error:
            self.broken[key] = error
            raise

    def _made(self, orders: list[Order]) -> Iterator[StudentResult]:
        """What came of each order; those of one rank are made side by side, where there is room."""
        single = [each for each in orders if each.cell.manifest.distillation.ranks == (1, 1)]
        several = [each for each in orders if each.cell.manifest.distillation.ranks != (1, 1)]
        if single and self._have_room(len(single)):
            yield from abreast(single, self.at_once, self.threads)
            single = []
        if several:
            self._connect()
        for order in [*single, *several]:
            try:
                yield attempt(order, self.threads)
            except InfrastructureError:
                raise
            except Exception as error:  # of one cell, such as memory that is too small for it
                yield StudentResult(order, None, " ".join(repr(error).split()))

    def _have_room(self, students: int) -> bool:
        """Whether there is a cluster, or room on this machine for more than one student at once."""
        if cluster_address() or (min(students, cpu_count()) > 1 and self.at_once != 1):
            self._connect()
            return (
                bool(cluster_address())
                or shares(schedulable_nodes(), students, self.at_once)[0] > 1
            )
        return False

    def _take(self, label: str, outcome: CellResult, found: bool) -> None:
        self.outcomes[label] = outcome
        self.tell(label, outcome, found)

    def _students(self, jobs: list[_Job]) -> dict[str, tuple[CellScore, ...]]:
        """By row, in the order of cells."""
        students: dict[str, tuple[CellScore, ...]] = {}
        for job in jobs:
            if job.place and (outcome := self.outcomes.get(job.cell.label)):
                row = students.get(job.cell.row, ())
                students[job.cell.row] = (*row, CellScore(job.cell.seed, job.place.folder, outcome))
        return students

    def _failures(self, jobs: list[_Job]) -> dict[str, str]:
        """In the order of cells."""
        labels = [job.cell.label for job in jobs]
        return {label: self.failed[label] for label in labels if label in self.failed}

    def _connect(self) -> None:
        """Join a cluster, or start a local one, unless that is done."""
        self.runtime.enter_context(connected())


def networks(study: Study, found: Found) -> dict[str, NetworkSize]:
    """What answers an image in each row that has a finished cell, by the row's label."""
    rows: dict[str, NetworkSize] = {}
    if found.teacher:
        rows[study.described.teacher] = footprint.teacher(study.manifest)
    if found.text_only:
        rows[study.described.text_only] = footprint.text_only(study.manifest)
    shapes: dict[tuple[object, ...], NetworkSize] = {}
    for row in (name for name, scored in found.students.items() if scored):
        manifest = study.rows[row][0].manifest
        shape = _shape(manifest)
        if shape not in shapes:
            shapes[shape] = footprint.student(manifest)
        rows[row] = shapes[shape]
    return rows


def maps(study: Study, data: Domains, found: Found, threads: int = 0) -> Iterator[Map]:
    """Of each row the domain of `adaptation` as its first student sees it, before and after."""
    root, device = open_storage(study.manifest.storage.root), pick_device()
    shown = study.described.adaptation
    if shown is None:
        return
    for row, done in found.students.items():
        if done:
            student, _ = load_student(root.child(layout.student(done[0].outcome.model)), device)
            manifest = study.rows[row][0].manifest
            domain = read_domain(manifest, data, shown.domain, threads or cpu_count())
            for points in before_and_after(
                student,
                domain.images,
                data.classes,
                shown.domain,
                manifest.fewshot,
                shown.shots,
                shown.perplexity,
            ):
                classes = tuple(data.classes[label] for label in points.labels)
                yield Map(
                    row, points.shots, points.points, classes, points.taught, points.silhouette
                )
