"""The images of a version that a page shows, and the figures in its index about all images.

A version may have millions of images in thousands of shards. Its index (`read_index`) has a
confidence for each image. So the images to show are chosen from the index, and only the
shards that hold them are opened (`gallery`).
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.shards import Sample, sample_key
from dfkd.prompts.diversity import near_duplicates, pair_cosines, vendi_score
from dfkd.utils.images import open_image

MAX_ROWS = 250_000
"""Maximum number of rows of an index that are kept, evenly spaced."""
MAX_PER_CLASS = 12
"""Maximum number of images of a class and method."""
MAX_PICTURES = 960
"""Maximum number of images of all classes and methods together, so that a page has some megabytes
at most; every shown class has one, though."""
MAX_CLASSES = 100
"""Maximum number of classes whose images are shown, evenly spaced."""
SHARDS_PER_CLASS = 3
"""Shards that are opened for a class's images; a shard is read and checked as a whole."""
WORST = 10
"""Number of images of which the teacher is least sure that are shown."""
SIDE = 128
"""Maximum width and height of an image on the page in pixels."""
MAX_EMBEDDINGS = 600
"""Maximum number of embeddings that the diversity of a version's images is computed from."""

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Index:
    """The columns of the index that a page needs; one entry of each array for each image."""

    total: int
    """Number of rows in the index; the arrays have at most `MAX_ROWS` of them."""
    class_index: Numbers
    index: Numbers
    shard: Numbers
    """The keys of shards."""
    block: Numbers
    """Positions in `PublishedVersion.blocks`."""
    confidence: Numbers

    @property
    def rows(self) -> int:
        """Number of rows that are kept."""
        return len(self.class_index)


@dataclass(frozen=True)
class GalleryImage:
    """One synthesised image as a page shows it."""

    class_index: int
    index: int
    prompt: str
    confidence: float
    loss: float
    predicted: int
    """Index of the class that the teacher puts it into: argmin of the stored distances."""
    uri: str
    """`data:image/...`."""


@dataclass(frozen=True)
class Gallery:
    """The images of one version that a page shows."""

    strips: dict[int, list[GalleryImage]]
    """Images by class index, in the order of image indices."""
    unsure: list[GalleryImage]
    """Lowest confidence first."""
    embeddings: Numbers
    """The teacher's embeddings float32 [N, E] of a sample of the images in the shards of `strips`,
    none of them zero.
    """
    labels: Numbers
    """Their class indices [N]."""
    twins: float | None
    """Share of the images in those shards with a near duplicate among them in their class; None
    without any.
    """

    @property
    def within(self) -> Numbers:
        """Cosines of the pairs of `embeddings` of one class."""
        if not len(self.labels):
            return np.zeros(0)
        return pair_cosines(self.embeddings, self.labels)[0]

    @property
    def vendi(self) -> float | None:
        """Vendi score: the effective number of different `embeddings`; None without any."""
        return vendi_score(self.embeddings) if len(self.labels) else None


def read_index(version: PublishedVersion) -> Index:
    """The columns of a version's index; the memory does not grow with its length.

    Raises:
        CorruptionError: a block is not what was published.
    """
    names = ["class_index", "index", "shard", "confidence"]
    step = -(-version.facts["samples"] // MAX_ROWS) or 1
    columns: dict[str, list[Numbers]] = {name: [np.empty(0, int)] for name in (*names, "block")}
    total = 0
    for number, block in enumerate(version.blocks):
        # Every `step`-th row of the whole index.
        kept = slice(-total % step, None, step)
        table = version.block_index(block, names)
        for name in names:
            columns[name].append(table[name].to_numpy()[kept])
        columns["block"].append(np.full(len(columns["index"][-1]), number))
        total += block.samples
    return Index(total, **{name: np.concatenate(parts) for name, parts in columns.items()})


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def shown_classes(classes: Sequence[str]) -> list[int]:
    """The class indices whose images are shown."""
    return evenly(range(len(classes)), MAX_CLASSES)


def gallery(version: PublishedVersion, index: Index, per_class: int) -> Gallery:
    """Images of each class, evenly spaced over few shards, and the version's doubtful images.

    Args:
        index: the version's index.
        per_class: maximum number of images of a class.

    Raises:
        CorruptionError: a shard is not what was published.
    """
    picks = {c: _spaced(index, c, per_class) for c in shown_classes(version.classes)}
    # The last key of lexsort sorts first; class and index make the order the same each time.
    by_doubt = np.lexsort((index.index, index.class_index, index.confidence))[:WORST]
    spaced = [row for rows in picks.values() for row in rows]
    # The keys of samples by block and shard: each shard is opened once, for all that it holds.
    blocks: dict[int, dict[str, set[str]]] = {}
    for row in [*spaced, *by_doubt]:
        shards = blocks.setdefault(int(index.block[row]), {})
        shards.setdefault(index.shard[row], set()).add(_key(index, row))
    counted = {str(index.shard[row]) for row in spaced}
    wanted: dict[str, Sample] = {}
    usable: list[tuple[int, Numbers]] = []
    for number, shards in sorted(blocks.items()):
        for receipt in version.block_receipts(version.blocks[number]):
            if receipt.shard not in shards:
                continue
            for sample in version.samples(receipt):
                if sample.key in shards[receipt.shard]:
                    wanted[sample.key] = sample
                # A shard that is opened for a doubtful image has more of them than others, so it
                # would bias the figures about all images. A zero vector has no cosine.
                vector = sample.arrays["embedding"]
                if receipt.shard in counted and vector.any():
                    usable.append((sample.metadata["class_index"], vector))

    def pictures(rows: Iterable[int]) -> list[GalleryImage]:
        """The images of some rows of the index, in their order."""
        found = []
        for row in rows:
            if sample := wanted.get(_key(index, row)):
                told = sample.metadata
                found.append(
                    GalleryImage(
                        class_index=told["class_index"],
                        index=told["index"],
                        prompt=told["prompt"],
                        confidence=told["confidence"],
                        loss=told["loss"],
                        predicted=predicted(sample),
                        uri=sample.decoded(data_uri),
                    )
                )
        return found

    sampled = _arrays(evenly(usable, MAX_EMBEDDINGS))
    return Gallery(
        strips={c: pictures(rows) for c, rows in picks.items()},
        unsure=pictures(by_doubt),
        embeddings=sampled[0],
        labels=sampled[1],
        # Of all, because few images of a sample have their twin in it.
        twins=float(near_duplicates(*_arrays(usable)).mean()) if usable else None,
    )


def _arrays(labelled: Sequence[tuple[int, Numbers]]) -> tuple[Numbers, Numbers]:
    """Embeddings float32 [N, E] and class indices int64 [N]."""
    embeddings = np.array([vector for _, vector in labelled] or np.empty((0, 0)), np.float32)
    return embeddings, np.array([own for own, _ in labelled], np.int64)


def _spaced(index: Index, class_index: int, count: int) -> list[int]:
    """Rows of at most `count` images of a class, evenly spaced over a few of its shards."""
    rows = np.flatnonzero(index.class_index == class_index)
    rows = rows[np.argsort(index.index[rows], kind="stable")]
    opened = evenly(sorted(set(index.shard[rows].tolist())), SHARDS_PER_CLASS)
    inside = rows[np.isin(index.shard[rows], opened)]
    return [int(row) for row in evenly(inside.tolist(), count)]


def _key(index: Index, row: int) -> str:
    """The key of the sample in a row of the index."""
    return sample_key(int(index.class_index[row]), int(index.index[row]))


def predicted(sample: Sample) -> int:
    """The index of the class that the teacher puts a sample into."""
    return int(sample.arrays["distances"].argmin())


def data_uri(encoded: bytes) -> str:
    """A PNG or JPEG as a `data:` URI, scaled down to `SIDE` and encoded as WebP.

    An image that fits keeps its own file where that is not larger.

    Raises:
        ValueError: no decoder can read the image.
    """
    with open_image(encoded, ("PNG", "JPEG")) as image:
        kind = str(image.format).lower()
        small = image.convert("RGB")
    fits = max(small.size) <= SIDE
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=82, method=4)
    webp = stream.getvalue()
    kind, data = (kind, encoded) if fits and len(encoded) <= len(webp) else ("webp", webp)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
