"""JSON that is read as a type, and indented JSON with lists of integers on one line."""

import json
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dfkd.utils.strict_json import indented, read_as

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
        (b'{"name": NaN}', "^not strict JSON: NaN is no finite number"),
        (b"[]", "^the whole: should be"),
        (b'{"name": 3}', "^name: should be a valid string"),
        (b'{"name": "a", "sizes": ["1"]}', r"^sizes\.0: should be a valid integer"),
    ],
)
def test_a_value_that_is_not_of_its_type_is_refused(data: bytes, reason: str) -> None:
    adapter = TypeAdapter(Entry)
    assert read_as(adapter, b'{"name": "a", "sizes": [1, 2]}') == Entry("a", (1, 2))
    with pytest.raises(ValueError, match=reason):
        read_as(adapter, data)
