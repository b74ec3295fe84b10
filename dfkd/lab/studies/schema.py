"""The schema of a study's file, and the rules that can be checked on the file alone."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.errors import ManifestError
from dfkd.lab.few_shot.settings import FewShot
from dfkd.utils.types import CHECKED, Count, Name, Natural, Positive, require_unique

Settings = dict[str, Any]
"""Manifest keys with new values, nested as in a manifest file."""

Kind = Literal["table", "curve", "bars", "gallery", "embedding", "case"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Axis:
    """Named alternatives; each row uses one of them."""

    name: Name
    """Column heading in a table, or the title of a curve's axis."""
    values: Annotated[dict[Name, Settings | tuple[Settings, ...]], Field(min_length=1)]
    """Settings by name, as in the paper. Of a list of settings, each seed uses the next one."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Paper:
    """Figures of the paper for these rows, in percent, measured on the paper's own data."""

    of: Name
    """Which table of the paper, e.g. `Table 1`."""
    data: Name
    """Data set of the paper, e.g. `PACS`."""
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    rows: dict[Name, tuple[float, ...]]
    """Figures by row, whose name is its values joined by spaces, or that of the teacher's row."""

    def __post_init__(self) -> None:
        for label, figures in self.rows.items():
            if len(figures) != len(self.columns):
                raise ManifestError(
                    f"paper.rows.{label}",
                    f"must have a figure for each of {len(self.columns)} columns",
                    list(figures),
                    "add or remove figures",
                )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Pictures:
    """Which images a gallery or a case shows."""

    classes: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Classes to show; exactly one in a case."""
    count: Count = 8
    """Images of each class and row in a gallery, or of each row in a case."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Adaptation:
    """What an embedding shows: a domain before and after few-shot training."""

    domain: Name
    """A domain of `evaluation.data`."""
    shots: Count = 16
    """Training images of each class. A class with too few keeps one image for testing."""
    epochs: Count = FewShot.epochs
    """As those of `dfkd.lab.few_shot.settings.FewShot`, also for the rate."""
    learning_rate: Positive = FewShot.learning_rate


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Quick:
    """What `--quick` changes: the same study, smaller, with seed 0 and, as a rule, its own root."""

    settings: Settings
    """Settings applied before those of the axes, as a rule with another storage.root."""
    axes: tuple[Axis, ...] = ()
    """Axes that replace the study's; empty keeps the study's."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyFile:
    """The content of a study's file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    title: Name
    shows: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Tables and figures of the paper that the study reproduces, e.g. `Table 1`; `-` if none."""
    kind: Kind
    """`table`, `curve` (one axis on x), `bars` (one group for each domain), `gallery` (images of
    classes), `embedding` (t-SNE of the students' features on a domain) or `case` (one class in
    several methods and domains).
    """
    base: Name
    """Path of the manifest that all cells start from, relative to the study's file."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Settings of all cells, applied to the base. `name`, `distillation.seeds`, `evaluation.models`
    and, with `repeat: run`, `salt` are the study's own: neither these nor other settings hold them.
    """
    axes: Annotated[tuple[Axis, ...], Field(min_length=1)]
    skip: tuple[dict[Name, Name], ...] = ()
    """Rows to leave out: a row is skipped if it has all values of an entry, given by axis."""
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Each row has one cell for each seed; a gallery uses only the first."""
    repeat: Literal["student", "run"] = "student"
    """What a seed repeats: the student of one data set, or the whole run, with the seed as salt."""
    compare: str = ""
    """A value of one axis. Each row is compared with the row that has this value in the place of
    its own: the table shows the paired difference of their means over domains, with its 95 %
    interval. Empty compares none, and so does a table of single classes.
    """
    held_out_images: Natural = 0
    """Images of each class in one more data set, which no student learns from. The table then has
    a column `agreement`: the share of these images for which student and teacher choose the same
    class. 0 makes none.
    """
    judge: str = ""
    """Weights of a classifier that guided no synthesis (`jobs/pretrain.py --only judge`),
    relative to the working directory. The table then has a column `recognised`: the share of a
    row's synthesised images that this judge puts into the class that they were made for. Empty
    measures nothing, as `--quick` does.
    """
    unseen: tuple[Name, ...] = ()
    """Classes that no student learns. The table then has a column `unseen`: the accuracy on all
    images of these classes, of the teacher and of the students of embeddings, whose classes can be
    replaced. Empty measures nothing.
    """
    teacher: str = ""
    """Name of the row with the teacher's zero-shot accuracy; empty leaves it out."""
    columns: Literal["domains", "classes"] = "domains"
    """Columns of the table; with `classes` there is a row for each domain, as in Table 4."""
    x: str = ""
    """The axis that a curve has on x; its values are numbers."""
    pictures: Pictures | None = None
    adaptation: Adaptation | None = None
    """Required for an embedding, forbidden elsewhere."""
    paper: tuple[Paper, ...] = ()
    notes: tuple[Name, ...] = ()
    """Sentences shown below the table."""
    quick: Quick
    size: Literal["full", "quick"] = "full"
    """`--quick` sets it to `quick`."""

    def __post_init__(self) -> None:
        require_unique("axes", tuple(axis.name for axis in self.axes))
        require_unique("seeds", self.seeds)
        require_unique("unseen", self.unseen)
        # Found only where a student is scored otherwise, which is after its training.
        if len(self.unseen) == 1:
            raise ManifestError(
                "unseen", "must be empty, or name two classes or more", self.unseen, "name more"
            )
        if self.kind == "curve":
            self._require_numbers()
        if (self.adaptation is not None) != (self.kind == "embedding"):
            raise ManifestError(
                "adaptation",
                "names the domain of an embedding, and nothing elsewhere",
                self.adaptation and self.adaptation.domain,
                "add or remove it",
            )
        # A case has columns for domains, so there is no room for a second class.
        shown = 0 if self.pictures is None else len(self.pictures.classes)
        fits = {"gallery": shown > 0, "case": shown == 1}.get(self.kind, shown == 0)
        if not fits:
            raise ManifestError(
                "pictures",
                "names classes in a gallery, one class in a case, and nothing elsewhere",
                shown,
                "add, shorten or remove it",
            )

    def _require_numbers(self) -> None:
        """Refuse a curve whose axis on x has other values than numbers, full or quick."""
        # Both sizes, so that an error in the quick one is found before somebody tries it.
        for axes in (self.axes, self.quick.axes or self.axes):
            named = [axis for axis in axes if axis.name == self.x]
            if not named or not all(map(_is_number, named[0].values)):
                raise ManifestError(
                    "x",
                    "must name an axis of a curve whose values are numbers",
                    self.x,
                    f"name one of {', '.join(axis.name for axis in axes)}",
                )

    @property
    def chosen_axes(self) -> tuple[Axis, ...]:
        """The axes of the selected size."""
        return (self.quick.axes or self.axes) if self.size == "quick" else self.axes

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """The seeds of the selected size; only the first for a gallery."""
        seeds = (0,) if self.size == "quick" else self.seeds
        return seeds[:1] if self.kind == "gallery" else seeds

    @property
    def chosen_judge(self) -> str:
        """The judge's file; empty for the quick study, which must run without it."""
        return "" if self.size == "quick" else self.judge


def _is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
