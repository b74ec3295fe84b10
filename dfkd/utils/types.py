"""What the fields of a manifest may hold: types that pydantic checks, and rules over values."""

from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field

from dfkd.errors import ManifestError

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]

Precision = Literal["float32", "bfloat16"]
"""Of the numbers that networks multiply. `float32` is never TF32:
`dfkd.utils.device.forbid_tf32`."""

CHECKED = ConfigDict(extra="forbid", strict=True)


def _several(value: object) -> object:
    if isinstance(value, str | int | float):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Several = Annotated[tuple[T, ...], BeforeValidator(_several)]
"""A list, or a single text or number in place of a list of one."""


def require_unique(field: str, values: tuple[object, ...]) -> None:
    """Refuse (`ManifestError`) a value that is there twice."""
    for value in values:
        if values.count(value) > 1:
            raise ManifestError(field, "every entry once", value, "remove the repetition")


def require_folder(field: str, place: str) -> None:
    """Refuse (`ManifestError`) a URL where only a folder of this machine will do."""
    if ":/" in place:
        raise ManifestError(field, "must be a folder of this machine", place, "name one")


def require_slots(field: str, template: str, *slots: str) -> None:
    """Refuse (`ManifestError`) a template that has not each of `slots` once."""
    for slot in slots:
        if template.count(slot) != 1:
            raise ManifestError(
                field, f"must contain {slot} exactly once", template, "fix the template"
            )


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


Size = Annotated[int, Field(ge=0, lt=1 << 63)]
