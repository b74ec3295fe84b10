"""What a study found: its cells by row, with mean and standard deviation over seeds.

`results.json` (schema 1) holds the fields of `StudyResults`; accuracies are 0-1. All that is shown
in a table or a chart follows from it, and nothing in it tells when it was written, so that the same
cells give the same bytes.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from dfkd.config.manifest import Model
from dfkd.dataset.published import PublishedVersion
from dfkd.evaluation.results import Spread, spread
from dfkd.studies.cells import CellResult
from dfkd.studies.study import Study
from dfkd.utils.paired import Difference, difference
from dfkd.utils.strict_json import canonical

FILE = "results.json"

Point = tuple[float, float]


@dataclass(frozen=True)
class CellScore:
    """A finished cell."""

    seed: int
    """Of the student; 0 of a teacher."""
    folder: str
    """Under the root."""
    outcome: CellResult


@dataclass(frozen=True)
class Measured:
    """One cell: a student of one seed, or the teacher; of a gallery a data set."""

    seed: int
    cell: str
    """Folder under the root; empty in a gallery."""
    version: str
    """Fingerprint of the data set; empty for a teacher."""
    accuracy: dict[str, float]
    """By domain."""
    class_mean: dict[str, float]
    """By domain: the mean over its classes."""
    per_class: dict[str, dict[str, float]]
    """By domain and class."""

    @classmethod
    def of(cls, cell: CellScore) -> "Measured":
        """What a finished cell's outcome says."""
        scores = cell.outcome.scores
        return cls(
            seed=cell.seed,
            cell=cell.folder,
            version=cell.outcome.version,
            accuracy={score.domain: score.accuracy for score in scores},
            class_mean={score.domain: score.class_mean for score in scores},
            per_class={score.domain: score.per_class for score in scores},
        )


@dataclass(frozen=True)
class StudyRow:
    """The cells of one value of each axis, or those of the teacher."""

    names: tuple[str, ...]
    """A value of each axis; of the teacher's row its name, then blanks."""
    model: Model
    cells: tuple[Measured, ...]
    domains: dict[str, Spread]
    """Accuracy over seeds."""
    mean: Spread | None
    """Over seeds, of the mean over domains; None in a gallery."""
    parameters: int | None = None
    """Of what answers an image, a student or the teacher's image tower; None in a gallery."""

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        model: Model,
        cells: tuple[Measured, ...],
        parameters: int | None = None,
    ) -> "StudyRow":
        """From one cell or more, all of which were scored on the same domains, or on none."""
        domains = cells[0].accuracy
        spreads = {name: spread([cell.accuracy[name] for cell in cells]) for name in domains}
        means = [statistics.fmean(cell.accuracy.values()) for cell in cells if domains]
        return cls(names, model, cells, spreads, spread(means) if means else None, parameters)

    @property
    def label(self) -> str:
        """The row's name."""
        return " ".join(filter(None, self.names))

    @property
    def data_sets(self) -> int:
        """How many different ones its students learned from."""
        return len({cell.version for cell in self.cells})

    def against(self, other: "StudyRow") -> Difference | None:
        """Of the means over domains, paired by seed; None where no seed is finished in both."""
        ours, theirs = (
            {cell.seed: statistics.fmean(cell.accuracy.values()) for cell in row.cells}
            for row in (self, other)
        )
        return difference(ours, theirs)

    def of_class(self, domain: str, name: str) -> Spread | None:
        """Accuracy of a class over seeds; None where the domain has no image of it."""
        found = [c.per_class[domain][name] for c in self.cells if name in c.per_class[domain]]
        return spread(found) if found else None

    def of_class_everywhere(self, name: str) -> Spread | None:
        """Accuracy of a class over seeds, the mean over the domains that have it."""
        found = [
            [classes[name] for classes in cell.per_class.values() if name in classes]
            for cell in self.cells
        ]
        return spread([statistics.fmean(values) for values in found]) if all(found) else None

    def class_mean(self, domain: str) -> Spread:
        """The mean over a domain's classes, over seeds."""
        return spread([cell.class_mean[domain] for cell in self.cells])


@dataclass(frozen=True)
class Map:
    """A domain as the features of a row's first student lay it out."""

    row: str
    shots: int
    """Images of each class that the student was trained on; 0 before any training."""
    points: tuple[Point, ...]
    classes: tuple[str, ...]
    """Of each point."""
    taught: tuple[bool, ...]
    """Whether the training after the first map learns from the image."""
    silhouette: float
    """Of the classes among the features of the other images, -1 to 1."""


@dataclass(frozen=True)
class StudyOrigin:
    """Where the cells come from: what differs is listed once, sorted."""

    dates: tuple[str, ...]
    machines: tuple[dict[str, Any], ...]
    environments: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Found:
    """What a study's cells have left."""

    teacher: CellScore | None
    """Where the study has a row for it."""
    students: Mapping[str, tuple[CellScore, ...]]
    """The finished cells of each row, by its name."""
    versions: Mapping[str, PublishedVersion]
    """The data set of each row's first seed, by the row's name."""
    failed: Mapping[str, str]
    """Why a cell is missing, by its label."""
    text_only: tuple[CellScore, ...] = ()
    """The classifier of each seed, where the study has a row for them."""


@dataclass(frozen=True)
class StudyResults:
    """A study's findings."""

    study: str
    size: Literal["full", "quick"]
    shows: tuple[str, ...]
    command: str
    """That makes them, or finds them made."""
    commit: str | None
    """Of the checkout that wrote this."""
    seeds: tuple[int, ...]
    domains: dict[str, int]
    """Images that were scored, by domain; empty in a gallery."""
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    """About the data."""
    rows: tuple[StudyRow, ...]
    """The teacher first; without those of which no cell is finished."""
    failed: dict[str, str]
    made: StudyOrigin
    maps: tuple[Map, ...] = ()
    schema: int = field(default=1)

    def encode(self) -> bytes:
        """The content of results.json."""
        return canonical(asdict(self))


def gather(
    study: Study,
    found: Found,
    command: str,
    commit: str | None,
    maps: Iterable[Map] = (),
    parameters: Mapping[str, int] = MappingProxyType({}),
) -> StudyResults:
    """The results of what a study's cells have left.

    Args:
        parameters: of what answers an image, by the label of the row.
    """
    outcomes = [cell.outcome for cells in found.students.values() for cell in cells]
    outcomes += [found.teacher.outcome] if found.teacher else []
    outcomes += [cell.outcome for cell in found.text_only]
    scores = outcomes[0].scores if outcomes else ()
    return StudyResults(
        study=study.described.name,
        size=study.described.size,
        shows=study.described.shows,
        command=command,
        commit=commit,
        seeds=study.described.chosen_seeds,
        domains={score.domain: score.images for score in scores},
        classes=study.manifest.classes,
        notes=outcomes[0].notes if outcomes else (),
        rows=tuple(
            _scored_rows(study, found, parameters) if study.trains else _gallery_rows(study, found)
        ),
        failed=dict(found.failed),
        made=_made(outcomes, found.versions.values()),
        maps=tuple(maps),
    )


def _scored_rows(study: Study, found: Found, parameters: Mapping[str, int]) -> Iterable[StudyRow]:
    others: list[tuple[str, Model, Sequence[CellScore]]] = [
        (study.described.teacher, "teacher", [found.teacher] if found.teacher else []),
        (study.described.text_only, "text-only", found.text_only),
    ]
    blanks = ("",) * (len(study.described.chosen_axes) - 1)
    for name, model, scored in others:
        if scored:
            measured = tuple(map(Measured.of, scored))
            yield StudyRow.of((name, *blanks), model, measured, parameters.get(name))
    for name, cells in found.students.items():
        if cells:
            measured = tuple(map(Measured.of, cells))
            names = study.rows[name][0].names
            yield StudyRow.of(names, "student", measured, parameters.get(name))


def _gallery_rows(study: Study, found: Found) -> Iterable[StudyRow]:
    for name, version in found.versions.items():
        cell = study.rows[name][0]
        shown = Measured(cell.seed, "", version.fingerprint, {}, {}, {})
        yield StudyRow.of(cell.names, "student", (shown,))


def _made(outcomes: Iterable[CellResult], versions: Iterable[PublishedVersion]) -> StudyOrigin:
    cells = list(outcomes)
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
