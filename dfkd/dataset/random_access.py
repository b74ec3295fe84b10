"""The samples of a published version one by one, without reading the shards around them.

Whoever publishes a version verifies its shards and writes into the index where each sample lies and
what its bytes hash to; the manifest holds the hash of the index. So a few bytes of a shard are as
well verified as the whole.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dfkd.dataset.publication import INDEX_KEY, INDEX_SCHEMA
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.sampling_order import Indices
from dfkd.dataset.shards import Example, parse_example
from dfkd.errors import CorruptionError

INDEX_COLUMNS = pa.schema(
    [INDEX_SCHEMA.field(name) for name in ("shard", "class_index", "start", "sha256")]
)


class Examples:
    """What a student learns from, by number: samples are numbered in the order of shards.

    Holds some 60 bytes of each sample.
    """

    def __init__(self, version: PublishedVersion) -> None:
        """Read the index.

        Raises:
            CorruptionError: it is not what was published, or does not fit the version's receipts.
        """
        self.version = version
        self.shards = tuple(receipt for receipt in version.shards if receipt.samples)
        self.begins = np.cumsum([0, *(receipt.samples for receipt in self.shards)])
        table = pa.Table.from_batches(version.index(INDEX_COLUMNS.names), INDEX_COLUMNS)
        self.labels: Indices = table["class_index"].to_numpy().astype(np.int64)
        """Class indices."""
        self._digests = table["sha256"].combine_chunks()
        self._starts: Indices = table["start"].to_numpy()
        self._stops = np.roll(self._starts, -1)
        names = pa.array([receipt.shard for receipt in self.shards], pa.string())
        self._check(pc.index_in(table["shard"], value_set=names).to_numpy())

    def _check(self, shards: Indices) -> None:
        """`shards`: which one each row of the index is about."""
        expected = np.repeat(np.arange(len(self.shards)), np.diff(self.begins))
        whole = np.array_equal(shards, expected)
        if whole:
            self._stops[self.begins[1:] - 1] = [receipt.bytes for receipt in self.shards]
            first = self._starts[self.begins[:-1]]
            whole = not first.any() and bool((self._starts < self._stops).all())
        if not whole:
            raise self._unusable("does not fit the receipts in manifest.json")
        classes = len(self.version.classes)
        if ((self.labels < 0) | (self.labels >= classes)).any():
            raise self._unusable(f"each class_index must be one of {classes} classes")

    def _unusable(self, problem: str) -> CorruptionError:
        return CorruptionError(
            f"{self.version.storage.location(INDEX_KEY)}: {problem}; "
            "delete the version and synthesise again"
        )

    def __len__(self) -> int:
        """Of all shards."""
        return len(self.labels)

    def read(self, samples: Indices) -> list[Example]:
        """Some samples of one shard, in rising order: one request, for all from the first to the
        last.

        Raises:
            CorruptionError: one of them is not what was published.
        """
        receipt = self.shards[int(np.searchsorted(self.begins, samples[0], "right")) - 1]
        base = int(self._starts[samples[0]])
        data = self.version.home.get_range(receipt.key, base, int(self._stops[samples[-1]]))
        places = (self._starts[samples] - base).tolist(), (self._stops[samples] - base).tolist()
        return [
            parse_example(data[start:stop], digest.as_py(), receipt.shard)
            for start, stop, digest in zip(*places, self._digests.take(samples), strict=True)
        ]
