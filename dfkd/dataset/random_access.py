"""Read single samples of a published version without the rest of their shards.

The index has the location and the sha256 of each sample, and the version's facts name the
sha256 of the index. So a single sample is verified as strictly as a whole shard.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dfkd.dataset.published import Block, PublishedVersion
from dfkd.dataset.receipts import Receipt
from dfkd.dataset.sampling_order import Indices
from dfkd.dataset.shards import ARRAY_FILES, NPY_HEADER_BYTES, refuse
from dfkd.dataset.tar import member_slices
from dfkd.storage.base import MissingObject

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


@dataclass(frozen=True)
class BlockRows:
    """Where the samples of a block lie: about 60 bytes of memory for each."""

    receipts: list[Receipt]
    """Of the shards that hold a sample."""
    bounds: Indices
    """Position of each shard's first sample in the block, and the end of the last one."""
    labels: Indices
    """Class index of each sample."""
    starts: Indices
    stops: Indices
    """The range of each sample's bytes in its shard."""
    digests: pa.FixedSizeBinaryArray
    """The sha256 of these bytes."""


class Examples:
    """The training examples of a version by number: samples are counted block by block, in the
    order of class and shard. Safe for threads.

    Attributes:
        bounds: number of the first sample of each block, and the number of all, int64 [B + 1].
    """

    def __init__(self, version: PublishedVersion, kept_blocks: int = 2) -> None:
        """Read nothing yet; `kept_blocks` blocks of the index at most stay in memory."""
        self.version = version
        self.bounds: Indices = np.cumsum([0, *(block.samples for block in version.blocks)])
        self._kept = kept_blocks
        self._blocks: OrderedDict[int, BlockRows] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of samples in all blocks."""
        return int(self.bounds[-1])

    def rows(self, block: int) -> BlockRows:
        """What is known of a block's samples, which are read at first use.

        Raises:
            CorruptionError: it is not what was published.
        """
        with self._lock:
            if block not in self._blocks:
                while len(self._blocks) >= self._kept:
                    self._blocks.popitem(last=False)
                self._blocks[block] = self._read_block(self.version.blocks[block])
            self._blocks.move_to_end(block)
            return self._blocks[block]

    def _read_block(self, block: Block) -> BlockRows:
        """What the receipts and the index of a block say of its samples."""
        receipts = [each for each in self.version.block_receipts(block) if each.samples]
        table = self.version.block_index(block, ["class_index", "start", "sha256"])
        counts = [receipt.samples for receipt in receipts]
        bounds: Indices = np.cumsum([0, *counts])
        starts = table["start"].to_numpy()
        # A sample ends where the next one starts; the last one ends with its shard.
        stops = np.roll(starts, -1)
        stops[bounds[1:] - 1] = [receipt.bytes for receipt in receipts]
        labels = table["class_index"].to_numpy().astype(np.int64)
        digests = table["sha256"].combine_chunks()
        return BlockRows(receipts, bounds, labels, starts, stops, digests)

    def read(self, samples: Indices) -> list[bytearray]:
        """The bytes of samples of one shard, verified; one request spans the first to the last.

        Threads may read: nearly all of the time is spent in storage and in sha256, both of which
        let other threads run. Parsing does not, so it is not done here.

        Args:
            samples: sample numbers in ascending order, all of the same shard.

        Raises:
            CorruptionError: a sample is not what was published.
        """
        block = int(np.searchsorted(self.bounds, samples[0], "right")) - 1
        rows, places = self.rows(block), samples - self.bounds[block]
        shard = int(np.searchsorted(rows.bounds, places[0], "right")) - 1
        receipt = rows.receipts[shard]
        base = int(rows.starts[places[0]])
        try:
            data = self.version.home.get_range(receipt.key, base, int(rows.stops[places[-1]]))
        except MissingObject:
            refuse(receipt.key, "missing")
        starts = (rows.starts[places] - base).tolist()
        stops = (rows.stops[places] - base).tolist()
        digests = rows.digests.take(places).to_pylist()
        contents = []
        for start, stop, expected in zip(starts, stops, digests, strict=True):
            content = bytearray(memoryview(data)[start:stop])
            if (digest := hashlib.sha256(content).digest()) != expected:
                sums = f"sha256 {digest.hex()[:12]}.., the index says {expected.hex()[:12]}.."
                refuse(receipt.key, f"a sample of {len(content)} bytes with {sums}")
            contents.append(content)
        return contents

    def labels(self, samples: Indices) -> Indices:
        """The class indices of any samples, int64 [B]."""
        blocks = np.searchsorted(self.bounds, samples, "right") - 1
        labels = np.empty(len(samples), np.int64)
        for block in np.unique(blocks):
            mine = blocks == block
            labels[mine] = self.rows(int(block)).labels[samples[mine] - self.bounds[block]]
        return labels


def parse(data: bytearray) -> Example:
    """The training example in the bytes of a sample, from `Examples.read`.

    The worker checked the content of the bytes before it wrote their hash, so nothing is checked
    again.
    """
    view = memoryview(data)
    files, key = {}, b""
    for member, span in member_slices(data):
        key, _, suffix = member.partition(b".")
        files[suffix] = view[span]
    extension = b"png" if b"png" in files else b"jpg"
    arrays = (files[name][NPY_HEADER_BYTES:] for name in _ARRAYS)
    return Example(key.decode(), files[extension], extension.decode(), *arrays)
