"""Readers of single objects of a run: students with their curves, and prompts.

The page shows a sample of what is large, so a reader's memory does not grow with the run.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from dfkd.dataset.published import PublishedVersion
from dfkd.errors import CorruptionError
from dfkd.models.student import read_card
from dfkd.prompts.diversity import pair_cosines, vendi_score
from dfkd.report.gallery import evenly
from dfkd.storage import layout
from dfkd.storage.base import MissingObject, Storage
from dfkd.utils import parquet, strict_json
from dfkd.utils.strict_json import read_as

T = TypeVar("T")

MAX_POINTS = 2000
"""Maximum number of points of each scalar; TensorBoard samples longer series with a fixed seed."""
MAX_PARTS = 4
"""Maximum number of prompt files that are read; each holds one shard of every class."""
MAX_PROMPTS = 420
"""Maximum number of prompts that are sampled."""
RESTORE = "restore them, or synthesise into another storage.root"
COLUMNS = ("class_index", "embedding")


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


@dataclass(frozen=True)
class PromptFacts:
    """A sample of one version's prompts."""

    total: int
    """Number of prompts of the version."""
    sampled: int
    within: npt.NDArray[Any]
    """Cosines of pairs within a class."""
    across: npt.NDArray[Any]
    """Cosines of pairs from two classes."""
    vendi: float
    own_class: float | None
    """Share of all prompts that are nearest to their own class, 0-1; None if it is unknown."""


def read_prompts(version: PublishedVersion) -> PromptFacts | None:
    """A sample of a version's prompts; None if it has none.

    Raises:
        CorruptionError: a file of prompts cannot be read or has unusable content.
    """
    keys = evenly(list(version.storage.list(layout.PROMPTS)), MAX_PARTS)
    if not keys:
        return None
    # From several files, because contrastive prompts differ from part to part.
    parts = [_sample_part(version.storage, key, MAX_PROMPTS // len(keys)) for key in keys]
    table = pa.concat_tables(parts).sort_by("class_index")
    labels, embeddings = _arrays(version, table)
    within, across = pair_cosines(embeddings, labels)
    return PromptFacts(
        total=int(version.manifest["samples"]),
        sampled=table.num_rows,
        within=within,
        across=across,
        vendi=vendi_score(embeddings),
        own_class=_own_class(version),
    )


def _sample_part(storage: Storage, key: str, count: int) -> pa.Table:
    """At most `count` evenly spaced rows of a file of prompts, which is then no longer in memory.

    Raises:
        CorruptionError: it is not Parquet, or a column is missing.
    """
    where = storage.location(key)
    table = parquet.read(storage.get(key), COLUMNS, where, RESTORE, columns=COLUMNS)
    return table.select(COLUMNS).take(evenly(range(table.num_rows), count))


def _arrays(
    version: PublishedVersion, table: pa.Table
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Class indices int64 [N] and text embeddings float64 [N, E], checked."""
    try:
        labels = table["class_index"].to_numpy().astype(np.int64)
        embeddings = np.stack(table["embedding"].to_numpy()).astype(np.float64)
        usable = np.isfinite(embeddings).all() and (np.abs(embeddings).sum(axis=1) > 0).all()
        known = ((labels >= 0) & (labels < len(version.classes))).all()
    except (ValueError, TypeError) as error:
        raise _damaged(version, str(error)) from None
    if not usable or not known:
        raise _damaged(version, "a row is not finite, zero, or of no class")
    return labels, embeddings


def _own_class(version: PublishedVersion) -> float | None:
    """The share in prompts.json; None without it, since a page can do without it."""
    try:
        share = strict_json.parse(version.storage.get("prompts.json"))["own_class"]
    except (MissingObject, ValueError, TypeError, KeyError):
        return None
    return share if isinstance(share, float | int) else None


def _damaged(version: PublishedVersion, problem: str) -> CorruptionError:
    """The error about unusable prompts."""
    where, reason = version.storage.location("prompts"), " ".join(problem.split())
    return CorruptionError(f"{where}: no readable prompts ({reason}); {RESTORE}")
