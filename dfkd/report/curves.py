"""Loss and agreement of a student over its training, from the event files that it left."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from dfkd.storage import Storage

MAX_POINTS = 2000
"""Points that are kept of each scalar; of more, TensorBoard draws a sample with its own seed."""


@dataclass(frozen=True)
class Curve:
    """What training logged about one student."""

    method: str
    seed: int
    name: str
    """As a chart labels it."""
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    agreement: tuple[float, ...]
    """Share of images whose nearest class is the teacher's, 0-1; as long as `steps`, like `loss`.
    """


def read_curve(student: Storage, method: str, seed: int, name: str) -> Curve | None:
    """The curve of the student in a folder; None if it left no events.

    Args:
        student: the student's folder.
        method: of its prompts.
        seed: of its distillation.
        name: for charts.
    """
    keys = list(student.list("tensorboard/"))
    with tempfile.TemporaryDirectory(prefix="dfkd-events-") as folder:
        for key in keys:
            student.get_file(key, Path(folder, Path(key).name))
        events = EventAccumulator(folder, size_guidance={"scalars": MAX_POINTS})
        events.Reload()
        if not {"loss", "agreement"} <= set(events.Tags()["scalars"]):
            return None
        loss, agreement = (_finite(events, tag) for tag in ("loss", "agreement"))
    steps = tuple(sorted(loss.keys() & agreement.keys()))
    return Curve(
        method,
        seed,
        name,
        steps,
        tuple(loss[step] for step in steps),
        tuple(agreement[step] for step in steps),
    )


def _finite(events: EventAccumulator, tag: str) -> dict[int, float]:
    found = {event.step: float(event.value) for event in events.Scalars(tag)}
    return {step: value for step, value in found.items() if math.isfinite(value)}
