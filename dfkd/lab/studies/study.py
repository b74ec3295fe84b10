"""Studies: a table or figure of the paper as a YAML file that covers many manifests and seeds.

A study names a base manifest, settings that change it, and axes of named settings. One value of
each axis makes a row; a row with a seed makes a cell: the manifest of one student or, in a gallery,
of one data set. This module imports neither torch nor ray, so a bad study is refused at once.
"""

import dataclasses
import difflib
import functools
import itertools
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from dfkd.config.hashing import fingerprint
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import HELD_OUT_SALT
from dfkd.config.presets import PRESETS
from dfkd.errors import ManifestError
from dfkd.lab.few_shot.settings import FewShot
from dfkd.utils.types import CHECKED, Count, Name, Natural, Positive, require_unique
from dfkd.utils.yaml import check, expand_preset, load, merge, read_tree

FILE = "study.yaml"
STUDIES = Path(__file__).parents[3] / "manifests" / "studies"
"""The studies of the repository."""

Settings = dict[str, Any]
"""Manifest keys with new values, nested as in a manifest file."""

Kind = Literal["table", "curve", "bars", "gallery", "embedding", "case"]


@checked(frozen=True, kw_only=True, config=CHECKED)
class Axis:
    """Named alternatives; each row uses one of them."""

    name: Name
    """Column heading in a table, or the title of a curve's axis."""
    values: Annotated[dict[Name, Settings | tuple[Settings, ...]], Field(min_length=1)]
    """Settings by name, as in the paper. Of a list of settings, each seed uses the next one."""


@checked(frozen=True, kw_only=True, config=CHECKED)
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


@checked(frozen=True, kw_only=True, config=CHECKED)
class Pictures:
    """Which images a gallery or a case shows."""

    classes: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Classes to show; exactly one in a case."""
    count: Count = 8
    """Images of each class and row in a gallery, or of each row in a case."""


@checked(frozen=True, kw_only=True, config=CHECKED)
class Adaptation:
    """What an embedding shows: a domain before and after few-shot training."""

    domain: Name
    """A domain of `evaluation.data`."""
    shots: Count = 16
    """Training images of each class. A class with too few keeps one image for testing."""
    epochs: Count = FewShot.epochs
    """As those of `dfkd.lab.few_shot.settings.FewShot`, also for the rate."""
    learning_rate: Positive = FewShot.learning_rate


@checked(frozen=True, kw_only=True, config=CHECKED)
class Quick:
    """What `--quick` changes: the same study, smaller, with seed 0 and, as a rule, its own root."""

    settings: Settings
    """Settings applied before those of the axes, as a rule with another storage.root."""
    axes: tuple[Axis, ...] = ()
    """Axes that replace the study's; empty keeps the study's."""


@checked(frozen=True, kw_only=True, config=CHECKED)
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
    settings: Settings = field(default_factory=dict)
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
    """Weights of a classifier that guided no synthesis (`dfkd pretrain --only judge`),
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
        # Both sizes, so that an error in the quick one is found before somebody tries it.
        for axes in (self.axes, self.quick.axes or self.axes) if self.kind == "curve" else ():
            named = [axis for axis in axes if axis.name == self.x]
            if not named or not all(map(_is_number, named[0].values)):
                raise ManifestError(
                    "x",
                    "must name an axis of a curve whose values are numbers",
                    self.x,
                    f"name one of {', '.join(axis.name for axis in axes)}",
                )
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

    @property
    def chosen_axes(self) -> tuple[Axis, ...]:
        """The axes of the selected size."""
        return (self.quick.axes or self.axes) if self.size == "quick" else self.axes

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """The seeds of the selected size; only the first for a gallery."""
        seeds = (0,) if self.size == "quick" else self.seeds
        return seeds[:1] if self.kind == "gallery" else seeds


def _is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class Cell:
    """A row with a seed."""

    names: tuple[str, ...]
    """One value of each axis."""
    seed: int
    manifest: Manifest
    """A manifest of one method and one student, which evaluates only the student."""

    @property
    def row(self) -> str:
        """The row's name."""
        return " ".join(self.names)

    @property
    def home(self) -> Manifest:
        """The manifest with a root of its own for its data set, below that of the study."""
        return at_home(self.manifest)

    @property
    def label(self) -> str:
        """Name of the cell in messages."""
        return f"{self.row} seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A study that has been checked and expanded into cells."""

    described: StudyFile
    folder: Path
    """Folder of the study's file."""
    cells: tuple[Cell, ...]
    """Cells ordered by row, then by seed."""

    @property
    def manifest(self) -> Manifest:
        """The first cell's manifest; storage, classes and evaluation are the same in all cells."""
        return self.cells[0].manifest

    @cached_property
    def rows(self) -> dict[str, tuple[Cell, ...]]:
        """The cells of each row, by the row's name."""
        rows: dict[str, tuple[Cell, ...]] = {}
        for cell in self.cells:
            rows[cell.row] = (*rows.get(cell.row, ()), cell)
        return rows

    @property
    def trains(self) -> bool:
        """Whether the study has students; a gallery shows only images."""
        return self.described.kind != "gallery"

    def held_out(self, cell: Cell) -> Manifest | None:
        """The manifest of the data set on which a cell's agreement is measured; None without."""
        images = self.described.held_out_images
        if not (images and self.trains):
            return None
        # One salt for all seeds, so that all cells of a synthesis are measured on the same images.
        larger = cell.manifest.with_values(synthesis={"images_per_class": images})
        return at_home(dataclasses.replace(larger, salt=HELD_OUT_SALT))

    def data_sets(self) -> list[Manifest]:
        """The manifest of each different data set, with its own root."""
        manifests = [cell.home for cell in self.cells]
        manifests += filter(None, map(self.held_out, self.cells))
        return list({manifest.storage.root: manifest for manifest in manifests}.values())

    def as_dict(self) -> dict[str, Any]:
        """The file's content with every default, as plain values."""
        tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.described)))
        return tree

    def manifests(self) -> list[dict[str, Any]]:
        """The manifest of each cell, as plain values."""
        return [cell.manifest.as_dict() for cell in self.cells]


def at_home(manifest: Manifest) -> Manifest:
    """The manifest with a root of its own for its data set, below the root that it has.

    Each data set has its own, so `current` is the only one there, and all studies below one root
    share data sets and students.
    """
    # Without hashes of weight files, which take long: a version's fingerprint has them.
    key = fingerprint(identity(manifest, {}))[:12]
    return manifest.with_values(storage={"root": f"{manifest.storage.root.rstrip('/')}/{key}"})


def find(source: str, overrides: tuple[str, ...]) -> Study:
    """The study for a name, a folder or a file.

    Raises:
        ManifestError: there is no such study, or it breaks a rule.
    """
    # A path first, so that a study of one's own may have the name of a shipped one. Other folders
    # may have it too: `images` is the name of a study.
    path = Path(source)
    if path.exists() and (not path.is_dir() or (path / FILE).exists()):
        return read(source, overrides)
    names = [path.parent.name for path in files()]
    if source in names:
        return read(STUDIES / source, overrides)
    near = difflib.get_close_matches(source, names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}"
    raise ManifestError("study", "must be a study's name, folder or file", source, remedy)


def files() -> list[Path]:
    """Paths of all studies in the repository, sorted by name."""
    return sorted(STUDIES.glob(f"*/{FILE}"))


def read(source: str | Path, overrides: tuple[str, ...] = ()) -> Study:
    """Read and check the study in a folder or file, with `key.sub=value` overrides of the file's
    keys.

    Raises:
        ManifestError: the file, or the manifest of a cell, breaks a rule that the text names.
    """
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    described = load(StudyFile, path, overrides)
    base = read_tree(path.parent / described.base)
    # A cell is one student: the first one of a run that compares several.
    if isinstance(own := base.get("distillation"), dict):
        for key in ("student", "weights"):
            own[key] = own[key][0] if isinstance(own.get(key), list) else own.get(key)
        base["distillation"] = {key: value for key, value in own.items() if value is not None}
    common = [base, described.settings]
    if described.size == "quick":
        # Beneath the axes, so that the rows differ in the small study as in the full one.
        common.append(described.quick.settings)
    _refuse_own_keys("settings", described.settings, described)
    _refuse_own_keys("quick.settings", described.quick.settings, described)
    axes = described.chosen_axes
    # The values of `skip` must exist, except with `--quick`, which may replace axes.
    known = {axis.name: axis.values for axis in axes}
    for entry in described.skip if described.size == "full" else ():
        if any(value not in known.get(axis, ()) for axis, value in entry.items()):
            raise ManifestError(
                "skip", "must name values by their axes", dict(entry), "fix or remove it"
            )
    cells: list[Cell] = []
    for choice in itertools.product(*(axis.values.items() for axis in axes)):
        names = tuple(name for name, _ in choice)
        by_axis = {axis.name: name for axis, name in zip(axes, names, strict=True)}
        if any(entry.items() <= by_axis.items() for entry in described.skip):
            continue
        row = f"axes: {' '.join(names)}"
        for number, seed in enumerate(described.chosen_seeds):
            parts = list(common)
            for _, given in choice:
                # Of a list of settings, each seed uses the next one.
                if isinstance(given, tuple) and number >= len(given):
                    raise ManifestError(
                        row,
                        "a list of settings must have one for each seed",
                        len(given),
                        "lengthen it or name fewer seeds",
                    )
                parts.append(given[number] if isinstance(given, tuple) else given)
                _refuse_own_keys(row, parts[-1], described)
            cells.append(Cell(names, seed, _manifest(row, parts, described, seed)))
    if not cells:
        raise ManifestError("skip", "must leave a row", len(described.skip), "shorten it")
    study = Study(described, path.parent, tuple(cells))
    _check(study)
    return study


def _refuse_own_keys(where: str, settings: Settings, described: StudyFile) -> None:
    """Refuse settings of keys that the study sets itself; ignored they would mislead the writer."""
    own = ["name", "distillation.seeds", "evaluation.models"]
    for key in [*own, "salt"] if described.repeat == "run" else own:
        section, _, name = key.rpartition(".")
        holder = settings.get(section) if section else settings
        if isinstance(holder, dict) and name in holder:
            raise ManifestError(
                where,
                f"must not hold {key}, which the study gives",
                holder[name],
                "remove it; seeds are a key of the study",
            )


def _manifest(row: str, parts: list[Settings], described: StudyFile, seed: int) -> Manifest:
    """The manifest of a cell from settings, of which later ones override earlier ones.

    Raises:
        ManifestError: the settings make no manifest, or one with several methods.
    """
    # Presets expand after all settings of the study's file, so that any of them may choose the
    # preset.
    tree = expand_preset(functools.reduce(merge, parts), PRESETS)
    # Last, so that no preset changes what the study sets itself.
    tree["name"] = described.name
    if described.repeat == "run":
        tree["salt"] = seed
    own: Settings = {"distillation": {"seeds": [seed]}, "evaluation": {"models": ["student"]}}
    for section, values in own.items():
        if isinstance(tree.get(section, {}), dict):  # else the check names it
            tree = merge(tree, {section: values})
    # The manifest's error names a key, but the reader must also know which row has it.
    try:
        manifest = check(Manifest, tree)
    except ManifestError as error:
        rule = f"must be a manifest ({error})"
        raise ManifestError(row, rule, row.removeprefix("axes: "), "fix the study") from None
    # A cell is one student of one data set.
    if len(manifest.methods) != 1:
        raise ManifestError(
            row,
            "prompts.method and synthesis.source must make one method",
            list(manifest.methods),
            "make it an axis",
        )
    return manifest


def _check(study: Study) -> None:
    """Refuse what the rows of a study contradict."""
    described = study.described
    for cell in study.cells:
        for section in ("storage", "cluster", "classes", "evaluation"):
            if getattr(cell.manifest, section) != getattr(study.manifest, section):
                raise ManifestError(
                    f"axes: {cell.row}",
                    f"{section} must be the same in all rows",
                    cell.manifest.as_dict()[section],
                    "move it to settings",
                )
        # Names of values may hold spaces, so other values can join to the same name.
        if study.rows[cell.row][0].names != cell.names:
            raise ManifestError(
                "axes", "must give each row a name of its own", cell.row, "rename a value"
            )
    if described.teacher in study.rows:
        raise ManifestError("teacher", "must not be a row's name", described.teacher, "rename one")
    # Stored distances, with which students are compared, are to the class texts alone.
    texts = {cell.manifest.distillation.texts for cell in study.cells}
    if described.held_out_images and "styles" in texts:
        raise ManifestError(
            "held_out_images",
            "must be 0 where students learn with distillation.texts=styles",
            described.held_out_images,
            "set it to 0",
        )
    for name in described.pictures.classes if described.pictures else ():
        if name not in study.manifest.classes:
            raise ManifestError(
                "pictures.classes", "must be among classes", name, "name one of them"
            )
    # A quick study may replace axes, so the paper's rows and the reference may be missing.
    if described.size == "quick":
        return
    labels = list(filter(None, [*study.rows, described.teacher]))
    for number, paper in enumerate(described.paper):
        for label in paper.rows:
            if label not in labels:
                raise ManifestError(
                    f"paper.{number}.rows", f"must be among {', '.join(labels)}", label, "fix it"
                )
    values = [value for axis in described.chosen_axes for value in axis.values]
    if described.compare and values.count(described.compare) != 1:
        raise ManifestError(
            "compare",
            f"must be a value of one axis, among {', '.join(values)}",
            described.compare,
            "name one of them, or remove it",
        )
