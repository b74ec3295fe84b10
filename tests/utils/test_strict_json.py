"""JSON that is read as a type, and indented JSON with lists of integers on one line."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dfkd.utils.strict_json import canonical, indented, numbers, read_as

PLAIN = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_json_without_integers_is_indented_as_usual(value: object) -> None:
    usual = json.dumps({"x": value}, indent=2, sort_keys=True, ensure_ascii=False)
    assert indented({"x": value}) == (usual + "\n").encode()


def test_a_list_of_integers_is_one_line_of_json() -> None:
    found = indented({"b": [[1, 20], (3,)], "a": {}, "c": [True], "d": [1, 0.5], "e": "[\n1]"})
    assert found.decode().splitlines() == [
        *("{", '  "a": {},', '  "b": [', "    [1, 20],", "    [3]", "  ],"),
        *('  "c": [', "    true", "  ],", '  "d": [', "    1,", "    0.5", "  ],"),
        *(r'  "e": "[\n1]"', "}"),
    ]


def test_json_of_many_counts_takes_little_more_memory_than_its_text() -> None:
    confusion = [[7] * 200 for _ in range(200)]
    tracemalloc.start()
    text = indented({"confusion": confusion})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * len(text)


@dataclass(frozen=True)
class Entry:
    """What a file of the tests holds."""

    name: str
    sizes: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "^not strict JSON: Expecting value"),
        (b"\xff", "^not strict JSON: "),
        (b'{"name": "a", "name": "b"}', "^not strict JSON: a key is there twice"),
        (b'{"name": "a", "sizes": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        (b"[" * 10**6, "nested too deeply"),
        (b'{"name": NaN}', "^not strict JSON: NaN is no finite number"),
        (b'{"name": 1e999}', "^not strict JSON: 1e999 is no finite number"),
        (b'{"name": 1%s}' % (b"0" * 400), "^not strict JSON: 10+... has more than 64 bits"),
        (b"[]", "^the whole: must be"),
        (b'{"name": 3}', "^name: must be a valid string"),
        (b'{"name": "a", "sizes": ["1"]}', r"^sizes\.0: must be a valid integer"),
    ],
)
def test_a_value_that_is_not_of_its_type_is_refused(data: bytes, reason: str) -> None:
    adapter = TypeAdapter(Entry)
    assert read_as(adapter, b'{"name": "a", "sizes": [1, 2]}') == Entry("a", (1, 2))
    with pytest.raises(ValueError, match=reason):
        read_as(adapter, data)


def test_equal_values_have_the_same_canonical_bytes() -> None:
    assert canonical({"b": 1, "a": "é"}) == canonical({"a": "é", "b": 1})
    assert canonical({"b": [1], "a": "é"}).decode() == '{\n "a": "é",\n "b": [\n  1\n ]\n}\n'


@pytest.mark.parametrize("write", [canonical, indented])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_others_cannot_read_is_not_written(
    write: Callable[[object], bytes], number: float
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write({"a": [0, number]})


def test_numbers_are_found_with_their_keys_and_the_lengths_of_lists() -> None:
    tree = {"a": 3, "b": {"c": [0.5, "x", [7]]}, "d": None}
    assert list(numbers(tree)) == [
        ("a", 3), ("c (length)", 3), ("c", 0.5), ("c (length)", 1), ("c", 7),
    ]  # fmt: skip
