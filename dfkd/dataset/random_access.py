"""Read single samples of a published version without the rest of their shards.

Publishing verifies all shards and writes the location and the sha256 of each sample into the index;
the manifest holds the sha256 of the index. So a single sample is verified as strictly as a whole
shard.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dfkd.dataset.published import INDEX_SCHEMA, PublishedVersion
from dfkd.dataset.sampling_order import Indices
from dfkd.dataset.shards import ARRAY_FILES, NPY_HEADER_BYTES, Receipt, refuse
from dfkd.dataset.tar import member_slices
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import MissingObject

INDEX_COLUMNS = pa.schema(
    [INDEX_SCHEMA.field(name) for name in ("shard", "class_index", "start", "sha256")]
)


_ARRAYS = tuple(name.encode() for name in ARRAY_FILES)
"""The names of a sample's arrays, without its key."""


@dataclass(frozen=True, slots=True)
class Example:
    """The part of a sample that a student is trained on."""

    key: str
    image: memoryview
    """The image file; its memory is writable, so a tensor can share it."""
    extension: str
    distances: memoryview
    embedding: memoryview
    """The bytes of the teacher's distances float32 [M] and embedding float16 [E]."""


class Examples:
    """The training examples of a version by number; samples are numbered in the order of shards.

    The object takes about 60 bytes of memory for each sample.
    """

    def __init__(self, version: PublishedVersion) -> None:
        """Read the index.

        Raises:
            CorruptionError: it is not what was published, or does not match the receipts.
        """
        self.version = version
        self.shards = tuple(receipt for receipt in version.shards if receipt.samples)
        self._bounds = np.cumsum([0, *(receipt.samples for receipt in self.shards)])
        table = pa.Table.from_batches(version.index(INDEX_COLUMNS.names), INDEX_COLUMNS)
        self.labels: Indices = table["class_index"].to_numpy().astype(np.int64)
        """Class index of each sample, int64 [N]."""
        self._digests = table["sha256"].combine_chunks()
        self._starts: Indices = table["start"].to_numpy()
        self._stops = np.roll(self._starts, -1)
        names = pa.array([receipt.shard for receipt in self.shards], pa.string())
        self._check(pc.index_in(table["shard"], value_set=names).to_numpy())

    def _check(self, shards: Indices) -> None:
        """Check the index against the receipts and complete `_stops`.

        Args:
            shards: the number of the shard in each row of the index.
        """
        # Lengths first, because a stranger's receipts may claim more samples than memory holds.
        consistent = len(shards) == self._bounds[-1] and np.array_equal(
            shards, np.repeat(np.arange(len(self.shards)), np.diff(self._bounds))
        )
        if consistent:
            # A sample ends where the next one starts; the last one ends with its shard.
            self._stops[self._bounds[1:] - 1] = [receipt.bytes for receipt in self.shards]
            first_starts = self._starts[self._bounds[:-1]]
            consistent = not first_starts.any() and bool((self._starts < self._stops).all())
        if not consistent:
            raise self._unusable("does not fit the receipts in manifest.json")
        classes = len(self.version.classes)
        if ((self.labels < 0) | (self.labels >= classes)).any():
            raise self._unusable(f"each class_index must be one of {classes} classes")

    def _unusable(self, problem: str) -> CorruptionError:
        """The error for an index that says something impossible."""
        return CorruptionError(
            f"{self.version.storage.location(layout.INDEX)}: {problem}; "
            "delete the version and synthesise again"
        )

    def __len__(self) -> int:
        """Number of samples in all shards."""
        return len(self.labels)

    def read(self, samples: Indices) -> list[bytearray]:
        """The bytes of samples of one shard, verified; one request spans the first to the last.

        Threads may read: nearly all of the time is spent in storage and in sha256, both of which
        let other threads run. Parsing does not, so it is not done here.

        Args:
            samples: sample numbers in ascending order, all of the same shard.

        Raises:
            CorruptionError: a sample is not what was published.
        """
        receipt = self._receipt(samples[0])
        base = int(self._starts[samples[0]])
        try:
            data = self.version.home.get_range(receipt.key, base, int(self._stops[samples[-1]]))
        except MissingObject:
            refuse(receipt.key, "missing")
        starts = (self._starts[samples] - base).tolist()
        stops = (self._stops[samples] - base).tolist()
        digests = self._digests.take(samples).to_pylist()
        return [
            _verified(memoryview(data)[start:stop], digest, receipt.key)
            for start, stop, digest in zip(starts, stops, digests, strict=True)
        ]

    def parse(self, sample: int, data: bytearray) -> Example:
        """The training example in the bytes of a sample, from `read`.

        Raises:
            CorruptionError: the bytes are not a sample, although they are what was published.
        """
        try:
            return _parse(data)
        except (ValueError, KeyError) as error:
            refuse(self._receipt(sample).key, f"not the members of a sample ({error})")

    def _receipt(self, sample: int) -> Receipt:
        """The receipt of the shard that holds a sample."""
        return self.shards[int(np.searchsorted(self._bounds, sample, "right")) - 1]


def _verified(data: memoryview, sha256: bytes, name: str) -> bytearray:
    """A copy of the bytes of one sample of shard `name`; `CorruptionError` if the hash differs."""
    content = bytearray(data)
    if (digest := hashlib.sha256(content).digest()) != sha256:
        sums = f"sha256 {digest.hex()[:12]}.., the index says {sha256.hex()[:12]}.."
        refuse(name, f"a sample of {len(content)} bytes with {sums}")
    return content


def _parse(data: bytearray) -> Example:
    """Parse the verified bytes of one sample into a training example.

    Publishing checked the content of the bytes before it wrote their hash, so JSON and numbers are
    not checked again.

    Raises:
        ValueError, KeyError: the bytes are not a sample.
    """
    view = memoryview(data)
    files, key = {}, b""
    for member, span in member_slices(data):
        key, _, suffix = member.partition(b".")
        files[suffix] = view[span]
    extension = b"png" if b"png" in files else b"jpg"
    arrays = (files[name][NPY_HEADER_BYTES:] for name in _ARRAYS)
    return Example(key.decode(), files[extension], extension.decode(), *arrays)
