"""Readers of single objects of a run."""

from dataclasses import dataclass
from typing import TypeVar

from pydantic import TypeAdapter

from dfkd.errors import CorruptionError
from dfkd.models.student import read_card
from dfkd.storage.base import Storage
from dfkd.utils.strict_json import read_as

T = TypeVar("T")


def read_checked(storage: Storage, key: str, kind: type[T]) -> T:
    """The JSON object `key`, which the jobs wrote, checked as the pydantic type `kind`.

    Raises:
        CorruptionError: the object is damaged; `MissingObject` if there is none.
    """
    try:
        return read_as(TypeAdapter(kind), storage.get(key))
    except ValueError as error:
        raise CorruptionError(
            f"{storage.location(key)}: {error}; delete it and run jobs/pipeline.py again, which "
            "writes it anew"
        ) from None


@dataclass(frozen=True)
class TrainedStudent:
    """One trained student."""

    name: str
    """Name of its folder."""
    method: str
    seed: int
    architecture: str
    target: str
    """What it learned from the teacher: `distances` or `embedding`."""
    version: str
    """Fingerprint of the data set that it learned from."""
    bytes: int
    sha256: str


def read_student(student: Storage, name: str, method: str, seed: int) -> TrainedStudent:
    """The facts about a finished student.

    Args:
        student: the student's folder.
        name: the folder's name.
        method: method of its data set.
        seed: seed of its distillation.

    Raises:
        CorruptionError: its card is damaged.
    """
    card = read_card(student)
    return TrainedStudent(
        name=name,
        method=method,
        seed=seed,
        architecture=card["architecture"],
        target=card.get("target", "distances"),
        version=card["version"],
        bytes=card["bytes"],
        sha256=card["sha256"],
    )
