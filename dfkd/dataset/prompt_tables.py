"""Parts of prompts as Parquet: each class in row groups of its own, so that a task reads no others.

With 1,000 classes a part of contrastive prompts is more than half a gigabyte, and each of its 1,000
tasks needs a thousandth of it.
"""

import bisect
import io
from dataclasses import dataclass, field
from itertools import pairwise
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfkd.errors import CorruptionError
from dfkd.storage.local import Storage
from dfkd.utils import parquet

CLASS = "class_index"
"""The column that says whose row it is."""

REQUIRED_COLUMNS = (CLASS, "index")
REMEDY = "delete it, run again"


def encode(table: pa.Table) -> bytes:
    """A part's table as Parquet, a row group for each run of rows of one class."""
    buffer = io.BytesIO()
    labels = table[CLASS].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), table.num_rows]
    # Statistics of every column of every group would be longer than a class's rows.
    options = {"compression": "zstd", "write_statistics": [CLASS]}
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        for start, stop in pairwise(edges):
            writer.write_table(table.slice(start, stop - start))
    return buffer.getvalue()


def read(storage: Storage, key: str) -> pa.Table:
    """All rows of a part.

    Raises:
        CorruptionError: it is no Parquet, or was never written (`MissingObject`).
    """
    return parquet.read(storage.get(key), REQUIRED_COLUMNS, storage.location(key), REMEDY)


def read_class(storage: Storage, key: str, class_index: int) -> pa.Table:
    """The rows of one class, in the order of `index`, without reading most others'.

    Of a part in the order of `class_index`. Raises as `read` does.
    """

    def wanted(metadata: pq.FileMetaData) -> list[int]:
        return _groups(metadata, class_index)

    source = cast(BinaryIO, _Ranged(storage, key, storage.size(key)))
    where = storage.location(key)
    table = parquet.read(source, REQUIRED_COLUMNS, where, REMEDY, wanted)
    try:
        return table.filter(pc.equal(table[CLASS], class_index)).sort_by("index")
    except pa.ArrowException as error:
        raise CorruptionError(f"{where}: {error}; {REMEDY}") from None


def _groups(metadata: pq.FileMetaData, class_index: int) -> list[int]:
    """The row groups that may hold a class."""
    column = metadata.schema.names.index(CLASS)
    numbers = range(metadata.num_row_groups)

    def bounds(number: int) -> tuple[int, int] | None:
        known = metadata.row_group(number).column(column).statistics
        if known is None or not known.has_min_max or not isinstance(known.min, int):
            return None
        return known.min, known.max

    if any(bounds(number) is None for number in (*numbers[:1], *numbers[-1:])):
        return list(numbers)
    first = bisect.bisect_left(
        numbers, class_index, key=lambda number: (bounds(number) or (0, 0))[1]
    )
    last = bisect.bisect_right(
        numbers, class_index, key=lambda number: (bounds(number) or (0, 0))[0]
    )
    return list(numbers[first:last])


@dataclass
class _Ranged(io.RawIOBase):
    """An object as a seekable file; each read is one request."""

    storage: Storage
    key: str
    length: int
    position: int = field(default=0, init=False)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}
        self.position = origins[whence] + offset
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        stop = self.length if size is None or size < 0 else self.position + size
        data = self.storage.get_range(self.key, self.position, min(stop, self.length))
        self.position += len(data)
        return data
