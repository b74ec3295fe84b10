"""Parquet files from untrusted sources: read into memory within fixed limits."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfkd.errors import CorruptionError, one_line

MAX_BYTES = 1 << 31
"""Maximal size of a table in memory. A file of kilobytes can hold billions of equal rows."""
MAX_VALUES = 1 << 28
"""Maximal number of values of a column in a row group; one row of lists can hold billions."""
MAX_WIDTH = 64
"""Maximal number of bytes of a value of fixed size, such as a hash."""
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
) -> pa.Table:
    """The table in `data`, or some of its row groups.

    Args:
        data: a Parquet file, as bytes or as a seekable stream. Only the selected row groups of a
            stream are read.
        needed: columns that must exist.
        where, remedy: the object's location, and how to fix a damaged one, for messages.
        select_groups: the indices of the row groups to read; by default all.

    Raises:
        CorruptionError: not Parquet, a column is missing or repeated, or the table is too large.
    """
    try:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        metadata = pq.read_metadata(source)
        schema = metadata.schema.to_arrow_schema()
        _require_columns(schema.names, needed)
        groups = list(select_groups(metadata))
        batches = _bounded(read_batches(source, metadata, groups, schema.names))
        return pa.Table.from_batches(list(batches), schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        # Arrow's errors about the content have no errno; one of the disk says nothing about it.
        if isinstance(error, OSError) and error.errno:
            raise
        told = f"{where}: no readable Parquet ({one_line(error)}); {remedy}"
        raise CorruptionError(told) from None


def _require_columns(names: Sequence[str], needed: Sequence[str]) -> None:
    """Raise `ValueError` if a needed column is missing, or any is there twice."""
    for name in needed:
        if name not in names:
            raise ValueError(f"no column {name}")
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"column {name} is there twice")


def _bounded(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches; raises `ValueError` once they exceed `MAX_BYTES` together."""
    size = 0
    for batch in batches:
        size += batch.nbytes
        if size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes of values")
        yield batch


def read_batches(
    source: BinaryIO | Path,
    metadata: pq.FileMetaData,
    groups: Sequence[int],
    columns: Sequence[str],
    rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of some row groups in batches of at most `rows` rows.

    Raises:
        ValueError: a batch would have more than `MAX_BYTES`.
    """
    # Two checks: the metadata bound the number of values, and the sum of lengths bounds texts.
    _refuse_huge(metadata, groups)
    schema = metadata.schema.to_arrow_schema()
    for name in columns:
        _require_bounded(name, schema.field(name).type)
    texts = [name for name in columns if pa.types.is_string(schema.field(name).type)]
    with pq.ParquetFile(source, metadata=metadata, pre_buffer=True, read_dictionary=texts) as file:
        for batch in file.iter_batches(rows, row_groups=groups, columns=columns):
            if sum(map(_decoded_bytes, batch.columns)) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes of values")
            fields = [schema.field(name) for name in batch.schema.names]
            decoded = [_decoded(each) for each in batch.columns]
            yield pa.RecordBatch.from_arrays(decoded, schema=pa.schema(fields))


def _require_bounded(name: str, kind: pa.DataType) -> None:
    """Raise `ValueError` unless the number of a column's values bounds their bytes, or it is one of
    texts: of other kinds a row of bytes in the file may be gigabytes.
    """
    value = kind.value_type if pa.types.is_list(kind) else kind
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    numeric = pa.types.is_integer(value) or pa.types.is_floating(value)
    digest = pa.types.is_fixed_size_binary(kind) and kind.byte_width <= MAX_WIDTH
    if not (numeric or digest or pa.types.is_boolean(kind) or pa.types.is_string(text)):
        raise ValueError(f"column {name} is of {kind}")


def _decoded(values: pa.Array) -> pa.Array:
    """An array without its dictionary."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _decoded_bytes(values: pa.Array) -> int:
    """The bytes of an array without its dictionary, in which a long text stands only once."""
    if not pa.types.is_dictionary(values.type):
        return int(values.nbytes)
    lengths = pc.binary_length(values.dictionary).cast(pa.int64()).take(values.indices)
    return int(pc.sum(lengths).as_py() or 0)


def _refuse_huge(metadata: pq.FileMetaData, groups: Iterable[int]) -> None:
    """Raise `ValueError` if a row group says that a column has too many values."""
    for group in map(metadata.row_group, groups):
        for index in range(group.num_columns):
            if group.column(index).num_values > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES} values in a column")
