"""How much of a run's large objects is in memory."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dfkd.dataset import prompt_tables
from dfkd.errors import CorruptionError
from dfkd.report.readers import COLUMNS, MAX_PROMPTS, read_prompts
from dfkd.storage.local import open_storage
from dfkd.utils import parquet

CLASSES, IMAGES, PARTS, WIDTH = 10, 60, 4, 256


def part() -> pa.Table:
    """The prompts of one shard of every class, half of whose bytes no page needs."""
    count = CLASSES * IMAGES
    vectors = np.random.default_rng(0).normal(size=(count, WIDTH)).astype(np.float32)
    columns = {
        "unused": list(vectors),
        "embedding": list(vectors),
        "class_index": np.repeat(np.arange(CLASSES), IMAGES),
    }
    return pa.table(columns)


def test_one_table_of_prompts_is_in_memory_at_a_time(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    for number in range(PARTS):
        storage.put(f"prompts/{number:05}.parquet", prompt_tables.encode(part()))
    allocated, read = [], parquet.read

    def measured(*arguments: Any, **options: Any) -> pa.Table:
        allocated.append(pa.total_allocated_bytes())
        table = read(*arguments, **options)
        assert sorted(table.column_names) == sorted(COLUMNS)
        return table

    monkeypatch.setattr(parquet, "read", measured)
    version: Any = SimpleNamespace(
        storage=storage,
        classes=tuple(map(str, range(CLASSES))),
        manifest={"samples": PARTS * CLASSES * IMAGES},
    )
    prompts = read_prompts(version)
    assert prompts is not None
    assert len(allocated) == PARTS
    assert allocated[-1] - allocated[0] < 4 * WIDTH * MAX_PROMPTS * 1.5
    assert prompts.sampled == MAX_PROMPTS
    assert len(prompts.within) + len(prompts.across) == MAX_PROMPTS * (MAX_PROMPTS - 1) // 2


def damaged(column: str, value: Any) -> pa.Table:
    """`part` with another value in its first row."""
    table = part()
    values = [value, *table[column].to_pylist()[1:]]
    return table.set_column(table.column_names.index(column), column, pa.array(values))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("embedding", [float("nan")] * WIDTH),
        ("embedding", [0.0] * WIDTH),
        ("embedding", [1.0]),
        ("class_index", -1),
        ("class_index", CLASSES),
    ],
)
def test_damaged_prompts_are_refused(tmp_path: Any, column: str, value: Any) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("prompts/00000.parquet", prompt_tables.encode(damaged(column, value)))
    classes = tuple(map(str, range(CLASSES)))
    version: Any = SimpleNamespace(
        storage=storage, classes=classes, manifest={"samples": CLASSES * IMAGES}
    )
    with pytest.raises(CorruptionError, match="no readable prompts"):
        read_prompts(version)
