"""Stream a published version as training batches: verified, shuffled, of known length.

The order of an epoch is a pure function of (seed, epoch, rank, world), the batch size and the
version's receipts. Caching and the number of threads change the speed only.
"""

import contextlib
import itertools
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from dfkd.config.hashing import derive_seed
from dfkd.config.plan import MAX_EMBEDDING_DIM
from dfkd.dataset.batch import Batch
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.random_access import Example, Examples
from dfkd.dataset.sampling_order import Indices, reading_order, run_bounds, run_length, shuffled
from dfkd.dataset.shards import ARRAYS
from dfkd.errors import CorruptionError, ManifestError
from dfkd.storage.base import in_order
from dfkd.utils.hardware import available_memory, cpu_count
from dfkd.utils.images import header_size

T = TypeVar("T")

IMAGE_FORMATS = {"png": "PNG", "jpg": "JPEG"}
BUFFER_BYTES = 128 << 20
"""Encoded bytes in a streaming rank's shuffle buffer, which mixes the one-class shards."""
MAX_RUN_BYTES = 1 << 20
"""Bytes of one request at most; enough that transfer takes longer than the look-up in the store."""
CACHE_BYTES = 256 << 20
"""A rank may keep this many bytes of decoded images in memory on any machine; see `cache_limit`."""
PREFETCH_BATCHES = 2
"""Batches decoded ahead of the training step."""


@dataclass(frozen=True)
class RankShare:
    """The part of every global batch that belongs to one rank, and its number of threads."""

    rank: int = 0
    world: int = 1
    decode_threads: int = 0
    """Threads that decode; 0 decodes in the prefetch thread."""


def cache_limit(cpus: float) -> int:
    """Bytes of decoded images that a rank with `cpus` of the machine's CPUs may keep in memory.

    The ranks on a machine divide its CPUs, so all of them together keep at most half of the memory
    that is free now, or `CACHE_BYTES` each if that is more.
    """
    return max(CACHE_BYTES, int(available_memory() / 2 * min(1.0, cpus / cpu_count())))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """floor(images / batch_size), the same for every rank, so that no rank waits for another.

    Raises:
        ManifestError: `images` is smaller than one batch.
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
    """Batches of a published version for one rank. The caller keeps the state (epoch, step).

    `batches(epoch, step)` resumes, at any world size. With one world size an epoch shows each
    sample once, to one rank, except those of the last incomplete batch; if it changes within an
    epoch, the rest of that epoch repeats some samples and leaves out others. All ranks take the
    same number of steps.

    Attributes:
        steps: steps of an epoch, the same on every rank.
        rank_batch_size: images of one step on this rank.
        runs: start of each run of samples that one request reads, and the last end, int64 [R + 1].
        buffer: samples in the shuffle buffer.
        cached: whether decoded images stay in memory after their first use.
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
        """Read the index.

        Args:
            batch_size: images of one step over all ranks.
            cache_bytes: a version whose decoded images fit into so many bytes is decoded once.

        Raises:
            ManifestError: the version holds fewer images than a batch.
            CorruptionError: the version's index is not what was published.
        """
        self.version, self.image_size, self.seed, self.share = version, image_size, seed, share
        self.examples = Examples(version)
        images, shards = len(self.examples), self.examples.shards
        self.steps = steps_per_epoch(images, batch_size)
        # The first `remainder` ranks take one image more, so any world size gives the same batch.
        quotient, remainder = divmod(batch_size, share.world)
        self.rank_batch_size = quotient + (share.rank < remainder)
        self._offset = share.rank * quotient + min(share.rank, remainder)
        # The rows of the first rank, because all ranks must have the same runs.
        rows = quotient + (remainder > 0)
        mean_bytes = sum(receipt.bytes for receipt in shards) / images
        self.buffer = max(2 * rows, int(buffer_bytes / mean_bytes))
        length = min(run_length(self.buffer, rows), max(1, int(MAX_RUN_BYTES / mean_bytes)))
        self.runs = run_bounds([receipt.samples for receipt in shards], length)
        label_bytes = 4 * len(version.classes) + 2 * MAX_EMBEDDING_DIM
        self.cached = images * (3 * image_size**2 + label_bytes) <= cache_bytes
        self._embedding_width: int | None = None

    @cached_property
    def _cache(self) -> "_Cache":
        """The decoded images; allocated at first use, because planning never reads an image."""
        return _Cache(len(self.examples), self.image_size, len(self.version.classes))

    def order(self, epoch: int) -> Indices:
        """The sample numbers that this rank sees in `epoch`, int64 [steps * rows]."""
        rank, world, start = self.share.rank, self.share.world, self.steps * self._offset
        # All ranks draw the same order of runs and cut it into disjoint pieces.
        run_generator = np.random.default_rng(derive_seed("runs", self.seed, epoch))
        own = reading_order(self.runs, run_generator)[
            start : start + self.steps * self.rank_batch_size
        ]
        sample_seed = derive_seed("samples", self.seed, epoch, rank, world)
        return shuffled(own, self.buffer, np.random.default_rng(sample_seed))

    def batches(self, epoch: int, step: int = 0) -> Generator[Batch]:
        """Yield the batches of `epoch`, beginning with `step`.

        Raises:
            CorruptionError: a sample is not what was published; no sample of its run was used.
        """
        batch_samples = _split(
            self.order(epoch)[step * self.rank_batch_size :], self.rank_batch_size
        )
        batches = (
            self._from_cache(batch_samples) if self.cached else self._from_storage(batch_samples)
        )
        # From pinned memory the copy to the GPU runs beside the computation (`non_blocking`).
        pinned = torch.cuda.is_available()
        prepared = (batch.pinned() if pinned else batch for batch in batches)
        with contextlib.closing(batches), contextlib.closing(_ahead(prepared)) as ready:
            yield from ready

    def _from_storage(self, batch_samples: Sequence[Indices]) -> Generator[Batch]:
        """Yield the batch of each entry, whose samples are read and decoded for it."""
        with contextlib.closing(self._decoded(batch_samples)) as decoded:
            for samples in batch_samples:
                yield self._batch(samples, *next(decoded))

    def _from_cache(self, batch_samples: Sequence[Indices]) -> Generator[Batch]:
        """Yield the batch of each entry from the cache, which first gets the samples it lacks.

        So only the first epoch reads; a resumed one reads what it needs, and the next one the rest.
        """
        # An epoch shows each sample once, so none of these is added for an earlier batch.
        missing = [samples[~self._cache.filled[samples]] for samples in batch_samples]
        with contextlib.closing(self._decoded([each for each in missing if len(each)])) as decoded:
            for samples, lacking in zip(batch_samples, missing, strict=True):
                if len(lacking):
                    self._cache.keep(lacking, *next(decoded))
                yield self._batch(samples, *self._cache.take(samples))

    def _batch(
        self, samples: Indices, pixels: Tensor, distances: Tensor, embeddings: Tensor
    ) -> Batch:
        """The batch of some samples from pixels [B, H, W, 3], which stay channels-last."""
        labels = torch.from_numpy(self.examples.labels[samples])
        return Batch(pixels.permute(0, 3, 1, 2), distances, labels, embeddings)

    def _read(self, order: Indices) -> Generator[dict[int, bytearray]]:
        """Yield the bytes of the needed samples of each run, runs in order of their first use."""
        needed = np.zeros(len(self.examples), bool)
        needed[order] = True
        runs = np.searchsorted(self.runs, order, "right") - 1
        _, first_uses = np.unique(runs, return_index=True)

        def fetch(run: int) -> dict[int, bytearray]:
            """The needed samples of a run, with one request."""
            # A resumed epoch skips the samples of earlier steps, so a run may be needed in part.
            begin, end = self.runs[run : run + 2]
            samples = begin + np.flatnonzero(needed[begin:end])
            return dict(zip(samples.tolist(), self.examples.read(samples), strict=True))

        with contextlib.closing(in_order(fetch, runs[np.sort(first_uses)].tolist())) as fetched:
            yield from fetched

    def _example(self, sample: int, data: bytearray) -> Example:
        """Parse a sample; `CorruptionError` unless it has a distance to each class, and an
        embedding as long as the first one.
        """
        example = self.examples.parse(sample, data)
        classes = len(self.version.classes)
        if len(example.distances) != ARRAYS["distances"].itemsize * classes:
            rule = f"must be {classes} numbers, one for each class"
            raise _unusable(example, "distances.npy", rule)
        width, rest = divmod(len(example.embedding), ARRAYS["embedding"].itemsize)
        if not width or rest:
            raise _unusable(example, "embedding.npy", "must be one number or more")
        if self._embedding_width is None:
            self._embedding_width = width
        if width != self._embedding_width:
            rule = f"must be {self._embedding_width} numbers, as in other samples"
            raise _unusable(example, "embedding.npy", rule)
        return example

    def _decoded(
        self, batch_samples: Sequence[Indices]
    ) -> Generator[tuple[Tensor, Tensor, Tensor]]:
        """Yield pixels uint8 [B, H, W, 3], distances and embeddings of the samples of each part."""
        with (
            # Parsing is Python and decoding is not, so a thread parses while this one decodes.
            contextlib.closing(_ahead(self._examples(batch_samples))) as parsed,
            ThreadPoolExecutor(max(1, self.share.decode_threads), "dfkd-decode") as pool,
        ):
            apply = pool.map if self.share.decode_threads else map
            for examples in parsed:
                images = list(apply(lambda example: decode(example, self.image_size), examples))
                yield torch.stack(images), *_arrays(examples)

    def _examples(self, batch_samples: Sequence[Indices]) -> Generator[list[Example]]:
        """Yield the examples of each part.

        A run is fetched when its first sample is due. Each sample is dropped after its use, so
        memory holds about one shuffle buffer of encoded images.
        """
        fetched: dict[int, bytearray] = {}
        with contextlib.closing(self._read(np.concatenate(batch_samples))) as runs:
            for samples in batch_samples:
                examples = []
                for sample in samples.tolist():
                    # `runs` follows the order of first uses, so the next run holds this sample.
                    if sample not in fetched:
                        fetched |= next(runs)
                    # Each sample comes once in an epoch, so its bytes are not needed again.
                    examples.append(self._example(sample, fetched.pop(sample)))
                yield examples


class _Cache:
    """All decoded images of a version in one tensor; each is decoded at its first use."""

    def __init__(self, images: int, image_size: int, classes: int) -> None:
        self.pixels = torch.empty(images, image_size, image_size, 3, dtype=torch.uint8)
        self.distances = torch.empty(images, classes)
        # The first example tells the dimension of embeddings.
        self.embeddings = torch.empty(0)
        self.filled = np.zeros(images, bool)

    def keep(self, samples: Indices, pixels: Tensor, distances: Tensor, embeddings: Tensor) -> None:
        """Keep some samples; the tensors are those that `take` returns."""
        if not len(self.embeddings):
            self.embeddings = embeddings.new_empty(len(self.filled), embeddings.shape[1])
        self.pixels[samples] = pixels
        self.distances[samples], self.embeddings[samples] = distances, embeddings
        self.filled[samples] = True

    def take(self, samples: Indices) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels uint8 [B, H, W, 3], distances float32 [B, M] and embeddings float16 [B, E] of
        samples that are kept.
        """
        # Several times as fast as an index in brackets.
        pixels = self.pixels.index_select(0, torch.from_numpy(samples))
        return pixels, self.distances[samples], self.embeddings[samples]


def _arrays(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Distances float32 [B, M] and embeddings float16 [B, E] of the examples."""
    rows = zip(*((example.distances, example.embedding) for example in examples), strict=True)
    # Joined first, because an array of each example would take longer than its header.
    distances, embeddings = (
        torch.frombuffer(bytearray().join(column), dtype=dtype).view(len(examples), -1)
        for column, dtype in zip(rows, (torch.float32, torch.float16), strict=True)
    )
    return distances, embeddings


def _split(order: Indices, rows: int) -> list[Indices]:
    """The sample numbers of each batch; `order` holds whole batches only."""
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def decode(example: Example, image_size: int) -> Tensor:
    """Decode an image to uint8 [image_size, image_size, 3].

    The size in the header is checked first, because a decoder allocates memory for that size.

    Raises:
        CorruptionError: the image is unreadable, or has another size or more than 8 bits a channel.
    """
    try:
        size = header_size(example.image, IMAGE_FORMATS[example.extension])
        problem = f"{size[0]} x {size[1]} px, not {image_size} px a side"
        if size == (image_size, image_size):
            encoded = torch.frombuffer(example.image, dtype=torch.uint8)
            image: Tensor = decode_image(encoded, ImageReadMode.RGB)
            if image.dtype == torch.uint8:
                return image.permute(1, 2, 0)
            problem = f"{image.dtype}, not 8 bits a channel"
    except (RuntimeError, ValueError) as error:
        problem = str(error).partition("\n")[0]
    raise _unusable(example, example.extension, problem)


def _unusable(example: Example, suffix: str, problem: str) -> CorruptionError:
    """The error for a member of a sample that is not what it must be."""
    return CorruptionError(
        f"sample {example.key}.{suffix}: {problem}; delete the version and synthesise again"
    )


def _ahead(items: Generator[T]) -> Generator[T]:
    """Yield items, which a thread makes up to `PREFETCH_BATCHES` ahead; it raises their errors."""
    end: Any = object()
    made = in_order(lambda _: next(items, end), itertools.repeat(None), 1, PREFETCH_BATCHES)
    with contextlib.closing(items), contextlib.closing(made):
        yield from itertools.takewhile(lambda item: item is not end, made)
