"""How far the students of a run are, from one listing of their folders."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dfkd.config.manifest import Manifest
from dfkd.distillation.student_names import student_name
from dfkd.operations.listing import METHOD
from dfkd.operations.status.activity import Activity
from dfkd.operations.status.versions import VersionStatus
from dfkd.storage import layout
from dfkd.storage.base import Storage

OBJECT = re.compile(
    rf"{layout.STUDENTS}(?P<name>{METHOD}-s(?P<seed>[0-9]+)-[0-9a-f]{{12}})/"
    rf"(?:{re.escape(layout.STUDENT_CARD)}|{layout.CHECKPOINTS}(?P<step>[0-9]{{10}})\.safetensors)"
)

State = Literal["absent", "running", "unfinished", "finished"]


@dataclass(frozen=True, kw_only=True)
class StudentStatus:
    """How far the student of a method and seed is."""

    method: str
    seed: int
    name: str | None
    """Name of its folder; None while its version is not begun."""
    architecture: str | None = None
    """Which of several in `distillation.student` it is."""
    state: State
    """`running`: of the unfinished students of its published version, it is one of the first, as
    many as processes are at work there."""
    age_seconds: float | None = None
    """Seconds since the finished student, or else its newest checkpoint, was written."""
    step: int = 0
    """Step of the newest checkpoint; 0 if there is none, as of a finished student."""
    epoch: float | None = None
    """`step` in epochs; None if it is 0, or without a manifest."""
    epochs: int | None = None
    """All epochs of the training; None without a manifest."""
    images_per_second: float | None = None
    """Between the two newest checkpoints; of earlier calls if there are not two."""
    seconds_left: float | None = None
    """Time for the remaining steps at this rate."""


@dataclass
class Stored:
    """What is stored of a student."""

    method: str
    seed: int
    card_age: float | None = None
    """Age of the card in seconds; None while the student is not finished."""
    checkpoints: list[tuple[int, float]] = field(default_factory=list)
    """Step and age in seconds of each checkpoint, in the order of the steps."""


def stored_students(root: Storage) -> dict[str, Stored]:
    """All students under a root, by the name of their folder."""
    found: dict[str, Stored] = {}
    for entry in root.entries(layout.STUDENTS):
        if match := OBJECT.fullmatch(entry.key):
            student = found.setdefault(match["name"], Stored(match["method"], int(match["seed"])))
            if match["step"]:
                student.checkpoints.append((int(match["step"]), entry.age))
            else:
                student.card_age = entry.age
    return found


def found_students(stored: Mapping[str, Stored], activity: Activity) -> Iterator[StudentStatus]:
    """Yield the status of all stored students; their data and settings are not known."""
    for name, student in stored.items():
        busy = any(version.startswith(f"{student.method}/") for version in activity.since)
        yield _status(student, name, busy)


def expected_students(
    manifest: Manifest,
    versions: Sequence[VersionStatus],
    stored: Mapping[str, Stored],
    activity: Activity,
) -> Iterator[StudentStatus]:
    """Yield the status of each student of a manifest, in the order in which they are trained.

    Args:
        versions: those of the manifest, whose students are meant.

    Raises:
        WeightsError: the file of the initial weights does not exist on this machine.
    """
    for version in versions:
        processes = activity.processes(f"{version.method}/{version.id}")
        if version.state != "published":
            processes = 0
        students = manifest.distillation.student
        if version.method != manifest.methods[-1]:
            students = students[:1]
        for architecture, seed in itertools.product(students, manifest.distillation.seeds):
            single = manifest.with_student(architecture)
            name, student = None, Stored(version.method, seed)
            if version.fingerprint:
                name = student_name(single, version.fingerprint, version.method, seed)
                student = stored.get(name, student)
            status = _status(student, name, processes > 0)
            # A process trains one student at a time, and they begin in this order.
            processes -= status.state == "running"
            several = len(manifest.distillation.student) > 1
            status = replace(status, architecture=architecture if several else None)
            yield _timed(status, manifest, version, student, activity)


def _status(student: Stored, name: str | None, busy: bool) -> StudentStatus:
    """The status of a student as far as it follows from what is stored.

    Args:
        busy: whether a process trains it if it is not finished.
    """
    step, age = student.checkpoints[-1] if student.checkpoints else (0, None)
    state: State = "unfinished" if step else "absent"
    if student.card_age is not None:
        state, step, age = "finished", 0, student.card_age
    elif busy:
        state = "running"
    return StudentStatus(
        method=student.method, seed=student.seed, name=name, state=state, step=step, age_seconds=age
    )


def _timed(
    status: StudentStatus,
    manifest: Manifest,
    version: VersionStatus,
    student: Stored,
    activity: Activity,
) -> StudentStatus:
    """The status with epochs, rate and time left, as the settings tell them."""
    config = manifest.distillation
    epochs, steps = config.warmup_epochs + config.epochs, version.images.done // config.batch_size
    if status.state == "finished" or version.state != "published" or not steps:
        return replace(status, epochs=epochs)
    rate = activity.rate("distill", status.method, status.seed)
    if len(student.checkpoints) > 1:
        (before, older), (after, newer) = student.checkpoints[-2:]
        # A training that was resumed has been at work only since its lease began.
        key = f"{status.method}/{version.id}"
        holders = [each.since_seconds for each in activity.holders if key in each.versions]
        older = min(older, max(holders, default=math.inf))
        if older > newer:
            rate = (after - before) * config.batch_size / (older - newer)
    images = (epochs * steps - status.step) * config.batch_size
    return replace(
        status,
        epoch=status.step / steps if status.step else None,
        epochs=epochs,
        images_per_second=rate,
        seconds_left=images / rate if rate else None,
    )
