"""Types and rules for the fields of a manifest; pydantic checks the types."""

from collections import Counter
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from dfkd.errors import ManifestError

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]


def _printable(text: str) -> str:
    """The text; raises `ValueError` if it has characters that no page and no terminal shows."""
    if not text.isprintable():
        raise ValueError("must be printable")
    return text


Printable = Annotated[str, AfterValidator(_printable)]
Size = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number of bytes, within a signed integer of 64 bits."""
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""A seed of 32 bits, which every file of results can store."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Int32 = Annotated[int, Field(gt=-(1 << 31), lt=1 << 31)]
Int64 = Annotated[int, Field(gt=-(1 << 63), lt=1 << 63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

Precision = Literal["float32", "bfloat16"]
"""Precision of a network's products. `float32` never means TF32, see
`dfkd.utils.device.pick_device`."""

CHECKED = ConfigDict(extra="forbid", strict=True)
"""For sections of the manifest: unknown keys are refused, and no value is converted."""


def _several(value: object) -> object:
    """A tuple of one from a single value; lists become tuples, which are hashable."""
    if isinstance(value, str | int | float):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Several = Annotated[tuple[T, ...], BeforeValidator(_several)]
"""A list, or a single string or number that stands for a list of one."""


def require_unique(field: str, values: tuple[object, ...]) -> None:
    """Raise `ManifestError` if a value occurs twice."""
    for value, times in Counter(values).items():
        if times > 1:
            raise ManifestError(field, "must have every entry once", value, "remove the repetition")


def require_folder(field: str, path: str) -> None:
    """Raise `ManifestError` if `path` is a URL instead of a folder of this machine."""
    if ":/" in path:
        raise ManifestError(field, "must be a folder of this machine", path, "name one")


def require_slots(field: str, template: str, *slots: str) -> None:
    """Raise `ManifestError` unless `template` contains each of `slots` exactly once, and no other
    braces, which would be read as a part of every prompt.
    """
    rest = template
    for slot in slots:
        if template.count(slot) != 1:
            raise ManifestError(
                field, f"must contain {slot} exactly once", template, "fix the template"
            )
        rest = rest.replace(slot, "")
    if set("{}") & set(rest):
        rule = f"must have no braces except {' and '.join(slots)}"
        raise ManifestError(field, rule, template, "fix the template")
