"""Read single samples of a published version without the rest of their shards.

Publishing verifies all shards and writes the location and the sha256 of each sample into the index;
the manifest holds the sha256 of the index. So a single sample is verified as strictly as a whole
shard.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dfkd.dataset.published import INDEX_SCHEMA, PublishedVersion
from dfkd.dataset.sampling_order import Indices
from dfkd.dataset.shards import Example, parse_example
from dfkd.errors import CorruptionError
from dfkd.storage import layout

INDEX_COLUMNS = pa.schema(
    [INDEX_SCHEMA.field(name) for name in ("shard", "class_index", "start", "sha256")]
)


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
        expected = np.repeat(np.arange(len(self.shards)), np.diff(self._bounds))
        consistent = np.array_equal(shards, expected)
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

    def read(self, samples: Indices) -> list[Example]:
        """Read samples of one shard with one request, which spans the first to the last of them.

        Args:
            samples: sample numbers in ascending order, all of the same shard.

        Raises:
            CorruptionError: a sample is not what was published.
        """
        receipt = self.shards[int(np.searchsorted(self._bounds, samples[0], "right")) - 1]
        base = int(self._starts[samples[0]])
        data = self.version.home.get_range(receipt.key, base, int(self._stops[samples[-1]]))
        starts = (self._starts[samples] - base).tolist()
        stops = (self._stops[samples] - base).tolist()
        return [
            parse_example(data[start:stop], digest.as_py(), receipt.shard)
            for start, stop, digest in zip(starts, stops, self._digests.take(samples), strict=True)
        ]
