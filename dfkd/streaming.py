"""A published version as a stream of training batches: verified, mixed, of a length known before.

The order of an epoch is a pure function of (seed, epoch, rank, world) and the version's receipts;
how it is read (cached, streamed, with how many threads) changes the speed and nothing else.
"""

import contextlib
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from dfkd.dataset import PublishedVersion
from dfkd.errors import CorruptionError, ManifestError
from dfkd.pictures import header_size
from dfkd.plan import derive_seed
from dfkd.shards import Receipt, Sample

T = TypeVar("T")
Order = npt.NDArray[np.int64]
"""Rows of (visit, sample): visit v is reading number v // S of shard v % S, where S is their count.
No row is there twice."""

FORMATS = {"png": "PNG", "jpg": "JPEG"}
BUFFER_BYTES = 128 << 20
"""Encoded images that a streaming rank holds to mix the class-pure shards."""
CACHE_BYTES = 256 << 20
"""A version whose decoded images fit is decoded once and kept."""
AHEAD = 2
"""Shards fetched, and batches decoded, before they are needed."""


@dataclass(frozen=True)
class Batch:
    """Images and what the teacher said about them when they were made."""

    pixels: Tensor
    """uint8 [B, 3, H, W], channels last: as images are decoded, and as the student takes them."""
    distances: Tensor
    """float32 [B, M], of the plain image."""
    labels: Tensor
    """int64 [B], the class that each image was made for."""
    embeddings: Tensor
    """float32 [B, E], of the plain image, of unit length but for rounding."""


@dataclass(frozen=True)
class Share:
    """Which part of every global batch is this rank's, and how many threads read for it."""

    rank: int = 0
    world: int = 1
    readers: int = 0
    """Threads that decode; 0 decodes in the one thread that reads ahead."""


def steps_per_epoch(images: int, batch_size: int) -> int:
    """floor(images / batch_size): every rank makes exactly as many, so that none waits for another.

    Raises:
        ManifestError: there is not one whole batch.
    """
    if images < batch_size:
        raise ManifestError(
            "distillation.batch_size",
            f"must not exceed the {images} images",
            batch_size,
            "make it smaller or synthesise more",
        )
    return images // batch_size


def require_readers(shards: int, world: int, readers: int) -> None:
    """Refuse (`ManifestError`) more threads that read, of all ranks, than there are shards."""
    total = world * max(1, readers)
    if shards < total:
        raise ManifestError(
            "distillation.workers",
            f"workers x loader_workers must not exceed the {shards} shards",
            total,
            "use fewer, or a smaller synthesis.shard_size",
        )


def mixed_order(counts: Sequence[int], buffer: int, generator: np.random.Generator) -> Order:
    """One visit to each of some class-pure shards, through a shuffle buffer of `buffer` samples.

    Shards come in random order; as many samples leave the buffer, at random, as a shard brings.
    With a buffer as large as the data set this is a uniform permutation.
    """
    pool = np.empty((0, 2), dtype=np.int64)
    parts = []
    for shard in generator.permutation(len(counts)):
        fresh = np.stack([np.full(counts[shard], shard), np.arange(counts[shard])], 1)
        pool = generator.permutation(np.concatenate([pool, fresh]))
        surplus = max(0, len(pool) - buffer)
        parts.append(pool[:surplus].copy())  # a view would keep the whole buffer, once a shard
        pool = pool[surplus:]
    return np.concatenate([*parts, pool])


class Stream:
    """Batches of a published version for one rank; its state is (epoch, step), kept by the caller.

    To resume is to ask for `batches(epoch, step)`, at any world size. An epoch shows each sample
    once, but for the last incomplete batch; with several ranks, each reads its own shards of that
    epoch, and one with fewer samples than its share begins a second pass over them.
    """

    def __init__(
        self,
        version: PublishedVersion,
        image_size: int,
        batch_size: int,
        seed: int,
        share: Share = Share(),
        cache_bytes: int = CACHE_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """`batch_size` counts the images of one step over all ranks.

        Raises:
            ManifestError: fewer shards than ranks x readers, or fewer images than a batch.
        """
        self.version, self.image_size, self.seed, self.share = version, image_size, seed, share
        self.shards: tuple[Receipt, ...] = tuple(r for r in version.shards if r.samples)
        require_readers(len(self.shards), share.world, share.readers)
        images = sum(receipt.samples for receipt in self.shards)
        self.steps = steps_per_epoch(images, batch_size)
        self.rows = batch_size // share.world
        mean_bytes = sum(receipt.bytes for receipt in self.shards) / images
        self.buffer = max(2 * self.rows, int(buffer_bytes / mean_bytes))
        self._width: dict[str, int] = {}
        self.cached = images * 3 * image_size**2 <= cache_bytes

    @cached_property
    def _cache(self) -> "_Cache":
        return _Cache([receipt.samples for receipt in self.shards], self.image_size)

    def order(self, epoch: int) -> Order:
        """What this rank sees in `epoch`: [steps * rows, 2], a second visit only to fill it up."""
        rank, world = self.share.rank, self.share.world
        shuffle = np.random.default_rng(derive_seed("shards", self.seed, epoch))
        own = np.sort(shuffle.permutation(len(self.shards))[rank::world])
        counts = [self.shards[shard].samples for shard in own]
        mix = np.random.default_rng(derive_seed("samples", self.seed, epoch, rank, world))
        wanted = self.steps * self.rows
        passes = []
        for number in range(-(-wanted // sum(counts))):
            rows = mixed_order(counts, self.buffer, mix)
            rows[:, 0] = own[rows[:, 0]] + number * len(self.shards)
            passes.append(rows)
        return np.concatenate(passes)[:wanted]

    def batches(self, epoch: int, step: int = 0) -> Generator[Batch]:
        """The batches of `epoch` from `step` on.

        Raises:
            CorruptionError: a shard is not what its receipt says; nothing of it has been used.
        """
        rows = self.order(epoch)[step * self.rows :]
        if self.cached:
            rows[:, 0] %= len(self.shards)
            yield from self._cache.batches(rows, self.rows, self._open)
        else:
            with contextlib.closing(_ahead(lambda: self._read(rows), AHEAD)) as batches:
                yield from batches

    def _open(self, visit: int) -> list[Sample]:
        receipt = self.shards[visit % len(self.shards)]
        samples = list(self.version.samples(receipt))
        for sample in samples:
            self._check(sample)
        return samples

    def _check(self, sample: Sample) -> None:
        classes = len(self.version.classes)
        if len(sample.arrays["distances"]) != classes:
            wanted = f"must be {classes} numbers, one for each class"
            raise _unusable(sample, "distances.npy", wanted)
        if not 0 <= sample.metadata["class_index"] < classes:
            raise _unusable(sample, "json", f"class_index must be one of {classes} classes")
        # One step, which readers on several threads cannot interleave.
        width = self._width.setdefault("embedding", len(sample.arrays["embedding"]))
        if len(sample.arrays["embedding"]) != width:
            raise _unusable(sample, "embedding.npy", f"must be {width} numbers, as of the others")

    def _read(self, rows: Order) -> Generator[Batch]:
        """Decode in order; a shard is fetched at its first row and a sample dropped at its own."""
        left = Counter(rows[:, 0].tolist())
        visits = iter(left)  # in the order of their first rows
        held: dict[int, dict[int, Sample]] = {}
        with ThreadPoolExecutor(max(1, self.share.readers), "dfkd-read") as pool:
            coming: deque[Future[list[Sample]]] = deque()
            coming.extend(pool.submit(self._open, visit) for visit in islice(visits, AHEAD))
            for start in range(0, len(rows), self.rows):
                batch = []
                for visit, sample in rows[start : start + self.rows].tolist():
                    if visit not in held:
                        held[visit] = dict(enumerate(coming.popleft().result()))
                        coming.extend(pool.submit(self._open, v) for v in islice(visits, 1))
                    batch.append(held[visit].pop(sample))
                    left[visit] -= 1
                    if not left[visit]:
                        del held[visit]
                yield self._decoded(batch, pool)

    def _decoded(self, samples: list[Sample], pool: ThreadPoolExecutor) -> Batch:
        if self.share.readers:
            images = list(pool.map(lambda sample: decode(sample, self.image_size), samples))
        else:
            images = [decode(sample, self.image_size) for sample in samples]
        return Batch(_planes(torch.stack(images)), *_said(samples))


class _Cache:
    """All decoded images of a small version in one tensor, filled as shards are first needed."""

    def __init__(self, counts: Sequence[int], image_size: int) -> None:
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.image_size = image_size
        self.pixels = torch.empty(sum(counts), image_size, image_size, 3, dtype=torch.uint8)
        self.said: tuple[Tensor, ...] = ()
        """See `_said`, of all images; empty until the widths are known."""
        self.filled: set[int] = set()

    def batches(
        self, rows: Order, size: int, read: Callable[[int], list[Sample]]
    ) -> Iterator[Batch]:
        for shard in dict.fromkeys(rows[:, 0].tolist()):
            if shard not in self.filled:
                self._fill(shard, read(shard))
        indices = torch.from_numpy(self.starts[rows[:, 0]] + rows[:, 1])
        for chosen in indices.split(size):
            yield Batch(_planes(self.pixels[chosen]), *(values[chosen] for values in self.said))

    def _fill(self, shard: int, samples: list[Sample]) -> None:
        fresh = _said(samples)
        if not self.said:
            self.said = tuple(v.new_empty(len(self.pixels), *v.shape[1:]) for v in fresh)
        place = slice(int(self.starts[shard]), int(self.starts[shard + 1]))
        for values, some in zip(self.said, fresh, strict=True):
            values[place] = some
        for offset, sample in enumerate(samples):
            self.pixels[place.start + offset] = decode(sample, self.image_size)
        self.filled.add(shard)


def _said(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Distances, classes and embeddings of samples, as in `Batch`."""
    distances = np.stack([sample.arrays["distances"] for sample in samples])
    labels = torch.tensor([sample.metadata["class_index"] for sample in samples])
    embeddings = np.stack([sample.arrays["embedding"] for sample in samples])
    return torch.from_numpy(distances), labels, torch.from_numpy(embeddings).float()


def _planes(images: Tensor) -> Tensor:
    """[B, H, W, 3] as [B, 3, H, W]; nothing is copied."""
    return images.permute(0, 3, 1, 2)


def decode(sample: Sample, image_size: int) -> Tensor:
    """uint8 [image_size, image_size, 3]; `CorruptionError` if the image is not that.

    What the header claims is looked at first: a decoder allocates that much.
    """
    encoded = torch.frombuffer(bytearray(sample.image), dtype=torch.uint8)
    try:
        size = header_size(sample.image, FORMATS[sample.extension])
        if size == (image_size, image_size):
            image: Tensor = decode_image(encoded, ImageReadMode.RGB)
            return image.permute(1, 2, 0)
    except (RuntimeError, ValueError) as error:
        raise _not_an_image(sample, str(error).partition("\n")[0]) from None
    raise _not_an_image(sample, f"{size[0]} x {size[1]} px, not {image_size} px a side")


def _not_an_image(sample: Sample, problem: str) -> CorruptionError:
    return _unusable(sample, sample.extension, problem)


def _unusable(sample: Sample, suffix: str, problem: str) -> CorruptionError:
    return CorruptionError(
        f"sample {sample.key}.{suffix}: {problem}; delete the version and synthesise again"
    )


def _ahead(make: Callable[[], Generator[T]], depth: int) -> Generator[T]:
    """The items of `make()`, made in a thread up to `depth` ahead; its exceptions come through."""
    done = object()
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def produce() -> None:
        try:
            with contextlib.closing(make()) as items:
                for item in items:
                    if not put(item):
                        return
            put(done)
        except BaseException as error:  # raised again where it is awaited
            put(error)

    thread = threading.Thread(target=produce, name="dfkd-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
