"""Reading a part of a Parquet file; test_security has hostile files."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfkd.errors import CorruptionError
from dfkd.utils import parquet

TABLE = pa.table({"text": ["a", "b", "c"], "index": [0, 1, 2], "other": [0.5, None, 1.5]})


def encoded() -> bytes:
    stream = io.BytesIO()
    pq.write_table(TABLE, stream, row_group_size=1)
    return stream.getvalue()


def test_a_table_is_read_as_it_was_written() -> None:
    assert parquet.read(encoded(), ("index",), "here", "fix it") == TABLE
    assert parquet.read(io.BytesIO(encoded()), (), "here", "fix it") == TABLE


def test_only_the_chosen_groups_and_columns_are_read_in_the_order_of_the_file() -> None:
    found = parquet.read(
        encoded(), ("other",), "here", "fix it", lambda file: [0, 2], ("index", "text")
    )
    assert found.to_pydict() == {"text": ["a", "c"], "index": [0, 2]}
    assert found.column_names == ["text", "index"]


def test_a_repeated_column_is_refused() -> None:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([TABLE["index"]] * 2, names=["index", "index"]), stream)
    with pytest.raises(
        CorruptionError, match=r"here: no readable Parquet \(column index is .*twice"
    ):
        parquet.read(stream.getvalue(), ("index",), "here", "fix it")


def test_a_batch_has_no_more_rows_than_asked_for() -> None:
    metadata = pq.read_metadata(io.BytesIO(encoded()))
    stream = io.BytesIO(encoded())
    batches = list(parquet.read_batches(stream, metadata, [0, 1, 2], ["text"], 2))
    assert all(batch.num_rows <= 2 for batch in batches)
    assert pa.Table.from_batches(batches) == TABLE.select(["text"])
