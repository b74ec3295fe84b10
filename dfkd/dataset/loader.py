"""A published version as a stream of training batches: verified, mixed, of a length known before.

The order of an epoch is a pure function of (seed, epoch, rank, world), the batch size and the
version's receipts; how it is read (cached, streamed, with how many threads) changes the speed and
nothing else.
"""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from dfkd.config.plan import derive_seed
from dfkd.dataset.random_access import Examples
from dfkd.dataset.sampling_order import Indices, reading_order, run_bounds, run_length, shuffled
from dfkd.dataset.shards import Example
from dfkd.dataset.versions import PublishedVersion
from dfkd.errors import CorruptionError, ManifestError
from dfkd.utils.images import header_size

T = TypeVar("T")

IMAGE_FORMATS = {"png": "PNG", "jpg": "JPEG"}
BUFFER_BYTES = 128 << 20
"""Encoded images that a streaming rank holds to mix the class-pure shards."""
MAX_RUN_BYTES = 1 << 20
"""Read by one request at most: a store then spends more time on sending than on finding."""
CONCURRENT_READS = 16
"""Requests at once: over a network each is a round trip."""
CACHE_BYTES = 256 << 20
"""A version whose decoded images fit is decoded once and kept."""
PREFETCH_BATCHES = 2
"""Batches decoded before they are needed."""


@dataclass(frozen=True)
class Batch:
    """Images and what the teacher said about them when they were made."""

    pixels: Tensor
    """uint8 [B, 3, H, W], channels last: as images are decoded, and as the student takes them."""
    distances: Tensor
    """float32 [B, M], of the plain image."""
    labels: Tensor
    """int64 [B], the class that each image was made for."""


@dataclass(frozen=True)
class RankShare:
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


class Stream:
    """Batches of a published version for one rank; its state is (epoch, step), kept by the caller.

    To resume is to ask for `batches(epoch, step)`, at any world size. An epoch shows each sample
    once, to one rank, but for the last incomplete batch; every rank sees equally many.
    """

    def __init__(
        self,
        version: PublishedVersion,
        image_size: int,
        batch_size: int,
        seed: int,
        share: RankShare = RankShare(),
        cache_bytes: int = CACHE_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """`batch_size` counts the images of one step over all ranks.

        Raises:
            ManifestError: fewer images than a batch.
            CorruptionError: the version's index is not what was published.
        """
        self.version, self.image_size, self.seed, self.share = version, image_size, seed, share
        self.examples = Examples(version)
        self.shards = self.examples.shards
        images = len(self.examples)
        self.steps = steps_per_epoch(images, batch_size)
        equal, over = divmod(batch_size, share.world)  # the first ranks have one image more
        self.rows = equal + (share.rank < over)
        self.before = share.rank * equal + min(share.rank, over)
        mean_bytes = sum(receipt.bytes for receipt in self.shards) / images
        self.buffer = max(2 * self.rows, int(buffer_bytes / mean_bytes))
        run = min(run_length(self.buffer, self.rows), max(1, int(MAX_RUN_BYTES / mean_bytes)))
        self.runs = run_bounds([receipt.samples for receipt in self.shards], run)
        self.cached = images * 3 * image_size**2 <= cache_bytes

    @cached_property
    def _cache(self) -> "_Cache":
        return _Cache(len(self.examples), self.image_size, len(self.version.classes))

    def order(self, epoch: int) -> Indices:
        """The samples that this rank sees in `epoch`: [steps * rows]."""
        rank, world, start = self.share.rank, self.share.world, self.steps * self.before
        shuffle = np.random.default_rng(derive_seed("runs", self.seed, epoch))
        own = reading_order(self.runs, shuffle)[start : start + self.steps * self.rows]
        mix = np.random.default_rng(derive_seed("samples", self.seed, epoch, rank, world))
        return shuffled(own, self.buffer, mix)

    def batches(self, epoch: int, step: int = 0) -> Generator[Batch]:
        """The batches of `epoch` from `step` on.

        Raises:
            CorruptionError: a sample is not what was published; nothing of its run has been used.
        """
        order = self.order(epoch)[step * self.rows :]
        if self.cached:
            self._cache.fill(self._read(order[~self._cache.filled[order]]))
            for chosen in _split(order, self.rows):
                yield self._batch(chosen, *self._cache.take(chosen))
        else:
            with contextlib.closing(
                _ahead(lambda: self._stream(order), PREFETCH_BATCHES)
            ) as batches:
                yield from batches

    def _batch(self, chosen: Indices, pixels: Tensor, distances: Tensor) -> Batch:
        labels = torch.from_numpy(self.examples.labels[chosen])
        return Batch(pixels.permute(0, 3, 1, 2), distances, labels)

    def _read(self, order: Indices) -> Generator[dict[int, Example]]:
        """The samples of each run that `order` needs, in the order in which it needs them first."""
        needed = np.zeros(len(self.examples), bool)
        needed[order] = True
        runs = np.searchsorted(self.runs, order, "right") - 1
        _, first = np.unique(runs, return_index=True)

        def fetch(run: int) -> dict[int, Example]:
            begin, end = self.runs[run : run + 2]
            samples = begin + np.flatnonzero(needed[begin:end])
            examples = self.examples.read(samples)
            for example in examples:
                self._check(example)
            return dict(zip(samples.tolist(), examples, strict=True))

        return _fetched(fetch, runs[np.sort(first)].tolist())

    def _check(self, example: Example) -> None:
        classes = len(self.version.classes)
        if len(example.distances) != classes:
            wanted = f"must be {classes} numbers, one for each class"
            raise _unusable(example, "distances.npy", wanted)

    def _stream(self, order: Indices) -> Generator[Batch]:
        """Decode in order; a run is fetched at its first sample, and each dropped at its own."""
        held: dict[int, Example] = {}
        with (
            contextlib.closing(self._read(order)) as runs,
            ThreadPoolExecutor(max(1, self.share.readers), "dfkd-decode") as pool,
        ):
            spread = pool.map if self.share.readers else map
            for chosen in _split(order, self.rows):
                batch = []
                for sample in chosen.tolist():
                    if sample not in held:
                        held |= next(runs)
                    batch.append(held.pop(sample))
                images = list(spread(lambda example: decode(example, self.image_size), batch))
                yield self._batch(chosen, torch.stack(images), _distances(batch))


class _Cache:
    """All decoded images of a small version in one tensor, filled as they are first needed."""

    def __init__(self, images: int, image_size: int, classes: int) -> None:
        self.image_size = image_size
        self.pixels = torch.empty(images, image_size, image_size, 3, dtype=torch.uint8)
        self.distances = torch.empty(images, classes)
        self.filled = np.zeros(images, bool)

    def fill(self, runs: Iterable[dict[int, Example]]) -> None:
        """Decode and keep some samples, given by number."""
        for run in runs:
            self.distances[list(run)] = _distances(list(run.values()))
            for sample, example in run.items():
                self.pixels[sample] = decode(example, self.image_size)
            self.filled[list(run)] = True

    def take(self, chosen: Indices) -> tuple[Tensor, Tensor]:
        """Pixels [B, H, W, 3] and distances [B, M] of samples that are there."""
        return self.pixels[chosen], self.distances[chosen]


def _distances(examples: Sequence[Example]) -> Tensor:
    """Of some samples, float32 [B, M]."""
    return torch.from_numpy(np.stack([example.distances for example in examples]))


def _split(order: Indices, rows: int) -> list[Indices]:
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def decode(example: Example, image_size: int) -> Tensor:
    """uint8 [image_size, image_size, 3]; `CorruptionError` if the image is not that.

    What the header claims is looked at first: a decoder allocates that much.
    """
    encoded = torch.frombuffer(bytearray(example.image), dtype=torch.uint8)
    try:
        size = header_size(example.image, IMAGE_FORMATS[example.extension])
        if size == (image_size, image_size):
            image: Tensor = decode_image(encoded, ImageReadMode.RGB)
            return image.permute(1, 2, 0)
    except (RuntimeError, ValueError) as error:
        raise _not_an_image(example, str(error).partition("\n")[0]) from None
    raise _not_an_image(example, f"{size[0]} x {size[1]} px, not {image_size} px a side")


def _not_an_image(example: Example, problem: str) -> CorruptionError:
    return _unusable(example, example.extension, problem)


def _unusable(example: Example, suffix: str, problem: str) -> CorruptionError:
    return CorruptionError(
        f"sample {example.key}.{suffix}: {problem}; delete the version and synthesise again"
    )


def _fetched(fetch: Callable[[int], T], wanted: Iterable[int]) -> Generator[T]:
    """What `fetch` gives for each of `wanted`, in their order, `CONCURRENT_READS` of them at once."""
    left = iter(wanted)
    pool = ThreadPoolExecutor(CONCURRENT_READS, "dfkd-fetch")
    try:
        coming: deque[Future[T]] = deque(
            pool.submit(fetch, each) for each in islice(left, CONCURRENT_READS)
        )
        while coming:
            found = coming.popleft().result()
            coming.extend(pool.submit(fetch, each) for each in islice(left, 1))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)


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
