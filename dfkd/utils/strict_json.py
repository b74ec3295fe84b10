"""Strict UTF-8 JSON: unique keys, finite numbers, short integers, bounded nesting.

Python's own reader accepts NaN, and keeps the last of two equal keys. Another program may then read
a different value from the same file.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # an exported model is used where there is no pydantic
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

NESTING = 100
"""Levels of objects and lists that a value may have."""
MAX_DIGITS = 20
"""Characters of the longest integer of 64 bits. A larger one overflows where it becomes a float."""


def parse(data: bytes | str) -> Any:
    """The value that `data` encodes.

    Raises:
        ValueError: not JSON, or JSON that `json.dumps(..., allow_nan=False)` never writes.
    """
    try:
        tree = _DECODER.decode(data if isinstance(data, str) else data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # How deep Python's own reader goes depends on its version, and writers may go less deep.
    level = [tree]
    for _ in range(NESTING):
        containers = [value for value in level if isinstance(value, dict | list)]
        if not containers:
            return tree
        level = [
            inner
            for outer in containers
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    raise ValueError("nested too deeply")


def read_as(adapter: "TypeAdapter[T]", data: bytes) -> T:
    """The value that `data` encodes, checked and converted by a type of pydantic.

    Raises:
        ValueError: not strict JSON; or the first field that is wrong, as "field: rule".
    """
    from pydantic import ValidationError

    try:
        parse(data)  # pydantic would take the last of two equal keys
        return adapter.validate_json(data, strict=True)
    except ValidationError as error:
        raise ValueError("{}: {}".format(*first_problem(error))) from None
    except ValueError as error:
        raise ValueError(f"not strict JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its pairs; raises `ValueError` if a key is repeated."""
    # A dict drops repeated keys, so a difference in length reveals them.
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise ValueError("a key is there twice")
    return tree


def _finite(text: str) -> float:
    """A float from its digits, which may overflow, or from a word such as NaN."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _short(text: str) -> int:
    """An integer from its digits."""
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}... has more than 64 bits")
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_short, parse_float=_finite, parse_constant=_finite
)
"""Created once, because creating it takes as long as reading a small object."""


def canonical(tree: Any) -> bytes:
    """`tree` as UTF-8 JSON with sorted keys and one trailing newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return (
        json.dumps(tree, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


def indented(tree: Any) -> bytes:
    """`tree` as UTF-8 JSON with sorted keys, for people: indented by two spaces, and with every
    list of integers on one line.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return (_indented(tree, "\n") + "\n").encode()


def _indented(value: Any, line_break: str) -> str:
    """A value as JSON; `line_break` is a newline and the spaces before the value's last line."""
    inner = line_break + "  "
    brackets, parts = "", list[str]()
    if isinstance(value, Mapping):
        brackets = "{}"
        parts = [f"{_compact(key)}: {_indented(value[key], inner)}" for key in sorted(value)]
    # Lists of integers are encoded at once, because 1,000 classes have a million counts.
    elif isinstance(value, list | tuple) and not all(type(each) is int for each in value):
        brackets, parts = "[]", [_indented(each, inner) for each in value]
    if not parts:
        return _compact(value)
    return brackets[0] + inner + f",{inner}".join(parts) + line_break + brackets[1]


def _compact(value: Any) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def first_problem(error: "ValidationError") -> tuple[str, str, object]:
    """The field, the rule that it breaks and the value of the first problem of a file."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "the whole"
    return field, rule_of(first["msg"]), first["input"]


def rule_of(message: str) -> str:
    """The rule in a message of pydantic, in the words of this project's errors."""
    bare = message.removeprefix("Input ").removeprefix("Value error, ")
    return bare.replace("should", "must", 1)


def numbers(tree: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in plain values with its key, and the length of each list."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from numbers(value, name)
    elif isinstance(tree, list):
        yield f"{key} (length)", len(tree)
        for value in tree:
            yield from numbers(value, key)
    elif isinstance(tree, int | float):
        yield key, tree
