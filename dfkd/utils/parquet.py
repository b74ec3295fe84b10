"""Parquet files from untrusted sources: read into memory within fixed limits."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dfkd.errors import CorruptionError, one_line

MAX_BYTES = 1 << 31
"""Maximal size of a table in memory. A file of kilobytes can hold billions of equal rows."""
MAX_VALUES = 1 << 28
"""Maximal number of values of a column in a row group; one row of lists can hold billions."""
BATCH_ROWS = 512
"""Rows that are decoded before their size is checked."""


def read(
    data: bytes | BinaryIO,
    needed: Sequence[str],
    where: str,
    remedy: str,
    select_groups: Callable[[pq.FileMetaData], Iterable[int]] = lambda file: range(
        file.num_row_groups
    ),
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The table in `data`, or some of its row groups and columns.

    Args:
        data: a Parquet file, as bytes or as a seekable stream. Only the selected row groups of a
            stream are read.
        needed: columns that must exist.
        where: the object's location, for messages.
        remedy: how to fix a damaged object, for messages.
        select_groups: the indices of the row groups to read; by default all.
        columns: the columns to read, in the file's order; None for all.

    Raises:
        CorruptionError: not Parquet, a column is missing, or the table is too large.
    """
    try:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        with pq.ParquetFile(source, pre_buffer=True) as file:
            schema = file.schema_arrow
            if missing := [name for name in needed if name not in schema.names]:
                raise ValueError(f"no column {missing[0]}")
            groups = list(select_groups(file.metadata))
            # Two checks: the metadata bound a single batch, the running sum bounds the table.
            _refuse_huge(file.metadata, groups)
            names = [name for name in schema.names if columns is None or name in columns]
            kept = pa.schema([schema.field(name) for name in names])
            return pa.Table.from_batches(list(_bounded(file, groups, names)), kept)
    except (pa.ArrowException, OSError, ValueError) as error:
        # Arrow's errors about the content have no errno; one of the disk says nothing about it.
        if isinstance(error, OSError) and error.errno:
            raise
        raise CorruptionError(
            f"{where}: no readable Parquet ({one_line(error)}); {remedy}"
        ) from None


def _refuse_huge(metadata: pq.FileMetaData, groups: Iterable[int]) -> None:
    """Raise `ValueError` if a row group says that a column has too many values."""
    for group in map(metadata.row_group, groups):
        for index in range(group.num_columns):
            if group.column(index).num_values > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES} values in a column")


def _bounded(
    file: pq.ParquetFile, groups: list[int], columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """Yield batches of some columns; raises `ValueError` once they exceed `MAX_BYTES`."""
    size = 0
    for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns):
        size += batch.nbytes
        if size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes of values")
        yield batch
