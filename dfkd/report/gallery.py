"""Selection of the images on a page, and statistics from the index; only a few shards are
opened.
"""

import base64
import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dfkd.config.plan import sample_key
from dfkd.dataset.shards import Receipt, Sample
from dfkd.dataset.versions import PublishedVersion
from dfkd.errors import CorruptionError
from dfkd.prompts.diversity import pair_cosines, twins, vendi_score
from dfkd.utils.images import open_image

MAX_ROWS = 250_000
"""Maximum number of index rows kept; a longer index is sampled at a regular step."""
MAX_PER_CLASS = 12
"""Maximum number of images of a class and method."""
MAX_PICTURES = 960
"""Maximum number of images of all classes and methods together."""
MAX_CLASSES = 100
"""Maximum number of classes shown, evenly spaced."""
SHARDS_PER_CLASS = 3
"""Maximum number of shards opened for a class; a shard is always read and verified as a whole."""
WORST = 10
"""Number of images in each list of doubtful ones."""
SIDE = 128
"""Maximum side of an image on the page, in pixels."""
MAX_EMBEDDINGS = 600
"""Maximum number of embeddings used for the diversity of a version's images."""

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Index:
    """Columns of an index that a page needs, one entry for each row that was kept."""

    total: int
    """Number of rows in the file."""
    class_index: Numbers
    index: Numbers
    shard: Numbers
    """Positions in `PublishedVersion.shards`."""
    loss: Numbers
    confidence: Numbers

    @property
    def rows(self) -> int:
        """Number of rows that were kept."""
        return len(self.class_index)


@dataclass(frozen=True)
class GalleryImage:
    """One synthesised image on a page."""

    class_index: int
    index: int
    prompt: str
    confidence: float
    loss: float
    predicted: int
    """The class that the teacher chooses: argmin of the stored distances."""
    uri: str
    """The encoded image: `data:image/...`."""


@dataclass(frozen=True)
class Gallery:
    """The images of one version on a page."""

    strips: dict[int, list[GalleryImage]]
    """Images by class index, in the order of their indices."""
    unsure: list[GalleryImage]
    """The images with the lowest confidence, lowest first."""
    lossy: list[GalleryImage]
    """The images with the highest loss, highest first."""
    rejected: list[GalleryImage]
    """Images that the teacher assigns to another class: the least confident one of each class,
    lowest confidence first.
    """
    rejections: int
    """Number of images among `examined` that the teacher assigns to another class."""
    examined: int
    """Number of images in the shards that were opened."""
    embeddings: Numbers
    """The teacher's embeddings [N, E] of examined images, without zero vectors."""
    labels: Numbers
    """Class indices [N] of the embeddings."""

    @property
    def within(self) -> Numbers:
        """Cosines of the pairs of `embeddings` within a class."""
        if not len(self.labels):
            return np.zeros(0)
        return pair_cosines(self.embeddings, self.labels)[0]

    @property
    def vendi(self) -> float | None:
        """The effective number of different `embeddings`; None if there are none."""
        return vendi_score(self.embeddings) if len(self.labels) else None

    @property
    def twins(self) -> float | None:
        """The share of `embeddings` with a near duplicate in their class; None if there are
        none.
        """
        return float(twins(self.embeddings, self.labels).mean()) if len(self.labels) else None


def read_index(version: PublishedVersion) -> Index:
    """Read index.parquet in bounded memory, sampling the rows of a long index.

    Raises:
        CorruptionError: the file differs from what was published.
    """
    column_names = ["class_index", "index", "shard", "loss", "confidence"]
    names = pa.array([receipt.shard for receipt in version.shards], pa.string())
    step = -(-sum(receipt.samples for receipt in version.shards) // MAX_ROWS) or 1
    columns: dict[str, list[Numbers]] = {name: [] for name in column_names}
    total = 0
    for batch in version.index(column_names):
        # Continue the regular step across batches.
        kept = slice(-total % step, None, step)
        total += batch.num_rows
        codes = pc.fill_null(pc.index_in(batch["shard"], value_set=names), -1)
        for name in column_names:
            values = codes if name == "shard" else batch[name]
            columns[name].append(values.to_numpy(zero_copy_only=False)[kept])
    arrays = {name: np.concatenate(parts or [np.empty(0)]) for name, parts in columns.items()}
    if (arrays["shard"] < 0).any():
        raise CorruptionError(
            f"{version.storage.location('index.parquet')}: has rows of no shard in manifest.json; "
            "run jobs/verify.py"
        )
    return Index(total, **arrays)


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced; the first is included and, from 2 on, the
    last.
    """
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def shown_classes(classes: Sequence[str]) -> list[int]:
    """Indices of the classes whose images are shown."""
    return evenly(range(len(classes)), MAX_CLASSES)


def gallery(version: PublishedVersion, index: Index, per_class: int) -> Gallery:
    """Images of each class, evenly spaced over few shards, and the doubtful images of the version.

    Raises:
        CorruptionError: a shard differs from what was published.
    """
    rows_by_class = {c: _spaced(index, c, per_class) for c in shown_classes(version.classes)}
    by_doubt = np.lexsort((index.index, index.class_index, index.confidence))[:WORST]
    by_loss = np.lexsort((index.index, index.class_index, -index.loss))[:WORST]
    scan = _ShardScan(version)
    # Collect all rows first, so that each shard is opened only once.
    scan.read(
        index, [*(row for rows in rows_by_class.values() for row in rows), *by_doubt, *by_loss]
    )
    strips = {c: scan.pictures(index, rows) for c, rows in rows_by_class.items()}
    usable = [
        (class_index, vector) for class_index, vector in scan.embeddings if np.abs(vector).sum() > 0
    ]
    sampled = evenly(usable, MAX_EMBEDDINGS)
    return Gallery(
        strips=strips,
        unsure=scan.pictures(index, by_doubt),
        lossy=scan.pictures(index, by_loss),
        rejected=[_picture(sample) for sample in scan.doubted()],
        rejections=scan.rejections,
        examined=scan.examined,
        embeddings=np.array([v for _, v in sampled] or np.empty((0, 0)), np.float32),
        labels=np.array([class_index for class_index, _ in sampled], np.int64),
    )


def _spaced(index: Index, class_index: int, count: int) -> list[int]:
    """Rows of a class, evenly spaced among those in a few evenly spaced shards."""
    rows = np.flatnonzero(index.class_index == class_index)
    rows = rows[np.argsort(index.index[rows], kind="stable")]
    opened = evenly(sorted(set(index.shard[rows].tolist())), SHARDS_PER_CLASS)
    inside = rows[np.isin(index.shard[rows], opened)]
    return [int(row) for row in evenly(inside.tolist(), count)]


@dataclass
class _ShardScan:
    """What was found in the shards that were opened, each of them once."""

    version: PublishedVersion
    selected: dict[str, Sample] = field(default_factory=dict)
    rejected: dict[int, Sample] = field(default_factory=dict)
    """The least confident rejected sample of each class."""
    embeddings: list[tuple[int, Numbers]] = field(default_factory=list)
    """Class index and embedding of each examined image."""
    rejections: int = 0
    examined: int = 0

    def read(self, index: Index, rows: Iterable[int]) -> None:
        keys: dict[int, set[str]] = {}
        for row in rows:
            keys.setdefault(int(index.shard[row]), set()).add(_key(index, row))
        for shard in sorted(keys):
            self._open(self.version.shards[shard], keys[shard])

    def _open(self, receipt: Receipt, keys: set[str]) -> None:
        for sample in self.version.samples(receipt):
            self.examined += 1
            class_index = sample.metadata["class_index"]
            self.embeddings.append((class_index, sample.arrays["embedding"]))
            if sample.key in keys:
                self.selected[sample.key] = sample
            if predicted(sample) != class_index:
                self.rejections += 1
                least_confident = self.rejected.setdefault(class_index, sample)
                self.rejected[class_index] = min(least_confident, sample, key=_doubt)

    def doubted(self) -> list[Sample]:
        """The samples of `rejected`, the least confident first."""
        return sorted(self.rejected.values(), key=_doubt)[:WORST]

    def pictures(self, index: Index, rows: Iterable[int]) -> list[GalleryImage]:
        samples = (self.selected.get(_key(index, row)) for row in rows)
        return [_picture(sample) for sample in samples if sample is not None]


def _doubt(sample: Sample) -> tuple[float, str]:
    return sample.metadata["confidence"], sample.key


def _key(index: Index, row: int) -> str:
    return sample_key(int(index.class_index[row]), int(index.index[row]))


def predicted(sample: Sample) -> int:
    """Index of the class that the teacher assigns to a sample."""
    return int(sample.arrays["distances"].argmin())


def _picture(sample: Sample) -> GalleryImage:
    facts = sample.metadata
    return GalleryImage(
        class_index=facts["class_index"],
        index=facts["index"],
        prompt=facts["prompt"],
        confidence=facts["confidence"],
        loss=facts["loss"],
        predicted=predicted(sample),
        uri=data_uri(sample.image, sample.key),
    )


def data_uri(encoded: bytes, name: str) -> str:
    """An image as a `data:` URI: at most `SIDE` pixels a side; as WebP unless the original is
    smaller.

    Raises:
        CorruptionError: the image cannot be decoded; the text names it.
    """
    try:
        with open_image(encoded, ("PNG", "JPEG")) as image:
            kind = str(image.format).lower()
            small = image.convert("RGB")
    except ValueError as error:
        raise CorruptionError(
            f"image {name} cannot be read ({error}); synthesise it again"
        ) from None
    fits = max(small.size) <= SIDE
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=82, method=4)
    webp = stream.getvalue()
    kind, data = (kind, encoded) if fits and len(encoded) <= len(webp) else ("webp", webp)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def reduced_to_budget(galleries: Sequence[Gallery], budget: int) -> list[Gallery]:
    """The galleries with fewer images of each class, so that their URIs fit into `budget`
    characters.

    At least one image of a class is kept. If even those do not fit, classes are dropped.
    """
    count = max((len(s) for g in galleries for s in g.strips.values()), default=0)
    fewer = list(galleries)
    while count > 1 and sum(_sizes(fewer)) > budget:
        count -= 1
        fewer = [
            _with_strips(g, {c: evenly(s, count) for c, s in g.strips.items()}) for g in galleries
        ]
    # One image for each class is still too much: halve the number of classes until it fits.
    kept = max((len(g.strips) for g in galleries), default=0)
    while sum(_sizes(fewer)) > budget:
        kept //= 2
        fewer = [
            _with_strips(g, {c: g.strips[c] for c in evenly(list(g.strips), kept)}) for g in fewer
        ]
    return fewer


def _sizes(galleries: Sequence[Gallery]) -> Iterator[int]:
    return (len(p.uri) for g in galleries for strip in g.strips.values() for p in strip)


def _with_strips(old: Gallery, strips: dict[int, list[GalleryImage]]) -> Gallery:
    return dataclasses.replace(old, strips=strips)
