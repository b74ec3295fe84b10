"""Strategies for what a stranger's file may hold: other trees, damaged bytes."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ = settings(max_examples=100, deadline=None, derandomize=True)
STORED = settings(FUZZ, max_examples=30, suppress_health_check=list(HealthCheck))
"""For tests in which each example writes files."""

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**400, 10**400 + 9)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "../x", "/etc/passwd", "a\0b", "\ud800", "s3://", "0" * 64, "miniature"])
)
TREES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a tree, its own (empty) one included."""
    yield place
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from places(value, (*place, key))


def changed(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of `tree` with `value` at `place`; `...` as the value removes what is there."""
    if not place:
        return {} if value is ... else value
    key, *rest = place
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if not rest and value is ...:
        del copy[key]
    else:
        copy[key] = changed(tree[key], tuple(rest), value)
    return copy


def mutations(tree: Any) -> st.SearchStrategy[Any]:
    """`tree` with one to three of its values replaced or removed."""

    @st.composite
    def mutate(draw: st.DrawFn) -> Any:
        mutant = tree
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.sampled_from(list(places(mutant))))
            mutant = changed(mutant, place, draw(TREES | st.just(...)))
        return mutant

    return mutate()


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` cut, or with some bytes replaced, or with other bytes put in between."""

    @st.composite
    def damage(draw: st.DrawFn) -> bytes:
        copy = bytearray(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)
        for _ in range(draw(st.integers(0, 4))):
            place = draw(st.integers(0, len(copy)))
            copy[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=6))
        return bytes(copy)

    return damage()


def json_bytes(trees: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return trees.map(lambda tree: json.dumps(tree).encode())


def other_content(before: bytes) -> st.SearchStrategy[bytes]:
    """Anything but the JSON object that was written."""
    other = damaged(before) | json_bytes(mutations(json.loads(before))) | st.binary(max_size=50)
    return other.filter(lambda content: content != before)


@contextlib.contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """The file with other bytes, for a while."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)
