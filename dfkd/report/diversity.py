"""Diversity and accuracy of each method of a run, side by side."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from dfkd.report.facts import Facts, MethodImages
from dfkd.report.tables import align
from dfkd.storage.base import Storage
from dfkd.utils.strict_json import canonical

FILE = "diversity.json"
"""Content: {"schema": 1, "rows": [`Diversity`, ...]}"""


@dataclass(frozen=True)
class Diversity:
    """Diversity of one method's prompts and images, and the accuracy of its students.

    Cosines and Vendi scores are in the teacher's embedding space, of all prompts and of a sample of
    the images. None means that the run has no data for it.
    """

    method: str
    prompt_cosine: float | None
    """Mean cosine between two prompts of one class."""
    prompt_vendi: float | None
    """Effective number of different prompts."""
    image_cosine: float | None
    """Mean cosine between two images of one class."""
    image_vendi: float | None
    """Effective number of different images."""
    image_twins: float | None
    """Share of the examined images with a near duplicate among them in their class."""
    own_class: float | None
    """Share of images that the teacher assigns to their own class."""
    accuracy: float | None
    """Mean accuracy of the students over domains and seeds, 0-1."""
    std: float | None
    """Standard deviation of the accuracy over seeds (n - 1)."""


def diversities(facts: Facts) -> list[Diversity]:
    """One row for each method with images, in the run's order."""
    scores = {scored.label: scored.summary for scored in facts.students}
    return [_row(images, scores.get(images.method, {})) for images in facts.method_images]


def _row(images: MethodImages, summary: Any) -> Diversity:
    """The row of a method, with the summary of its students; `{}` if none was scored."""
    shown, prompts, stated = images.gallery, images.prompts, images.version.manifest
    return Diversity(
        method=images.method,
        prompt_cosine=prompts.get("similarity_in_class"),
        prompt_vendi=prompts.get("vendi"),
        image_cosine=_mean(shown.within),
        image_vendi=shown.vendi,
        image_twins=shown.twins,
        own_class=1 - stated["inconsistent"] / stated["samples"] if stated["samples"] else None,
        accuracy=summary.get("mean"),
        std=summary.get("std"),
    )


def _mean(values: Any) -> float | None:
    """The mean of an array; None if it is empty."""
    return float(values.mean()) if len(values) else None


def write(storage: Storage, rows: Sequence[Diversity]) -> None:
    """Write diversity.json under a run's root."""
    storage.put(FILE, canonical({"schema": 1, "rows": [asdict(row) for row in rows]}))


HEADS = {
    "method": ("", "method"),
    "prompt_cosine": ("cosine of", "prompts"),
    "prompt_vendi": ("Vendi of", "prompts"),
    "image_cosine": ("cosine of", "images"),
    "image_vendi": ("Vendi of", "images"),
    "image_twins": ("twins,", "%"),
    "own_class": ("own", "class, %"),
    "accuracy": ("accu-", "racy, %"),
    "std": ("", "std"),
}
"""Both lines of each column's heading."""


def table(rows: Sequence[Diversity]) -> str:
    """The rows as text with aligned columns."""
    names = [field.name for field in fields(Diversity)]
    cells = [[_cell(name, getattr(row, name)) for name in names] for row in rows]
    heads = [[HEADS[name][line] for name in names] for line in (0, 1)]
    lines = align([*heads, *cells])
    return "\n".join([*lines[:2], "-" * max(map(len, lines)), *lines[2:]])


def _cell(name: str, value: Any) -> str:
    """The text of a field of `Diversity` in the table."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "-"
    if name in ("image_twins", "own_class", "accuracy", "std"):
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if name.endswith("cosine") else f"{value:.1f}"
