"""The file of a study: what it says, and the rules that it keeps by itself."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.errors import ManifestError
from dfkd.utils.types import CHECKED, Count, Name, Natural, Positive, require_unique

Settings = dict[str, Any]
"""Keys of the manifest with other values, nested as in a manifest file."""

Kind = Literal["table", "curve", "bars", "gallery", "embedding", "case"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Axis:
    """Named alternatives, of which each row has one."""

    name: Name
    """The column's head in a table, the axis' title in a curve."""
    values: Annotated[dict[Name, Settings | tuple[Settings, ...]], Field(min_length=1)]
    """Settings by name, as the paper names them; of a list each seed takes the next one."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Paper:
    """What the paper prints for these rows, in percent; of its own data, and shown as such."""

    of: Name
    """`Table 1`."""
    data: Name
    """`PACS`."""
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    rows: dict[Name, tuple[float, ...]]
    """By the names of a row, with a blank between them, or by that of the teacher's row."""

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
    """A case has one."""
    count: Count = 8
    """Images of each class and row, or of each row of a case."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Adaptation:
    """What an embedding shows: a domain before and after few-shot training."""

    domain: Name
    """Of `evaluation.data`."""
    shots: Count = 16
    """Training images of each class; of a class with too few, all but one."""
    perplexity: Positive = 30.0
    """Of the t-SNE."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Quick:
    """What `--quick` changes: the same study, small, under a root of its own."""

    settings: Settings
    """Beneath those of the axes; storage.root is among them."""
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0,)
    axes: tuple[Axis, ...] = ()
    """In place of the study's; empty keeps them."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyFile:
    """The content of a study's file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    title: Name
    shows: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Tables and figures of the paper, as `Table 1`; `-` for what it does not show."""
    kind: Kind
    """`table`, `curve` (one axis on x), `bars` (a group a domain), `gallery` (images of classes),
    `embedding` (t-SNE of the students' features of a domain) or `case` (one class in methods and
    domains)."""
    base: Name
    """The manifest that all cells start from; a path, relative to the study's file."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Of all cells, over the base."""
    axes: Annotated[tuple[Axis, ...], Field(min_length=1)]
    skip: tuple[dict[Name, Name], ...] = ()
    """Rows that are left out: those that have all of an entry's values, by axis."""
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """A cell of each row for each of them; a gallery takes the first."""
    repeat: Literal["student", "run"] = "student"
    """What a seed makes anew: the student of one data set, or the whole run: the data set (whose
    salt it is) and its student."""
    compare: str = ""
    """Name of a row that all others are compared with: the table then has the paired difference of
    their means over domains, with its 95 % interval. Empty compares none."""
    teacher: str = ""
    """Name of the row of the teacher's zero-shot accuracy; empty leaves it out."""
    text_only: str = ""
    """Name of the row of text-only classifiers, one of each seed; empty leaves it out."""
    columns: Literal["domains", "classes"] = "domains"
    """`classes`: a row for each domain, as in Table 4."""
    x: str = ""
    """The axis of a curve whose values are numbers."""
    pictures: Pictures | None = None
    adaptation: Adaptation | None = None
    """Of an embedding."""
    paper: tuple[Paper, ...] = ()
    notes: tuple[Name, ...] = ()
    """Sentences below the table."""
    quick: Quick
    size: Literal["full", "quick"] = "full"
    """`--quick` sets it to `quick`."""

    def __post_init__(self) -> None:
        require_unique("axes", tuple(axis.name for axis in self.axes))
        require_unique("seeds", self.seeds)
        self._require_mean()
        if self.kind == "curve":
            self._require_numbers()
        if (self.adaptation is not None) != (self.kind == "embedding"):
            raise ManifestError(
                "adaptation",
                "names the domain of an embedding, and nothing elsewhere",
                self.adaptation and self.adaptation.domain,
                "add or remove it",
            )
        shown = 0 if self.pictures is None else len(self.pictures.classes)
        fits = {"gallery": shown > 0, "case": shown == 1}.get(self.kind, shown == 0)
        if not fits:
            raise ManifestError(
                "pictures",
                "names classes in a gallery, one class in a case, and nothing elsewhere",
                shown,
                "add, shorten or remove it",
            )

    def _require_mean(self) -> None:
        by_class = self.kind in ("gallery", "case") or self.columns == "classes"
        if self.compare and by_class:
            raise ManifestError(
                "compare",
                "must be empty in a study whose table has no mean over domains",
                self.compare,
                "remove it",
            )

    def _require_numbers(self) -> None:
        for axes in (self.axes, self.quick.axes or self.axes):
            found = [axis for axis in axes if axis.name == self.x]
            if not found or not all(map(_is_number, found[0].values)):
                raise ManifestError(
                    "x",
                    "must name an axis of a curve whose values are numbers",
                    self.x,
                    f"name one of {', '.join(axis.name for axis in axes)}",
                )

    @property
    def chosen_axes(self) -> tuple[Axis, ...]:
        """Those of the size."""
        return (self.quick.axes or self.axes) if self.size == "quick" else self.axes

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """Those of the size; of a gallery the first."""
        seeds = self.quick.seeds if self.size == "quick" else self.seeds
        return seeds[:1] if self.kind == "gallery" else seeds


def _is_number(text: str) -> bool:
    try:
        return float(text) < float("inf")
    except ValueError:
        return False
