"""Prompt parts: a class's rows are read alone, and are the same as in the whole."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfkd.dataset import prompt_tables
from dfkd.errors import CorruptionError
from dfkd.storage.base import MissingObject, Request, Storage
from dfkd.storage.local import open_storage

CLASSES, IMAGES = 40, 25


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def part() -> pa.Table:
    rows = [
        {
            "class_index": c,
            "index": i,
            "embedding": [float((c * IMAGES + i) * n) for n in range(64)],
        }
        for c in range(CLASSES)
        for i in range(IMAGES)
    ]
    return pa.Table.from_pylist(rows)


def test_a_class_is_read_as_the_whole_has_it(storage: Storage) -> None:
    table = part()
    storage.put("part", prompt_tables.encode(table))
    assert prompt_tables.read(storage, "part").equals(table)
    for chosen in (0, 17, CLASSES - 1):
        assert prompt_tables.read_class(storage, "part", chosen).equals(
            table.slice(chosen * IMAGES, IMAGES)
        )
    assert prompt_tables.read_class(storage, "part", CLASSES).num_rows == 0


def test_a_class_is_read_without_the_others(storage: Storage) -> None:
    storage.put("part", prompt_tables.encode(part()))
    told: list[Request] = []
    prompt_tables.read_class(storage.observed(told.append), "part", 3)
    read = [request.bytes for request in told]
    footer = read[0]  # at most 64 kB, whatever the size of the part
    assert footer <= 1 << 16
    assert sum(read[1:]) < storage.size("part") / 4


def test_a_part_of_one_row_group_is_read_too(storage: Storage, tmp_path: Path) -> None:
    pq.write_table(part(), tmp_path / "part")
    assert prompt_tables.read_class(storage, "part", 5).equals(part().slice(5 * IMAGES, IMAGES))


def test_a_missing_or_damaged_part_is_refused(storage: Storage) -> None:
    with pytest.raises(MissingObject):
        prompt_tables.read_class(storage, "part", 0)
    for damaged in (b"", b"PAR1 nonsense PAR1", prompt_tables.encode(part())[:-9]):
        storage.put("part", damaged)
        with pytest.raises(CorruptionError, match="no readable Parquet"):
            prompt_tables.read_class(storage, "part", 0)
        with pytest.raises(CorruptionError, match="no readable Parquet"):
            prompt_tables.read(storage, "part")


def test_a_class_costs_as_many_requests_in_a_larger_part(storage: Storage) -> None:
    found = []
    for classes in (4, CLASSES):
        storage.put("part", prompt_tables.encode(part().slice(0, classes * IMAGES)))
        sent: list[Request] = []
        prompt_tables.read_class(storage.observed(sent.append), "part", 2)
        found.append(len(sent))
    assert found[1] <= found[0] + 1 <= 4
