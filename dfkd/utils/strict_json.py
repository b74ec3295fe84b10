"""UTF-8 JSON that another may have written: each key once, finite numbers, bounded nesting.

Python's own reader lets the last of two equal keys win and takes NaN, so that two programs can read
two things from one file.
"""

import json
import math
from typing import Any


def parse(data: bytes | str) -> Any:
    """The value in `data`.

    Raises:
        ValueError: it is no JSON, or JSON that `json.dumps(..., allow_nan=False)` never writes.
    """
    try:
        return _DECODER.decode(data if isinstance(data, str) else data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise ValueError("a key is there twice")
    return tree


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
"""Made once: making it takes as long as reading a small object with it."""


def canonical(tree: Any) -> bytes:
    """`tree` as JSON bytes: sorted keys, UTF-8, one trailing newline; refuses NaN."""
    return (
        json.dumps(tree, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()
