"""What `student/takehome.json` says about the student that a run hands out, as lines of a table."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from dfkd.errors import CorruptionError
from dfkd.storage import Storage

KEY = "student/takehome.json"

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Accuracy(BaseModel):
    mean: Amount


class _Size(BaseModel):
    bytes: int


class _Difference(BaseModel):
    max_difference: Amount
    equal_predictions: Amount


class _Parts(BaseModel):
    accuracy: dict[str, _Accuracy | None]


class _Latency(BaseModel):
    ms: dict[str, Amount]


class _Student(BaseModel):
    method: str
    seed: int
    parameters: int


class _Card(BaseModel):
    """The parts of the file that a page shows; it holds more."""

    schema_: Literal[1] = Field(alias="schema")
    student: _Student
    teacher: _Size
    files: dict[str, _Size]
    latency: _Latency
    evaluation: _Parts
    check: dict[str, _Difference | int]


@dataclass(frozen=True)
class Line:
    """One form of a model; None where nothing was measured."""

    name: str
    size: int | None
    """Bytes."""
    ms: float | None
    """Median milliseconds of one image on one core."""
    accuracy: float | None
    """Mean over domains."""
    difference: float | None
    """The largest of its distances from PyTorch's."""
    equal: float | None
    """Share of evaluation images with the same answer as PyTorch's."""


@dataclass(frozen=True)
class Takehome:
    """The student that a run hands out."""

    method: str
    seed: int
    lines: tuple[Line, ...]
    """The teacher's image tower, the student in PyTorch, and the files, smallest last."""


FORMS = (
    ("teacher's image tower", "teacher", None),
    ("student in PyTorch", "torch", None),
    ("student, model.onnx (float32)", "onnx", "model.onnx"),
    ("student, model.int8.onnx", "int8", "model.int8.onnx"),
)


def read_takehome(storage: Storage) -> Takehome | None:
    """The student handed out by the run under `storage`; None if there is none.

    Raises:
        CorruptionError: takehome.json is not what was written.
    """
    if not storage.exists(KEY):
        return None
    try:
        card = _Card.model_validate_json(storage.get(KEY))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise CorruptionError(
            f"{storage.location(KEY)}: {place}: {first['msg']}; run jobs/pipeline.py again, "
            "which measures it anew"
        ) from None
    lines = tuple(_line(card, *form) for form in FORMS)
    return Takehome(card.student.method, card.student.seed, lines)


def _line(card: _Card, name: str, form: str, file: str | None) -> Line:
    size = {"teacher": card.teacher.bytes, "torch": 4 * card.student.parameters}.get(form)
    if file and file in card.files:
        size = card.files[file].bytes
    scored = card.evaluation.accuracy.get(form)
    checked = card.check.get(file) if file else None
    measured = checked if isinstance(checked, _Difference) else None
    return Line(
        name,
        size,
        card.latency.ms.get(form),
        scored.mean if scored else None,
        measured.max_difference if measured else None,
        measured.equal_predictions if measured else None,
    )
