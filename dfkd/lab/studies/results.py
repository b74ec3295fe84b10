"""The results of a study: its cells by row, with mean and standard deviation over seeds.

`results.json` (schema 2) holds the fields of `StudyResults`; accuracies are 0-1. Tables and charts
are made from it alone. It does not contain the time of writing, so the same cells give the same
bytes.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dfkd.config.distillation import Average, Model
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.errors import CorruptionError
from dfkd.evaluation import footprint
from dfkd.evaluation.data import Domains
from dfkd.evaluation.results import Spread, domain_means, over_seeds, spread
from dfkd.lab.studies.cells import CellResult, Score
from dfkd.lab.studies.paired import Difference, difference
from dfkd.lab.studies.study import Study
from dfkd.utils.strict_json import indented

FILE = "results.json"

Point = tuple[float, float]
"""Position (x, y) on a map."""


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


def networks(study: Study, study_cells: StudyCells) -> dict[str, footprint.TimedNetwork]:
    """The network of each row with a finished cell, by the row's label."""
    rows: dict[str, footprint.TimedNetwork] = {}
    if study_cells.teacher:
        rows[study.described.teacher] = footprint.tower(
            study.manifest.teacher, study.manifest.cache
        )
    # Rows with the same shape share one network, so it is built and measured once.
    shapes: dict[tuple[object, ...], footprint.TimedNetwork] = {}
    for row in (name for name, scored in study_cells.students.items() if scored):
        manifest = study.rows[row][0].manifest
        shape = student_shape(manifest)
        if shape not in shapes:
            shapes[shape] = footprint.student(manifest)
        rows[row] = shapes[shape]
    return rows


def student_shape(manifest: Manifest) -> tuple[object, ...]:
    """Everything that decides whether a student can be built, and how large it is."""
    config = manifest.distillation
    # The teacher's name too, because a student of embeddings has an output for each dimension.
    target = config.target, manifest.teacher.model
    return config.student, config.weights, *target, manifest.synthesis.image_size


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
    outcomes = _outcomes(study_cells, domains.keys())
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
        rows=tuple(_rows(study, study_cells, parameters)),
        failed=dict(study_cells.failed),
        maps=tuple(maps),
        judge=next((outcome.judge for outcome in outcomes if outcome.judge), ""),
        judge_accuracy=study_cells.judge_accuracy,
        average=study.manifest.evaluation.average,
    )


def _outcomes(study_cells: StudyCells, domains: Set[str]) -> list[CellResult]:
    """The results of all cells; `CorruptionError` if one has scores of other domains."""
    cells = [cell for row in study_cells.students.values() for cell in row]
    cells += [study_cells.teacher] if study_cells.teacher else []
    for cell in cells:
        # The root may be a stranger's.
        if {score.domain for score in cell.outcome.scores} != domains:
            raise CorruptionError(
                f"{cell.folder}: has scores of other domains than evaluation.data; delete it and "
                "run the same command again, which makes it anew"
            )
    return [cell.outcome for cell in cells]


def _rows(
    study: Study, study_cells: StudyCells, parameters: Mapping[str, int]
) -> Iterable[StudyRow]:
    """The rows with a finished cell: with scores or, in a gallery, without."""
    if study.trains:
        return _scored_rows(study, study_cells, parameters)
    return _gallery_rows(study, study_cells)


def _scored_rows(
    study: Study, study_cells: StudyCells, parameters: Mapping[str, int]
) -> Iterable[StudyRow]:
    """Yield the rows with a finished cell: the teacher, then the students."""
    average = study.manifest.evaluation.average
    if study_cells.teacher:
        name = study.described.teacher
        # Blanks, because every row of a table has a cell for each axis.
        names = (name, *("",) * (len(study.described.chosen_axes) - 1))
        yield StudyRow.of(names, "teacher", (study_cells.teacher,), average, parameters.get(name))
    for name, cells in study_cells.students.items():
        if cells:
            names = study.rows[name][0].names
            yield StudyRow.of(names, "student", cells, average, parameters.get(name))


def _gallery_rows(study: Study, study_cells: StudyCells) -> Iterable[StudyRow]:
    """Yield a row for each data set of a gallery, which has no scores."""
    for name, version in study_cells.versions.items():
        names = study.rows[name][0].names
        fingerprint, environment = version.fingerprint, version.manifest["environment"]
        yield StudyRow(names, "student", (), {}, None, None, fingerprint, environment)
