"""Parquet that another may have written: read whole, as long as it is not too large."""

import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dfkd.errors import CorruptionError

MAX_BYTES = 1 << 31
"""Of a table in memory. A file of kilobytes can hold billions of equal rows."""
MAX_VALUES = 1 << 28
"""Of a column in one row group, which a row of a list column could fill alone."""
ROWS = 512
"""Rows that are read before their size is known."""


def read(data: bytes, needed: Sequence[str], where: str, remedy: str) -> pa.Table:
    """The table in `data`.

    Args:
        data: a Parquet file.
        needed: columns that must be there.
        where: the object, for messages.
        remedy: what to do about a damaged one.

    Raises:
        CorruptionError: no Parquet, a column is missing, or it is too large.
    """
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            missing = [name for name in needed if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"no column {missing[0]}")
            _refuse_huge(file.metadata)
            return pa.Table.from_batches(list(_bounded(file)), file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptionError(
            f"{where}: no readable Parquet ({' '.join(str(error).split())}); {remedy}"
        ) from None


def _refuse_huge(metadata: pq.FileMetaData) -> None:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    for group in groups:
        for index in range(group.num_columns):
            if group.column(index).num_values > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES} values in a column")


def _bounded(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    size = 0
    for batch in file.iter_batches(ROWS):
        size += batch.nbytes
        if size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes of values")
        yield batch
