"""Prompt tables as Parquet: each class has its own row groups, so a task reads only its class.

With 1,000 classes a part of contrastive prompts is larger than half a gigabyte, and each of its
1,000 tasks needs a thousandth of it.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfkd.errors import CorruptionError, one_line
from dfkd.storage.base import Storage

CLASS = "class_index"
"""The column that holds the class of a row."""


def encode(table: pa.Table) -> bytes:
    """The table of a part as Parquet bytes, one row group for each run of rows of one class."""
    buffer = io.BytesIO()
    labels = table[CLASS].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), table.num_rows]
    # Statistics of all columns of every group would take more bytes than the rows of a class.
    options = {"compression": "zstd", "write_statistics": [CLASS]}
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        for start, stop in pairwise(edges):
            writer.write_table(table.slice(start, stop - start))
    return buffer.getvalue()


def read(storage: Storage, key: str) -> pa.Table:
    """All rows of a part.

    Raises:
        CorruptionError: it is not Parquet, or was never written (`MissingObject`).
    """
    data = storage.get(key)
    with _readable(storage.location(key)):
        return pq.read_table(pa.BufferReader(data))


def read_class(storage: Storage, key: str, class_index: int) -> pa.Table:
    """The rows of one class, ordered by `index`, without reading most rows of other classes.

    The part must be ordered by `class_index`. Raises as `read` does.
    """
    source = cast(BinaryIO, _RangeReader(storage, key, storage.size(key)))
    with _readable(storage.location(key)), pq.ParquetFile(source, pre_buffer=True) as file:
        column = file.metadata.schema.names.index(CLASS)
        groups = []
        for number in range(file.num_row_groups):
            known = file.metadata.row_group(number).column(column).statistics
            # A file from another writer may lack statistics; then the group is read and filtered.
            told = known is not None and known.has_min_max and isinstance(known.min, int)
            if not told or known.min <= class_index <= known.max:
                groups.append(number)
        table = file.read_row_groups(groups)
        return table.filter(pc.equal(table[CLASS], class_index)).sort_by("index")


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn Arrow's errors about the content of a part, in the block, into `CorruptionError`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Arrow's errors about the content have no errno; one of the disk says nothing about it.
        if isinstance(error, OSError) and error.errno:
            raise
        told = f"{where}: no readable Parquet ({one_line(error)}); delete it, run again"
        raise CorruptionError(told) from None


@dataclass
class _RangeReader(io.RawIOBase):
    """A stored object as a seekable file; each read is one range request.

    Methods are those of `io.RawIOBase` that pyarrow calls.
    """

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
