"""Readers of single objects of a run, as students with their curves."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from dfkd.errors import CorruptionError
from dfkd.models.student import read_card
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.utils.strict_json import read_as

T = TypeVar("T")

MAX_POINTS = 2000
"""Maximum number of points of each scalar; TensorBoard samples longer series with a fixed seed."""


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
class TrainingCurve:
    """The training log of one student."""

    method: str
    seed: int
    name: str
    """Label in charts."""
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    agreement: tuple[float, ...]
    """Share of images whose nearest class is the teacher's, 0-1; one for each step, like `loss`."""


def _read_curve(student: Storage, method: str, seed: int, name: str) -> TrainingCurve | None:
    """The training curve in a student's folder; None if there is no log."""
    keys = list(student.list(layout.TENSORBOARD))
    # TensorBoard's reader takes a local folder only, and storage may be S3.
    with tempfile.TemporaryDirectory(prefix="dfkd-events-") as folder:
        for key in keys:
            student.get_file(key, Path(folder, Path(key).name))
        events = EventAccumulator(folder, size_guidance={"scalars": MAX_POINTS})
        events.Reload()
        if not {"loss", "agreement"} <= set(events.Tags()["scalars"]):
            return None
        loss, agreement = (_finite(events, tag) for tag in ("loss", "agreement"))
    # A run that was killed between its two writes has logged one of them only.
    steps = tuple(sorted(loss.keys() & agreement.keys()))
    return TrainingCurve(
        method,
        seed,
        name,
        steps,
        tuple(loss[step] for step in steps),
        tuple(agreement[step] for step in steps),
    )


def _finite(events: EventAccumulator, tag: str) -> dict[int, float]:
    """The finite values of a scalar by step; of a step logged twice by a resumed run, the last."""
    values = {event.step: float(event.value) for event in events.Scalars(tag)}
    return {step: value for step, value in values.items() if math.isfinite(value)}


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
    curve: TrainingCurve | None


def read_student(student: Storage, name: str, method: str, seed: int, label: str) -> TrainedStudent:
    """The facts about a finished student.

    Args:
        student: the student's folder.
        name: the folder's name.
        method: method of its data set.
        seed: seed of its distillation.
        label: name of its curve in charts.

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
        curve=_read_curve(student, method, seed, label),
    )
