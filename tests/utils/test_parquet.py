"""Reading a part of a Parquet file, and refusing a hostile one."""

import errno
import io
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfkd.errors import CorruptionError
from dfkd.utils import parquet

TABLE = pa.table({"text": ["a", "b", "c"], "index": [0, 1, 2], "other": [0.5, None, 1.5]})


def encoded(table: pa.Table = TABLE) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=max(1, table.num_rows // 3), compression="zstd")
    return stream.getvalue()


def test_a_table_is_read_as_it_was_written() -> None:
    assert parquet.read(encoded(), ("index",), "here", "fix it") == TABLE
    assert parquet.read(io.BytesIO(encoded()), (), "here", "fix it") == TABLE


def test_only_the_chosen_groups_are_read() -> None:
    found = parquet.read(encoded(), ("other",), "here", "fix it", lambda file: [0, 2])
    assert found == TABLE.take([0, 2])


def refused(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptionError, match=f"here: no readable Parquet .*{reason}.*; fix it"):
        parquet.read(data, ("index",), "here", "fix it")


def test_a_repeated_or_missing_column_is_refused() -> None:
    twice = pa.Table.from_arrays([TABLE["index"]] * 2, names=["index", "index"])
    refused(encoded(twice), "column index is there twice")
    refused(encoded(TABLE.select(["text"])), "no column index")


@pytest.mark.parametrize("place", [5, 10, 40, -1, -6, -100])
def test_a_damaged_file_is_refused(place: int) -> None:
    data = bytearray(encoded())
    data[place] ^= 0xFF
    refused(bytes(data), "")


def test_a_batch_has_no_more_rows_than_asked_for() -> None:
    metadata = pq.read_metadata(io.BytesIO(encoded()))
    stream = io.BytesIO(encoded())
    batches = list(parquet.read_batches(stream, metadata, [0, 1, 2], ["text"], 2))
    assert all(batch.num_rows <= 2 for batch in batches)
    assert pa.Table.from_batches(batches) == TABLE.select(["text"])


def test_a_disk_that_fails_is_no_damage() -> None:
    """The remedy of damage is to delete the object, which would lose a good one."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale file handle"):
        parquet.read(Failing(encoded()), (), "here", "delete it")


def repeated(text: str, rows: int) -> pa.DictionaryArray:
    """A column of equal texts, which a file holds once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"x"], pa.binary()),
        pa.array([b"x" * 65], pa.binary(65)),
        pa.array(["x"], pa.large_string()),
        pa.array([["x"]], pa.list_(pa.string())),
        pa.array([{"a": 1}]),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_whose_values_may_be_of_any_size_are_refused(column: pa.Array) -> None:
    data = encoded(pa.table({"index": [0], "text": ["x"], "odd": column}))
    refused(data, "column odd is of")


def test_a_file_that_decompresses_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kilobytes that hold 64 MB; the limit, which is 2 GB, is made smaller for the test."""
    monkeypatch.setattr(parquet, "MAX_BYTES", 1 << 24)
    many = repeated("x" * 32_000, 2000).cast(pa.string())
    data = encoded(pa.table({"index": np.zeros(2000, np.int64), "text": many}))
    assert len(data) < 100_000
    refused(data, f"more than {1 << 24} bytes")
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "MAX_VALUES", 100)
        refused(data, "more than 100 values")
    # One text that stands once in the file and in each row is refused before it is repeated.
    data = encoded(pa.table({"index": [0] * 500, "text": repeated("x" * (1 << 20), 500)}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(data, f"more than {1 << 24} bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kilobytes
