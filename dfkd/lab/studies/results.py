"""What a study has measured: stored cells, rows of cells, and results.json.

    {data set}/cells/{model}-{hash12}/cell.json     a `CellResult`; there once the cell is finished

`model` is the student's name, which covers data set, settings and seed, or the name of the teacher,
whose cell lies in the root itself. Studies that have a cell in common and use the same root share
its result.

`results.json` (schema 2) holds the fields of `StudyResults`; accuracies are 0-1. Tables and charts
are made from it alone. It does not contain the time of writing, so the same cells give the same
bytes.
"""

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from dfkd.config.distillation import Average, Model
from dfkd.config.hashing import fingerprint
from dfkd.dataset.published import PublishedVersion
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation.data import Domains, open_data
from dfkd.evaluation.results import Spread, domain_means, over_seeds, selected, spread
from dfkd.lab.studies.study import Study
from dfkd.storage import layout
from dfkd.storage.base import MissingObject, Storage
from dfkd.utils.intervals import half_width
from dfkd.utils.strict_json import canonical, indented, read_as
from dfkd.utils.types import CHECKED, Fraction, Sha256

FILE = "results.json"
CELL = "cell.json"
CELL_LIMIT = 1 << 22
"""Maximum size of cell.json in bytes."""
SCHEMA = 2
"""Increase it with every code change that changes the scores of an unchanged student."""

Point = tuple[float, float]
"""Position (x, y) on a map."""


@dataclass(frozen=True)
class Difference:
    """A mean difference of accuracies (0-1) with its 95 % interval."""

    mean: float
    low: float | None
    """Lower end of the interval; None for a single pair, which has no interval."""
    high: float | None
    """Upper end of the interval; None for a single pair."""


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The mean of ours minus theirs over the common seeds; None if there is no common seed.

    Two runs with the same seed share the latents' noise and the student's initial weights and
    batches. What they share cancels in the difference, which narrows the interval if both rows rise
    and fall together. If they are unrelated, it is a little wider than that of two separate means,
    because it has only n - 1 degrees of freedom.

    The interval is that of Student's t: mean ± t(0.975, n - 1) s / sqrt(n), where s is the standard
    deviation (n - 1) of the n differences.

    Args:
        ours: accuracies by seed.
        theirs: accuracies of the reference by seed.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    mean, half = statistics.fmean(differences), half_width(differences)
    if half is None:
        return Difference(mean, None, None)
    return Difference(mean, mean - half, mean + half)


@checked(frozen=True, kw_only=True, config=CHECKED)
class Score:
    """A model's scores on one domain."""

    domain: str
    images: Annotated[int, Field(ge=1)]
    accuracy: Fraction
    class_mean: Fraction
    per_class: dict[str, Fraction]

    def averaged(self, average: Average) -> float:
        """The accuracy over images, or the mean over classes, as `average` says; 0-1."""
        return selected(self.accuracy, self.class_mean, average)


@checked(frozen=True, kw_only=True, config=CHECKED)
class CellResult:
    """A model's scores, and when, where and with what software they were made."""

    schema: Literal[1] = 1
    model: str
    """Name of the student's folder, or `teacher-{hash12}`."""
    version: Sha256 | Literal[""]
    """Fingerprint of the data set that the student learned from; empty for the teacher."""
    data: Sha256
    """Digest of the scored images and their labels (`evaluation_digest`)."""
    held_out: Sha256 | Literal[""] = ""
    """Fingerprint of the data set that `agreement` was measured on; empty without one."""
    agreement: Fraction | None = None
    """Share of the held-out images for which student and teacher choose the same class."""
    judge: Sha256 | Literal[""] = ""
    """The sha256 of the judge's file; empty without one."""
    recognised: Fraction | None = None
    """Share of the data set's images that the judge puts into the class they were made for."""
    unseen_data: Sha256 | Literal[""] = ""
    """Digest of the images of classes that the student did not learn; empty without any."""
    unseen: Fraction | None = None
    """Accuracy on all of these images together."""
    scores: Annotated[tuple[Score, ...], Field(min_length=1)]
    """One score for each domain."""
    notes: tuple[str, ...]
    """Remarks about the evaluation data."""
    date: str
    """Day in UTC, ISO 8601."""
    machine: dict[str, Any]
    environment: dict[str, str]

    def mean(self, average: Average) -> float:
        """Mean over domains of the accuracy that `average` selects, 0-1."""
        return sum(score.averaged(average) for score in self.scores) / len(self.scores)


@dataclass(frozen=True)
class CellStore:
    """Where the result of a model on an evaluation set is stored."""

    storage: Storage
    """The root of the data set, or of the study for the teacher."""
    model: str
    version: str
    data: str
    held_out: str = ""
    judge: str = ""
    unseen_data: str = ""

    @property
    def folder(self) -> str:
        """Folder relative to the root; its name contains a hash of all fields."""
        about = {"schema": SCHEMA, **self._fields}
        return f"{layout.CELLS}{self.model}-{hashlib.sha256(canonical(about)).hexdigest()[:12]}"

    @property
    def _fields(self) -> dict[str, str]:
        fields = {
            "model": self.model,
            "version": self.version,
            "data": self.data,
            "held_out": self.held_out,
        }
        # Only where they are measured, so that cells without them keep their names.
        later = {"judge": self.judge, "unseen_data": self.unseen_data}
        return fields | {name: value for name, value in later.items() if value}

    def read(self) -> CellResult | None:
        """The stored result; None if the cell is not finished.

        Raises:
            CorruptionError: the file is damaged or belongs to another cell.
        """
        key = f"{self.folder}/{CELL}"
        try:
            result = read_as(TypeAdapter(CellResult), self.storage.get(key, CELL_LIMIT))
        except MissingObject:
            return None
        except ValueError:
            result = None
        # The hash in the folder's name covers these fields, so a difference means damage.
        if result is None or not self._fields.items() <= asdict(result).items():
            raise CorruptionError(
                f"{self.storage.location(key)}: is not the cell that was written; delete it and "
                "run the same command again, which makes it anew"
            )
        return result

    def keep(self, outcome: CellResult) -> CellResult:
        """Write the result unless there is one already; returns the stored result."""
        key = f"{self.folder}/{CELL}"
        # Two calls may finish the same cell; both then show the first result.
        if self.storage.put_if_absent(key, canonical(asdict(outcome))):
            return outcome
        return self.read() or outcome


def cell_of_teacher(
    storage: Storage, identity: Mapping[str, Any], data: str, unseen_data: str = ""
) -> CellStore:
    """Where the zero-shot result of a data set's teacher is stored.

    Args:
        identity: of the data set; only its classes and teacher keys matter.
    """
    # Prompts and images of the data set do not change what the teacher says about other images.
    keys = [key for key in identity if key == "classes" or key.startswith("teacher.")]
    name = f"teacher-{fingerprint({key: identity[key] for key in keys})[:12]}"
    return CellStore(storage, name, "", data, unseen_data=unseen_data)


def evaluation_digest(data: Domains) -> str:
    """The sha256 of all images with their domains and classes; file names do not matter.

    An image that cannot be read is included as `unreadable`.
    """
    entries = []
    for item in data.items:
        try:
            image_hash = hashlib.sha256(item.read()).hexdigest()
        # It has no score, but repairing it changes the scored images, and so the digest.
        except (OSError, ValueError):  # the latter for a file that is too large
            image_hash = "unreadable"
        entries.append((item.domain, item.class_index, image_hash))
    return hashlib.sha256(canonical([list(data.classes), sorted(entries)])).hexdigest()


def unseen_digest(study: Study) -> str:
    """Digest of the images of the study's `unseen` classes; empty without any.

    Raises:
        ManifestError: students learn one of these classes, or the evaluation data lack one.
    """
    unseen, manifest = study.described.unseen, study.manifest
    if not unseen:
        return ""
    if learned := [name for name in unseen if name in manifest.classes]:
        raise ManifestError(
            "unseen", "must name classes that no student learns", learned, "remove these"
        )
    data = open_data(manifest.evaluation, unseen)
    if data.unscored:
        raise ManifestError(
            "unseen", "must name classes of the evaluation data", data.unscored, "remove these"
        )
    return evaluation_digest(data)


@dataclass(frozen=True)
class CellScore:
    """A finished cell."""

    seed: int
    """Seed of the student; 0 for the teacher."""
    folder: str
    """Folder relative to the root."""
    outcome: CellResult

    @property
    def by_domain(self) -> dict[str, Score]:
        """The scores by domain."""
        return {score.domain: score for score in self.outcome.scores}

    def accuracies(self, average: Average) -> dict[str, float]:
        """Accuracy by domain, over images or over classes as `average` says; 0-1."""
        return {name: score.averaged(average) for name, score in self.by_domain.items()}


@dataclass(frozen=True)
class StudyRow:
    """The cells with the same value of each axis, or the cell of the teacher."""

    names: tuple[str, ...]
    """One value of each axis; for the teacher its name, then blanks."""
    model: Model
    cells: tuple[CellScore, ...]
    """At least one; in a gallery none."""
    domains: dict[str, Spread]
    """Accuracy by domain, over seeds; `StudyResults.domains` has the order of the columns."""
    mean: Spread | None
    """Mean accuracy over domains, over seeds; None in a gallery."""
    parameters: int | None = None
    """Number of parameters of the student or the teacher's image tower; None in a gallery."""
    version: str = ""
    """Fingerprint of the data set that a gallery shows; empty in other studies."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions of Python and libraries that published this data set; empty in other studies."""

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        model: Model,
        cells: tuple[CellScore, ...],
        average: Average,
        parameters: int | None = None,
    ) -> "StudyRow":
        """A row of one cell or more, all scored on the same domains."""
        domains, mean = over_seeds({cell.seed: cell.accuracies(average) for cell in cells})
        return cls(names, model, cells, domains, mean, parameters)

    @property
    def label(self) -> str:
        """The row's name."""
        return " ".join(filter(None, self.names))

    @property
    def data_sets(self) -> int:
        """Number of different data sets that the row's students learned from."""
        return len({cell.outcome.version for cell in self.cells})

    def against(self, other: "StudyRow", average: Average) -> Difference | None:
        """Paired difference of the means over domains; None if no seed is finished in both rows."""
        ours, theirs = (
            domain_means({cell.seed: cell.accuracies(average) for cell in row.cells})
            for row in (self, other)
        )
        return difference(ours, theirs)

    @property
    def agreement(self) -> Spread | None:
        """Agreement with the teacher on held-out images, over seeds; None if not measured."""
        return _spread_of_measured(cell.outcome.agreement for cell in self.cells)

    @property
    def unseen(self) -> Spread | None:
        """Accuracy on unseen classes, over seeds; None if not measured."""
        return _spread_of_measured(cell.outcome.unseen for cell in self.cells)

    @property
    def recognised(self) -> Spread | None:
        """Share of images that the judge recognises, over data sets; None if not measured."""
        # Students of one data set share its value, which must count once.
        by_version = {cell.outcome.version: cell.outcome.recognised for cell in self.cells}
        return _spread_of_measured(by_version.values())

    def of_class(self, domain: str, name: str) -> Spread | None:
        """Accuracy of a class over seeds; None if the domain has no image of it."""
        return _spread_of_measured(
            cell.by_domain[domain].per_class.get(name) for cell in self.cells
        )

    def of_class_everywhere(self, name: str) -> Spread | None:
        """Accuracy of a class over seeds, averaged over the domains that have it."""
        by_cell = [
            [each.per_class[name] for each in cell.outcome.scores if name in each.per_class]
            for cell in self.cells
        ]
        # All cells were scored on the same images, so either all of them have the class or none.
        return spread([statistics.fmean(values) for values in by_cell]) if all(by_cell) else None

    def class_mean(self, domain: str) -> Spread:
        """Mean over a domain's classes, over seeds."""
        return spread([cell.by_domain[domain].class_mean for cell in self.cells])


@dataclass(frozen=True)
class Map:
    """The images of a domain in the feature space of a row's first student, in two dimensions."""

    row: str
    shots: int
    """Training images of each class; 0 before any training."""
    points: tuple[Point, ...]
    classes: tuple[str, ...]
    """Class of each point."""
    taught: tuple[bool, ...]
    """Whether few-shot training uses the image; the same in the map before and after it."""
    silhouette: float
    """Silhouette of the classes among the features of the images not trained on, -1 to 1."""


def _spread_of_measured(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of the values that there are; None without any."""
    measured = [value for value in values if value is not None]
    return spread(measured) if measured else None


@dataclass(frozen=True)
class StudyCells:
    """The finished and the missing cells of a study."""

    teacher: CellScore | None
    """The teacher's scores, if the study has a row for them."""
    students: Mapping[str, tuple[CellScore, ...]]
    """The finished cells of each row, by the row's name."""
    versions: Mapping[str, PublishedVersion]
    """The data set of each row's first seed, by the row's name."""
    failed: Mapping[str, str]
    """Why a cell is missing, by its label."""
    judge_accuracy: float | None = None
    """Share of the evaluation images, 0-1, that the judge names; None without one."""


@dataclass(frozen=True)
class StudyResults:
    """The results of a study, as results.json stores them."""

    study: str
    size: Literal["full", "quick"]
    shows: tuple[str, ...]
    command: str
    """Command that repeats the study; it reuses finished cells."""
    commit: str | None
    """Commit of the checkout that wrote the file."""
    seeds: tuple[int, ...]
    domains: dict[str, int]
    """Number of scored images by domain, in the order of tables and figures; empty in a gallery.
    In a case those of its class."""
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    """Remarks about the evaluation data."""
    rows: tuple[StudyRow, ...]
    """The rows with at least one finished cell, the teacher first."""
    failed: dict[str, str]
    maps: tuple[Map, ...] = ()
    judge: str = ""
    """The sha256 of the judge's file; empty without one."""
    judge_accuracy: float | None = None
    """Share of the evaluation images, 0-1, that the judge names."""
    average: Average = "images"
    """Whether accuracies are over images, or means over the classes."""
    schema: int = field(default=2)

    def encode(self) -> bytes:
        """The content of results.json."""
        return indented(asdict(self))


def scored_images(study: Study, data: Domains) -> dict[str, int]:
    """Number of images by domain that a study's table is about, in the order of the data."""
    pictures = study.described.pictures
    shown = [data.classes.index(name) for name in pictures.classes] if pictures else ()
    count = Counter(item.domain for item in data.items if not shown or item.class_index in shown)
    return {name: count[name] for name in data.names}


def collect_results(
    study: Study,
    study_cells: StudyCells,
    domains: Mapping[str, int],
    command: str,
    commit: str | None,
    maps: Iterable[Map],
    parameters: Mapping[str, int],
) -> StudyResults:
    """Collect the results of a study from its cells.

    Args:
        domains: number of scored images by domain, as in `StudyResults`.
        parameters: number of parameters of each row's network, by the row's label.

    Raises:
        CorruptionError: a stored cell has scores of other domains.
    """
    cells = [cell for row in study_cells.students.values() for cell in row]
    cells += [study_cells.teacher] if study_cells.teacher else []
    for cell in cells:
        # The root may be a stranger's.
        if {score.domain for score in cell.outcome.scores} != domains.keys():
            raise CorruptionError(
                f"{cell.folder}: has scores of other domains than evaluation.data; delete it and "
                "run the same command again, which makes it anew"
            )
    outcomes = [cell.outcome for cell in cells]
    average, rows = study.manifest.evaluation.average, list[StudyRow]()
    if study_cells.teacher:
        name = study.described.teacher
        # Blanks, because every row of a table has a cell for each axis.
        names = (name, *("",) * (len(study.described.chosen_axes) - 1))
        size = parameters.get(name)
        rows.append(StudyRow.of(names, "teacher", (study_cells.teacher,), average, size))
    for name, finished in study_cells.students.items():
        if finished:
            names, size = study.rows[name][0].names, parameters.get(name)
            rows.append(StudyRow.of(names, "student", finished, average, size))
    # The rows of a gallery are data sets, without scores.
    for name, version in () if study.trains else study_cells.versions.items():
        names, made_by = study.rows[name][0].names, version.facts["environment"]
        rows.append(StudyRow(names, "student", (), {}, None, None, version.fingerprint, made_by))
    return StudyResults(
        study=study.described.name,
        size=study.described.size,
        shows=study.described.shows,
        command=command,
        commit=commit,
        seeds=study.described.chosen_seeds,
        domains=dict(domains),
        classes=study.manifest.classes,
        notes=outcomes[0].notes if outcomes else (),
        rows=tuple(rows),
        failed=dict(study_cells.failed),
        maps=tuple(maps),
        judge=next((outcome.judge for outcome in outcomes if outcome.judge), ""),
        judge_accuracy=study_cells.judge_accuracy,
        average=average,
    )
