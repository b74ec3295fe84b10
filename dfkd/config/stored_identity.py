"""The type of an identity that is read from storage, where a stranger may have written it."""

from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter

_READ: dict[str, TypeAdapter[Any]] = {
    "salt": TypeAdapter(int),
    "prompts.method": TypeAdapter(list[str]),
    "synthesis.source": TypeAdapter(str),
}
"""The types of the keys that are read one by one from a stored identity."""


def _checked(stored: dict[str, Any]) -> dict[str, Any]:
    """The identity; `ValueError` if a key of `_READ` has another type."""
    for key in _READ.keys() & stored:
        _READ[key].validate_python(stored[key], strict=True)
    return stored


StoredIdentity = Annotated[dict[str, Any], AfterValidator(_checked)]
"""An identity that pydantic reads from storage."""
