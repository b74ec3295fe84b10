"""What a cell of a study leaves: its scores, once, under the name of all that can change them.

    cells/{model}-{hash12}/cell.json     an `CellResult`; the cell is finished from here on
                           results.json  as the evaluation wrote it, with the confusions

`model` is the student's name, which covers data set, settings and seed, or the teacher's or a
text-only classifier's. Studies
that have a cell in common and one root find each other's.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from dfkd.config.fingerprint import fingerprint
from dfkd.config.manifest import Manifest
from dfkd.distillation.student_store import student_name
from dfkd.distillation.text_only import classifier_name
from dfkd.errors import CorruptionError
from dfkd.evaluation.data import Domains
from dfkd.evaluation.results import ZERO_SHOT, ResultRow
from dfkd.storage import layout
from dfkd.storage.local import MissingObject, Storage
from dfkd.studies.study import Cell
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import CHECKED, Fraction, Sha256

SCHEMA = 1
"""Raised whenever a change of code changes the scores that the same student gets."""

FILE = "cell.json"
LIMIT = 1 << 22
"""Bytes of a cell at the most."""


@checked(frozen=True, kw_only=True, config=CHECKED)
class Score:
    """A model on one domain."""

    domain: str
    images: Annotated[int, Field(ge=1)]
    accuracy: Fraction
    class_mean: Fraction
    per_class: dict[str, Fraction]


@checked(frozen=True, kw_only=True, config=CHECKED)
class CellResult:
    """A model's scores, and where, when and with what they were made."""

    schema: Literal[1] = 1
    model: str
    """Name of the student's folder, `teacher-{hash12}`, or `text-only-s{seed}-{hash12}`."""
    version: Sha256 | Literal[""]
    """Fingerprint of the data set that the student learned from; empty for all others."""
    data: Sha256
    """Of the images that were scored, with their labels."""
    scores: Annotated[tuple[Score, ...], Field(min_length=1)]
    """By domain."""
    notes: tuple[str, ...]
    """About the data."""
    date: str
    """UTC."""
    machine: dict[str, Any]
    environment: dict[str, str]

    @property
    def mean(self) -> float:
        """Accuracy, the mean over domains, 0-1."""
        return sum(score.accuracy for score in self.scores) / len(self.scores)


@dataclass(frozen=True)
class CellStore:
    """Where the outcome of a model on some data belongs."""

    storage: Storage
    """The root."""
    model: str
    version: str
    data: str

    @property
    def folder(self) -> str:
        """Under the root."""
        about = {"schema": SCHEMA, "model": self.model, "version": self.version, "data": self.data}
        return f"{layout.CELLS}{self.model}-{hashlib.sha256(canonical(about)).hexdigest()[:12]}"

    def read(self) -> CellResult | None:
        """The outcome, or None before the cell is finished.

        Raises:
            CorruptionError: it is not what was written.
        """
        key = f"{self.folder}/{FILE}"
        try:
            found = TypeAdapter(CellResult).validate_json(self.storage.get(key, LIMIT), strict=True)
        except MissingObject:
            return None
        except ValidationError:
            found = None
        about = (self.model, self.version, self.data)
        if found is None or (found.model, found.version, found.data) != about:
            raise CorruptionError(
                f"{self.storage.location(key)}: is not the cell that was written; delete it and "
                "run the same command again, which makes it anew"
            )
        return found

    def keep(self, outcome: CellResult) -> CellResult:
        """Write the outcome, unless there is one; returns the outcome that holds."""
        key = f"{self.folder}/{FILE}"
        if self.storage.put_if_absent(key, canonical(asdict(outcome))):
            return outcome
        return self.read() or outcome


def of_student(storage: Storage, cell: Cell, version: str, data: str) -> CellStore:
    """The place of a cell's student.

    Args:
        version: fingerprint of the data set.
        data: from `digest`.
    """
    name = student_name(cell.manifest, version, cell.method, cell.seed)
    return CellStore(storage, name, version, data)


def of_teacher(storage: Storage, identity: Mapping[str, Any], data: str) -> CellStore:
    """The place of the teacher of a data set's identity, which answers zero-shot."""
    keys = [key for key in identity if key == "classes" or key.startswith("teacher.")]
    name = f"teacher-{fingerprint({key: identity[key] for key in keys})[:12]}"
    return CellStore(storage, name, "", data)


def of_text_only(storage: Storage, manifest: Manifest, seed: int, data: str) -> CellStore:
    """The place of the text-only classifier of a manifest and seed."""
    return CellStore(storage, f"text-only-{classifier_name(manifest, seed)}", "", data)


def digest(data: Domains) -> str:
    """The sha256 of all images with domain and class; whatever the files are called.

    An image that cannot be read counts as such.
    """
    found = []
    for item in data.items:
        try:
            image = hashlib.sha256(item.read()).hexdigest()
        except OSError:
            image = "unreadable"
        found.append((item.domain, item.class_index, image))
    return hashlib.sha256(canonical([list(data.classes), sorted(found)])).hexdigest()


def scores(rows: list[ResultRow]) -> tuple[Score, ...]:
    """Of the one model that the rows are about; of a text-only tower of its own the classifier."""
    return tuple(
        Score(
            domain=row["domain"],
            images=row["images"],
            accuracy=row["accuracy"],
            class_mean=row["class_mean"],
            per_class=row["per_class"],
        )
        for row in rows
        if (row["model"], row["method"]) != ("text-only", ZERO_SHOT)
    )
