"""Which images a page shows, and what the index says about all of them; opens few shards."""

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
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.shards import Receipt, Sample
from dfkd.errors import CorruptionError
from dfkd.prompts.diversity import near_duplicates, pair_cosines, vendi_score
from dfkd.utils.images import open_image

MAX_ROWS = 250_000
"""Rows of an index that are kept; of more, every second, third, ... one."""
MAX_PER_CLASS = 12
"""Images of a class and method at the most."""
MAX_PICTURES = 960
"""Images of all classes and methods together."""
MAX_CLASSES = 100
"""Classes whose images are shown; of more, evenly spaced ones."""
SHARDS_PER_CLASS = 3
"""Shards that are opened for a class's images; a shard is read and checked as a whole."""
WORST = 10
"""Images in each list of doubtful ones."""
SIDE = 128
"""Pixels a side of an image on the page at the most."""
MAX_EMBEDDINGS = 600
"""Embeddings that the diversity of a version's images is computed from."""

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Index:
    """The numbers of an index that a page needs, by row."""

    total: int
    """Rows of the file, of which more may have been kept than all or a part."""
    class_index: Numbers
    index: Numbers
    shard: Numbers
    """Positions in `PublishedVersion.shards`."""
    loss: Numbers
    confidence: Numbers

    @property
    def rows(self) -> int:
        """How many are kept."""
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
    """The class that the teacher takes it for: argmin of the stored distances."""
    uri: str
    """`data:image/...`."""


@dataclass(frozen=True)
class Gallery:
    """The images of one version that a page shows."""

    strips: dict[int, list[GalleryImage]]
    """By class index, in the order of image indices."""
    unsure: list[GalleryImage]
    """Lowest confidence first."""
    lossy: list[GalleryImage]
    """Highest loss first."""
    rejected: list[GalleryImage]
    """Taken for another class: of each class the least confident one, lowest confidence first."""
    rejections: int
    """How many of `examined` are taken for another class."""
    examined: int
    embeddings: Numbers
    """The teacher's embeddings [N, E] of images that were looked at, none of them zero."""
    labels: Numbers
    """Their class indices [N]."""

    @property
    def within(self) -> Numbers:
        """Cosines of the pairs of `embeddings` of one class."""
        if not len(self.labels):
            return np.zeros(0)
        return pair_cosines(self.embeddings, self.labels)[0]

    @property
    def vendi(self) -> float | None:
        """The effective number of different `embeddings`; None without any."""
        return vendi_score(self.embeddings) if len(self.labels) else None

    @property
    def twins(self) -> float | None:
        """The share of `embeddings` with a near duplicate in their class; None without any."""
        return (
            float(near_duplicates(self.embeddings, self.labels).mean())
            if len(self.labels)
            else None
        )


def read_index(version: PublishedVersion) -> Index:
    """What index.parquet says about each image; bounded memory, whatever its length.

    Raises:
        CorruptionError: it is not what was published.
    """
    wanted = ["class_index", "index", "shard", "loss", "confidence"]
    names = pa.array([receipt.shard for receipt in version.shards], pa.string())
    step = -(-sum(receipt.samples for receipt in version.shards) // MAX_ROWS) or 1
    columns: dict[str, list[Numbers]] = {name: [] for name in wanted}
    total = 0
    for batch in version.index(wanted):
        kept = slice(-total % step, None, step)
        total += batch.num_rows
        codes = pc.fill_null(pc.index_in(batch["shard"], value_set=names), -1)
        for name in wanted:
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
    """At most `count` of the items, evenly spaced, the first and (from 2 on) the last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def shown_classes(classes: Sequence[str]) -> list[int]:
    """The class indices whose images are shown."""
    return evenly(range(len(classes)), MAX_CLASSES)


def gallery(version: PublishedVersion, index: Index, per_class: int) -> Gallery:
    """Images of each class evenly spaced over few shards, and the doubtful ones of the version.

    Raises:
        CorruptionError: a shard is not what was published.
    """
    picks = {c: _spaced(index, c, per_class) for c in shown_classes(version.classes)}
    by_doubt = np.lexsort((index.index, index.class_index, index.confidence))[:WORST]
    by_loss = np.lexsort((index.index, index.class_index, -index.loss))[:WORST]
    look = _ShardScan(version)
    look.read(index, [*(row for rows in picks.values() for row in rows), *by_doubt, *by_loss])
    strips = {c: look.pictures(index, rows) for c, rows in picks.items()}
    usable = [(own, vector) for own, vector in look.embeddings if np.abs(vector).sum() > 0]
    chosen = evenly(usable, MAX_EMBEDDINGS)
    return Gallery(
        strips=strips,
        unsure=look.pictures(index, by_doubt),
        lossy=look.pictures(index, by_loss),
        rejected=[_picture(sample) for sample in look.doubted()],
        rejections=look.rejections,
        examined=look.examined,
        embeddings=np.array([v for _, v in chosen] or np.empty((0, 0)), np.float32),
        labels=np.array([own for own, _ in chosen], np.int64),
    )


def _spaced(index: Index, class_index: int, count: int) -> list[int]:
    """Rows of a class: evenly spaced among those of a few evenly spaced shards."""
    rows = np.flatnonzero(index.class_index == class_index)
    rows = rows[np.argsort(index.index[rows], kind="stable")]
    open_image = evenly(sorted(set(index.shard[rows].tolist())), SHARDS_PER_CLASS)
    inside = rows[np.isin(index.shard[rows], open_image)]
    return [int(row) for row in evenly(inside.tolist(), count)]


@dataclass
class _ShardScan:
    """What was seen in the shards that were opened, each of them once."""

    version: PublishedVersion
    wanted: dict[str, Sample] = field(default_factory=dict)
    rejected: dict[int, Sample] = field(default_factory=dict)
    """Of each class the least confident."""
    embeddings: list[tuple[int, Numbers]] = field(default_factory=list)
    """With the class index of each."""
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
            own = sample.metadata["class_index"]
            self.embeddings.append((own, sample.arrays["embedding"]))
            if sample.key in keys:
                self.wanted[sample.key] = sample
            if predicted(sample) != own:
                self.rejections += 1
                held = self.rejected.setdefault(own, sample)
                self.rejected[own] = min(held, sample, key=_doubt)

    def doubted(self) -> list[Sample]:
        """Those of `rejected`, the least confident first."""
        return sorted(self.rejected.values(), key=_doubt)[:WORST]

    def pictures(self, index: Index, rows: Iterable[int]) -> list[GalleryImage]:
        found = (self.wanted.get(_key(index, row)) for row in rows)
        return [_picture(sample) for sample in found if sample is not None]


def _doubt(sample: Sample) -> tuple[float, str]:
    return sample.metadata["confidence"], sample.key


def _key(index: Index, row: int) -> str:
    return sample_key(int(index.class_index[row]), int(index.index[row]))


def predicted(sample: Sample) -> int:
    """The class index that the teacher takes a sample for."""
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
    """An image as a `data:` URI: scaled to `SIDE`, as WebP unless its own bytes are fewer.

    Raises:
        CorruptionError: naming the image, which no decoder can read.
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
    """The galleries with so many images of each class that their URIs fit in `budget` characters.

    Of a class at least one image is left; if even those do not fit, some classes have none.
    """
    count = max((len(s) for g in galleries for s in g.strips.values()), default=0)
    fewer = list(galleries)
    while count > 1 and sum(_sizes(fewer)) > budget:
        count -= 1
        fewer = [
            _with_strips(g, {c: evenly(s, count) for c, s in g.strips.items()}) for g in galleries
        ]
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
