"""The stored result of a cell, under a name that covers everything that can change its scores.

    cells/{model}-{hash12}/cell.json     a `CellResult`; present once the cell is finished
                           results.json  as the evaluation wrote it, with the confusion matrices

`model` is the student's name, which covers data set, settings and seed, or the name of the teacher.
Studies that have a cell in common and use the same root share its result.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from dfkd.config.distillation import Average
from dfkd.config.hashing import fingerprint
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation.data import Domains, open_data
from dfkd.evaluation.results import ResultRow, selected
from dfkd.lab.studies.study import Study
from dfkd.storage import layout
from dfkd.storage.base import MissingObject, Storage
from dfkd.utils.strict_json import canonical, read_as
from dfkd.utils.types import CHECKED, Fraction, Sha256

SCHEMA = 2
"""Increase it with every code change that changes the scores of an unchanged student."""

FILE = "cell.json"
LIMIT = 1 << 22
"""Maximum size of cell.json in bytes."""


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


def pooled_accuracy(scores: Sequence[Score]) -> float:
    """Accuracy on the images of all domains together, 0-1."""
    return sum(each.accuracy * each.images for each in scores) / sum(each.images for each in scores)


@dataclass(frozen=True)
class CellStore:
    """Where the result of a model on an evaluation set is stored."""

    storage: Storage
    """Storage of the root."""
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
        key = f"{self.folder}/{FILE}"
        try:
            result = read_as(TypeAdapter(CellResult), self.storage.get(key, LIMIT))
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
        key = f"{self.folder}/{FILE}"
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


def scores(rows: list[ResultRow]) -> tuple[Score, ...]:
    """The scores of the one model in the rows."""
    return tuple(
        Score(
            domain=row["domain"],
            images=row["images"],
            accuracy=row["accuracy"],
            class_mean=row["class_mean"],
            per_class=row["per_class"],
        )
        for row in rows
    )
