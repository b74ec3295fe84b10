"""Studies: a table or figure of the paper as a YAML file that covers many manifests and seeds.

A study names a base manifest, settings that change it, and axes of named settings. One value of
each axis makes a row; a row with a seed makes a cell: the manifest of one student or, in a gallery,
of one data set. This module imports neither torch nor ray, so a bad study is refused at once.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dfkd.config.hashing import fingerprint
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.config.presets import PRESETS
from dfkd.errors import ManifestError
from dfkd.lab.studies.schema import Settings, StudyFile
from dfkd.utils.yaml import check, expand_preset, load, merge, read_tree

FILE = "study.yaml"

HELD_OUT_SALT = 2**31 - 1
"""Salt of the data set that measures agreement; no study has it among its seeds."""


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
    def method(self) -> Method:
        """The method that makes the cell's images."""
        return self.manifest.method

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
        return dataclasses.replace(larger, salt=HELD_OUT_SALT)

    def data_sets(self) -> dict[str, Manifest]:
        """The manifest of each different data set, by the fingerprint of its identity."""
        # Without hashes of weight files: they take long, and equal names mean equal files here.
        manifests = [cell.manifest for cell in self.cells]
        manifests += filter(None, map(self.held_out, self.cells))
        return {fingerprint(identity(manifest, {})): manifest for manifest in manifests}

    def as_dict(self) -> dict[str, Any]:
        """The file's content with every default, as plain values."""
        tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.described)))
        return tree

    def manifests(self) -> list[dict[str, Any]]:
        """The manifest of each cell, as plain values."""
        return [cell.manifest.as_dict() for cell in self.cells]


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
    cells = tuple(_cells(described, base))
    if not cells:
        raise ManifestError("skip", "must leave a row", len(described.skip), "shorten it")
    study = Study(described, path.parent, cells)
    _check_common_settings(study)
    _check_distinct_rows(study)
    _check_measures(study)
    _check_pictures(study)
    # A quick study may replace axes, so the paper's rows and the reference may be missing.
    if described.size == "full":
        _check_paper(study)
        _check_compared(study)
    return study


def _cells(described: StudyFile, base: Settings) -> Iterator[Cell]:
    """Yield the cells of all rows and seeds."""
    common = [base, described.settings]
    if described.size == "quick":
        # Beneath the axes, so that the rows differ in the small study as in the full one.
        common.append(described.quick.settings)
    # Refused and not overwritten, because an ignored setting would mislead whoever wrote it.
    study_settings = _study_settings(described, described.chosen_seeds[0])
    _refuse_study_settings("settings", described.settings, study_settings)
    _refuse_study_settings("quick.settings", described.quick.settings, study_settings)
    for names, alternatives in _rows(described):
        for number, seed in enumerate(described.chosen_seeds):
            settings = [_settings_of_seed(names, each, number) for each in alternatives]
            for each in settings:
                _refuse_study_settings(f"axes: {' '.join(names)}", each, study_settings)
            yield Cell(
                names,
                seed,
                _manifest(names, [*common, *settings], _study_settings(described, seed)),
            )


Alternatives = list[Settings | tuple[Settings, ...]]
"""The settings that each axis contributes to a row."""


def _rows(described: StudyFile) -> Iterator[tuple[tuple[str, ...], Alternatives]]:
    """Yield the names and the settings of each row."""
    axes = described.chosen_axes
    skipped = [_skipped(described, entry) for entry in described.skip]
    for choice in itertools.product(*(axis.values.items() for axis in axes)):
        names = {axis.name: name for axis, (name, _) in zip(axes, choice, strict=True)}
        if not any(entry.items() <= names.items() for entry in skipped):
            yield tuple(names.values()), [settings for _, settings in choice]


def _skipped(described: StudyFile, entry: Mapping[str, str]) -> dict[str, str]:
    """An entry of `skip`; its values must exist, except with `--quick`, which may replace axes."""
    known = {axis.name: axis.values for axis in described.chosen_axes}
    for axis, value in entry.items():
        if described.size == "full" and value not in known.get(axis, ()):
            raise ManifestError(
                "skip", "must name values by their axes", dict(entry), "fix or remove it"
            )
    return dict(entry)


def _settings_of_seed(
    names: tuple[str, ...], settings: Settings | tuple[Settings, ...], number: int
) -> Settings:
    """The settings of an axis' value for the seed at position `number`."""
    if not isinstance(settings, tuple):
        return settings
    if number >= len(settings):
        raise ManifestError(
            f"axes: {' '.join(names)}",
            "a list of settings must have one for each seed",
            len(settings),
            "lengthen it or name fewer seeds",
        )
    return settings[number]


def _study_settings(described: StudyFile, seed: int) -> Settings:
    """The manifest keys of a cell that the study sets itself."""
    settings: Settings = {
        "name": described.name,
        "distillation": {"seeds": [seed]},
        "evaluation": {"models": ["student"]},
    }
    return settings | ({"salt": seed} if described.repeat == "run" else {})


def _refuse_study_settings(
    field: str, settings: Any, study_settings: Settings, parent: str = ""
) -> None:
    """Refuse settings that the study would overwrite."""
    for name, value in study_settings.items():
        if not isinstance(settings, dict) or name not in settings:
            continue
        key = f"{parent}{name}"
        if not isinstance(value, dict):
            raise ManifestError(
                field,
                f"must not hold {key}, which the study gives",
                settings[name],
                "remove it; seeds are a key of the study",
            )
        _refuse_study_settings(field, settings[name], value, f"{key}.")


def _manifest(names: tuple[str, ...], parts: list[Settings], study_settings: Settings) -> Manifest:
    """Merge settings into the manifest of a cell; later parts override earlier ones.

    Raises:
        ManifestError: the settings make no manifest, or one with several methods.
    """
    tree: Settings = {}
    for part in parts:
        tree = merge(tree, part)
    # Presets expand after all settings of the study's file, so that any of them may choose the
    # preset.
    tree = expand_preset(tree, PRESETS)
    # Last, so that no preset changes what the study sets itself.
    for key, value in study_settings.items():
        section = isinstance(value, dict)
        if not section or isinstance(tree.get(key, {}), dict):  # else the check names it
            tree = merge(tree, {key: value})
    # The manifest's error names a key, but the reader must also know which row has it.
    try:
        manifest = check(Manifest, tree)
    except ManifestError as error:
        raise ManifestError(
            f"axes: {' '.join(names)}", f"must be a manifest ({error})", names, "fix the study"
        ) from None
    # A cell is one student of one data set.
    if len(manifest.methods) != 1:
        raise ManifestError(
            f"axes: {' '.join(names)}",
            "prompts.method, synthesis.method and batch_norm_weight must make one method",
            list(manifest.methods),
            "make it an axis",
        )
    return manifest


def _check_common_settings(study: Study) -> None:
    """Refuse rows that differ in what they share: place, actors, classes and evaluation."""
    for cell in study.cells:
        for field in ("storage", "cluster", "classes", "evaluation"):
            if getattr(cell.manifest, field) != getattr(study.manifest, field):
                raise ManifestError(
                    f"axes: {cell.row}",
                    f"{field} must be the same in all rows",
                    cell.manifest.as_dict()[field],
                    "move it to settings",
                )


def _check_distinct_rows(study: Study) -> None:
    """Refuse rows with the same name."""
    for cell in study.cells:
        # Names of values may hold spaces, so other values can join to the same name.
        if study.rows[cell.row][0].names != cell.names:
            raise ManifestError(
                "axes", "must give each row a name of its own", cell.row, "rename a value"
            )


def _check_measures(study: Study) -> None:
    """Refuse a teacher's row with the name of another, and an agreement with other labels."""
    described = study.described
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


def _check_pictures(study: Study) -> None:
    """Refuse pictures of a class that the study does not have."""
    shown_classes = study.described.pictures.classes if study.described.pictures else ()
    for name in shown_classes:
        if name not in study.manifest.classes:
            raise ManifestError(
                "pictures.classes", "must be among classes", name, "name one of them"
            )


def _check_paper(study: Study) -> None:
    """Refuse numbers of the paper for a row that the study does not have."""
    labels = list(filter(None, [*study.rows, study.described.teacher]))
    for number, paper in enumerate(study.described.paper):
        for label in paper.rows:
            if label not in labels:
                raise ManifestError(
                    f"paper.{number}.rows", f"must be among {', '.join(labels)}", label, "fix it"
                )


def _check_compared(study: Study) -> None:
    """Refuse a reference that is no value of an axis, or of two axes."""
    described = study.described
    values = [value for axis in described.chosen_axes for value in axis.values]
    if described.compare and values.count(described.compare) != 1:
        raise ManifestError(
            "compare",
            f"must be a value of one axis, among {', '.join(values)}",
            described.compare,
            "name one of them, or remove it",
        )
