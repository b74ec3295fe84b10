"""The results of a study: its cells by row, with mean and standard deviation over seeds.

`results.json` (schema 1) holds the fields of `StudyResults`; accuracies are 0-1. Tables and charts
are made from it alone. It does not contain the time of writing, so the same cells give the same
bytes.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dfkd.config.distillation import Average, Model
from dfkd.dataset.published import PublishedVersion
from dfkd.errors import CorruptionError
from dfkd.evaluation.data import Domains
from dfkd.evaluation.results import Spread, domain_means, over_seeds, spread
from dfkd.studies.cells import CellResult
from dfkd.studies.paired import Difference, difference
from dfkd.studies.study import Study
from dfkd.utils.strict_json import canonical

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


@dataclass(frozen=True)
class CellMeasurement:
    """The scores of one cell (a student or the teacher); in a gallery only its data set."""

    seed: int
    cell: str
    """Folder relative to the root; empty in a gallery."""
    version: str
    """Fingerprint of the data set; empty for a teacher."""
    accuracy: dict[str, float]
    """Accuracy by domain; with `evaluation.average: classes` the mean over the classes."""
    class_mean: dict[str, float]
    """Mean over the classes, by domain."""
    per_class: dict[str, dict[str, float]]
    """Accuracy by domain and class."""
    agreement: float | None = None
    """Share of held-out images for which student and teacher choose the same class."""
    recognised: float | None = None
    """Share of the data set's images that the judge puts into the class they were made for."""
    unseen: float | None = None
    """Accuracy on images of classes that the student did not learn."""

    @classmethod
    def of(cls, cell: CellScore, average: Average) -> "CellMeasurement":
        """The measurement of a finished cell, with the accuracy that `average` selects."""
        scores = cell.outcome.scores
        return cls(
            seed=cell.seed,
            cell=cell.folder,
            version=cell.outcome.version,
            accuracy={score.domain: score.averaged(average) for score in scores},
            class_mean={score.domain: score.class_mean for score in scores},
            per_class={score.domain: score.per_class for score in scores},
            agreement=cell.outcome.agreement,
            recognised=cell.outcome.recognised,
            unseen=cell.outcome.unseen,
        )


@dataclass(frozen=True)
class StudyRow:
    """The cells with the same value of each axis, or the cell of the teacher."""

    names: tuple[str, ...]
    """One value of each axis; for the teacher its name, then blanks."""
    model: Model
    cells: tuple[CellMeasurement, ...]
    domains: dict[str, Spread]
    """Accuracy by domain, over seeds; `StudyResults.domains` has the order of the columns."""
    mean: Spread | None
    """Mean accuracy over domains, over seeds; None in a gallery."""
    parameters: int | None = None
    """Number of parameters of the student or the teacher's image tower; None in a gallery."""

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        model: Model,
        cells: tuple[CellMeasurement, ...],
        parameters: int | None = None,
    ) -> "StudyRow":
        """A row of one cell or more; all were scored on the same domains, or on none."""
        # The cells of a gallery are data sets, which have no scores.
        if not cells[0].accuracy:
            return cls(names, model, cells, {}, None, parameters)
        domains, mean = over_seeds({cell.seed: cell.accuracy for cell in cells})
        return cls(names, model, cells, domains, mean, parameters)

    @property
    def label(self) -> str:
        """The row's name."""
        return " ".join(filter(None, self.names))

    @property
    def data_sets(self) -> int:
        """Number of different data sets that the row's students learned from."""
        return len({cell.version for cell in self.cells})

    def against(self, other: "StudyRow") -> Difference | None:
        """Paired difference of the means over domains; None if no seed is finished in both rows."""
        ours, theirs = (
            domain_means({cell.seed: cell.accuracy for cell in row.cells}) for row in (self, other)
        )
        return difference(ours, theirs)

    @property
    def agreement(self) -> Spread | None:
        """Agreement with the teacher on held-out images, over seeds; None if not measured."""
        return _spread_of_measured(cell.agreement for cell in self.cells)

    @property
    def unseen(self) -> Spread | None:
        """Accuracy on unseen classes, over seeds; None if not measured."""
        return _spread_of_measured(cell.unseen for cell in self.cells)

    @property
    def recognised(self) -> Spread | None:
        """Share of images that the judge recognises, over data sets; None if not measured."""
        # Students of one data set share its value, which must count once.
        by_version = {cell.version: cell.recognised for cell in self.cells}
        return _spread_of_measured(by_version.values())

    def of_class(self, domain: str, name: str) -> Spread | None:
        """Accuracy of a class over seeds; None if the domain has no image of it."""
        return _spread_of_measured(cell.per_class[domain].get(name) for cell in self.cells)

    def of_class_everywhere(self, name: str) -> Spread | None:
        """Accuracy of a class over seeds, averaged over the domains that have it."""
        by_cell = [
            [classes[name] for classes in cell.per_class.values() if name in classes]
            for cell in self.cells
        ]
        # All cells were scored on the same images, so either all of them have the class or none.
        return spread([statistics.fmean(values) for values in by_cell]) if all(by_cell) else None

    def class_mean(self, domain: str) -> Spread:
        """Mean over a domain's classes, over seeds."""
        return spread([cell.class_mean[domain] for cell in self.cells])


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
class StudyOrigin:
    """When, where and with what software the cells were made; each value once, sorted."""

    dates: tuple[str, ...]
    machines: tuple[dict[str, Any], ...]
    environments: tuple[dict[str, Any], ...]


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
    made: StudyOrigin
    maps: tuple[Map, ...] = ()
    judge: str = ""
    """The sha256 of the judge's file; empty without one."""
    judge_accuracy: float | None = None
    """Share of the evaluation images, 0-1, that the judge names."""
    average: Average = "images"
    """Whether accuracies are over images, or means over the classes."""
    schema: int = field(default=1)

    def encode(self) -> bytes:
        """The content of results.json."""
        return canonical(asdict(self))


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
        made=_study_origin(outcomes, study_cells.versions.values()),
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
        zero_shot = CellMeasurement.of(study_cells.teacher, average)
        # Blanks, because every row of a table has a cell for each axis.
        names = (name, *("",) * (len(study.described.chosen_axes) - 1))
        yield StudyRow.of(names, "teacher", (zero_shot,), parameters.get(name))
    for name, cells in study_cells.students.items():
        if cells:
            measured = tuple(CellMeasurement.of(cell, average) for cell in cells)
            names = study.rows[name][0].names
            yield StudyRow.of(names, "student", measured, parameters.get(name))


def _gallery_rows(study: Study, study_cells: StudyCells) -> Iterable[StudyRow]:
    """Yield a row for each data set of a gallery, which has no scores."""
    for name, version in study_cells.versions.items():
        cell = study.rows[name][0]
        shown = CellMeasurement(cell.seed, "", version.fingerprint, {}, {}, {})
        yield StudyRow.of(cell.names, "student", (shown,))


def _study_origin(
    outcomes: Iterable[CellResult], versions: Iterable[PublishedVersion]
) -> StudyOrigin:
    """Collect dates, machines and library versions, each different one once."""
    cells = list(outcomes)
    # Key by content, so that equal machines and environments are listed once.
    machines = {canonical(cell.machine): cell.machine for cell in cells}
    libraries = [
        *(cell.environment for cell in cells),
        *(version.manifest["environment"] for version in versions),
    ]
    environments = {canonical(each): each for each in libraries}
    return StudyOrigin(
        tuple(sorted({cell.date for cell in cells})),
        tuple(machines[key] for key in sorted(machines)),
        tuple(environments[key] for key in sorted(environments)),
    )
