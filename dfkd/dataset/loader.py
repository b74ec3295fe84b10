"""Stream a published version as training batches: verified, shuffled, of known length.

The order of an epoch is a pure function of (seed, epoch, rank, world), the batch size and the
version's receipts. Caching and the number of threads change the speed only.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from dfkd.config.hashing import derive_seed
from dfkd.config.plan import MAX_EMBEDDING_DIM
from dfkd.dataset.batch import Batch
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.random_access import Example, Examples, parse
from dfkd.dataset.sampling_order import Indices, reading_order, run_length, runs_of, shuffled
from dfkd.errors import CorruptionError, ManifestError
from dfkd.storage.base import in_order
from dfkd.utils.hardware import available_memory, cpu_count
from dfkd.utils.images import header_size
from dfkd.utils.pixels import from_batch

T = TypeVar("T")

IMAGE_FORMATS = {"png": "PNG", "jpg": "JPEG"}
BUFFER_BYTES = 128 << 20
"""Encoded bytes in a streaming rank's shuffle buffer, which mixes the one-class shards."""
MAX_RUN_BYTES = 1 << 20
"""Bytes of one request at most; enough that transfer takes longer than the look-up in the store."""
WINDOW_IMAGES = 1 << 21
"""About so many images are shuffled together, so that the memory of a rank has a bound. Nearly all
data sets are a single window."""
CACHE_BYTES = 256 << 20
"""A rank may keep this many bytes of decoded images in memory on any machine; see `cache_limit`."""
PREFETCH_BATCHES = 2
"""Batches decoded ahead of the training step."""


@dataclass(frozen=True)
class Window:
    """What a rank reads of some blocks."""

    begins: Indices
    """The first sample of each run, in ascending order, int64 [R]; all ranks have the same."""
    lengths: Indices
    """The number of samples in each run, int64 [R]."""
    samples: Indices
    """The samples in the order in which this rank shows them, int64 [N]."""


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
        run_length: samples that one request reads, at most.
        window_blocks: blocks of a window.
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
        """Plan the batches; nothing is read yet.

        Args:
            batch_size: images of one step over all ranks.
            cache_bytes: a version whose decoded images fit into so many bytes is decoded once.

        Raises:
            ManifestError: the version holds fewer images than a batch.
        """
        self.version, self.image_size, self.seed, self.share = version, image_size, seed, share
        images, blocks = version.facts["samples"], len(version.blocks)
        self.window_blocks = max(1, blocks * WINDOW_IMAGES // max(1, images))
        # The reads of a window may still go on when the next one begins.
        self.examples = Examples(version, 2 * self.window_blocks)
        self.steps = steps_per_epoch(images, batch_size)
        # The first `remainder` ranks take one image more, so any world size gives the same batch.
        quotient, remainder = divmod(batch_size, share.world)
        self.rank_batch_size = quotient + (share.rank < remainder)
        self._offset = share.rank * quotient + min(share.rank, remainder)
        # The rows of the first rank, because all ranks must have the same runs.
        rows = quotient + (remainder > 0)
        mean_bytes = version.facts["bytes"] / images
        self.buffer = max(2 * rows, int(buffer_bytes / mean_bytes))
        longest = max(1, int(MAX_RUN_BYTES / mean_bytes))
        self.run_length = min(run_length(self.buffer, rows), longest)
        label_bytes = 4 * len(version.classes) + 2 * MAX_EMBEDDING_DIM
        self.cached = images * (3 * image_size**2 + label_bytes) <= cache_bytes
        self._relabel: Callable[[Batch], Batch] = lambda batch: batch

    def relabel(
        self,
        targets: Callable[[Tensor], Tensor],
        field: Literal["distances", "embeddings"],
        device: torch.device,
    ) -> None:
        """Give the images other labels than those that are stored with them, from now on.

        Those of images that stay in memory are made once.

        Args:
            targets: from pixels [B, 3, H, W] float32 in [0, 1] on `device` to a row for each image.
            field: the field of batches that gets them.
        """

        @torch.no_grad()
        def relabelled(batch: Batch) -> Batch:
            rows = targets(from_batch(batch.pixels, device)).cpu()
            return dataclasses.replace(batch, **{field: rows})

        self._relabel = relabelled

    @cached_property
    def _cache(self) -> "_Cache":
        """The decoded images; allocated at first use, because planning never reads an image."""
        return _Cache(len(self.examples), self.image_size, len(self.version.classes))

    def order(self, epoch: int) -> Indices:
        """The sample numbers that this rank sees in `epoch`, int64 [steps * rows]."""
        return _joined(list(self.windows(epoch)))

    def windows(self, epoch: int, skipped: int = 0) -> Iterator[Window]:
        """Yield what this rank reads in `epoch`, without its first `skipped` samples.

        Raises:
            CorruptionError: a block of the index is not what was published.
        """
        # All ranks draw the same windows, and in each the same order of runs. They cut the whole
        # into disjoint pieces, so a rank reads the blocks of its own piece.
        begin = self.steps * self._offset
        end = begin + self.steps * self.rank_batch_size
        rank, world = self.share.rank, self.share.world
        blocks = len(self.version.blocks)
        drawn = np.random.default_rng(derive_seed("blocks", self.seed, epoch)).permutation(blocks)
        count = -(-blocks // self.window_blocks)
        bounds, stop = self.examples.bounds, 0
        for number in range(count):
            chosen = np.sort(drawn[number * self.window_blocks :][: self.window_blocks])
            start, stop = stop, stop + int((bounds[chosen + 1] - bounds[chosen]).sum())
            piece = slice(max(begin, start) - start, min(end, stop) - start)
            if (held := max(0, piece.stop - piece.start)) <= skipped:
                skipped -= held
                continue
            runs = [
                runs_of(bounds[block] + self.examples.rows(block).bounds, self.run_length)
                for block in chosen.tolist()
            ]
            begins, lengths = map(np.concatenate, zip(*runs, strict=True))
            window = epoch * count + number  # the epoch, if there is one window
            run_generator = np.random.default_rng(derive_seed("runs", self.seed, window))
            own = reading_order(begins, lengths, run_generator)[piece]
            sample_seed = derive_seed("samples", self.seed, window, rank, world)
            samples = shuffled(own, self.buffer, np.random.default_rng(sample_seed))
            yield Window(begins, lengths, samples[skipped:])
            skipped = 0

    def batches(self, epoch: int, step: int = 0) -> Generator[Batch]:
        """Yield the batches of `epoch`, beginning with `step`.

        Raises:
            CorruptionError: a sample is not what was published; no sample of its run was used.
        """
        windows = self.windows(epoch, step * self.rank_batch_size)
        sizes = itertools.repeat(self.rank_batch_size)
        batches = self._from_cache(windows) if self.cached else self._read(windows, sizes)
        # From pinned memory the copy to the GPU runs beside the computation (`non_blocking`).
        pinned = torch.cuda.is_available()
        prepared = (batch.pinned() if pinned else batch for _, batch in batches)
        with contextlib.closing(batches), contextlib.closing(_ahead(prepared)) as ready:
            yield from ready

    def _from_cache(self, windows: Iterator[Window]) -> Generator[tuple[Indices, Batch]]:
        """Yield samples and batches from the cache, which first gets the samples it lacks.

        So only the first epoch reads; a resumed one reads what it needs, and the next one the rest.
        """
        planned = list(windows)
        order, rows = _joined(planned), self.rank_batch_size
        parts = [order[start : start + rows] for start in range(0, len(order), rows)]
        # An epoch shows each sample once, so none of these is added for an earlier batch.
        filled = self._cache.filled.copy()
        lacking = [dataclasses.replace(w, samples=w.samples[~filled[w.samples]]) for w in planned]
        sizes = (int((~filled[part]).sum()) for part in parts)
        with contextlib.closing(self._read(iter(lacking), filter(None, sizes))) as read:
            for part in parts:
                if not filled[part].all():
                    self._cache.keep(*next(read))
                yield part, self._cache.take(part)

    def _read(
        self, windows: Iterator[Window], sizes: Iterator[int]
    ) -> Generator[tuple[Indices, Batch]]:
        """Yield samples and batches of these sizes, which are read and decoded for it."""
        with (
            # Parsing is Python and decoding is not, so a thread parses while this one decodes.
            contextlib.closing(_ahead(self._examples(windows, sizes))) as parsed,
            ThreadPoolExecutor(max(1, self.share.decode_threads), "dfkd-decode") as pool,
        ):
            apply = pool.map if self.share.decode_threads else map
            for samples, examples in parsed:
                images = list(apply(lambda example: decode(example, self.image_size), examples))
                # Pixels stay channels-last in memory.
                pixels = torch.stack(images).permute(0, 3, 1, 2)
                labels = torch.from_numpy(self.examples.labels(samples))
                distances, embeddings = _arrays(examples)
                yield samples, self._relabel(Batch(pixels, distances, labels, embeddings))

    def _examples(
        self, windows: Iterator[Window], sizes: Iterator[int]
    ) -> Generator[tuple[Indices, list[Example]]]:
        """Yield samples and examples of batches of these sizes.

        A run is fetched when its first sample is due. Each sample is dropped after its use, so
        memory holds about one shuffle buffer of encoded images.
        """
        numbers: list[int] = []
        examples: list[Example] = []
        size = next(sizes, 0)
        for window in windows:
            fetched: dict[int, bytearray] = {}
            with contextlib.closing(self._fetch(window)) as runs:
                for sample in itertools.chain.from_iterable(_lists(window.samples)):
                    # `runs` follows the order of first uses, so the next run holds this sample.
                    if sample not in fetched:
                        fetched |= next(runs)
                    numbers.append(sample)
                    # Each sample comes once in an epoch, so its bytes are not needed again.
                    examples.append(parse(fetched.pop(sample)))
                    if len(examples) == size:
                        yield np.array(numbers), examples
                        numbers, examples, size = [], [], next(sizes, 0)

    def _fetch(self, window: Window) -> Generator[dict[int, bytearray]]:
        """Yield the bytes of the needed samples of each run, runs in order of their first use."""
        runs = np.searchsorted(window.begins, window.samples, "right") - 1
        _, first_uses = np.unique(runs, return_index=True)
        # A resumed epoch skips the samples of earlier steps, so a run may be needed in part.
        needed = np.sort(window.samples)

        def fetch(run: int) -> dict[int, bytearray]:
            """The needed samples of a run, with one request."""
            begin = window.begins[run]
            first, last = np.searchsorted(needed, (begin, begin + window.lengths[run]))
            samples = needed[first:last]
            return dict(zip(samples.tolist(), self.examples.read(samples), strict=True))

        with contextlib.closing(in_order(fetch, runs[np.sort(first_uses)].tolist())) as fetched:
            yield from fetched


class _Cache:
    """All decoded images of a version in one tensor; each is decoded at its first use."""

    def __init__(self, images: int, image_size: int, classes: int) -> None:
        self.pixels = torch.empty(images, image_size, image_size, 3, dtype=torch.uint8)
        self.distances = torch.empty(images, classes)
        self.labels = torch.empty(images, dtype=torch.int64)
        # The first example tells the dimension of embeddings.
        self.embeddings = torch.empty(0)
        self.filled = np.zeros(images, bool)

    def keep(self, samples: Indices, batch: Batch) -> None:
        """Keep the batch of some samples."""
        if not len(self.embeddings):
            self.embeddings = batch.embeddings.new_empty(
                len(self.filled), batch.embeddings.shape[1]
            )
        self.pixels[samples] = batch.pixels.permute(0, 2, 3, 1)
        self.distances[samples], self.labels[samples] = batch.distances, batch.labels
        self.embeddings[samples] = batch.embeddings
        self.filled[samples] = True

    def take(self, samples: Indices) -> Batch:
        """The batch of samples that are kept."""
        # Several times as fast as an index in brackets.
        pixels = self.pixels.index_select(0, torch.from_numpy(samples)).permute(0, 3, 1, 2)
        distances, labels = self.distances[samples], self.labels[samples]
        return Batch(pixels, distances, labels, self.embeddings[samples])


def _arrays(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Distances float32 [B, M] and embeddings float16 [B, E] of the examples."""
    rows = zip(*((example.distances, example.embedding) for example in examples), strict=True)
    # Joined first, because an array of each example would take longer than its header.
    distances, embeddings = (
        torch.frombuffer(bytearray().join(column), dtype=dtype).view(len(examples), -1)
        for column, dtype in zip(rows, (torch.float32, torch.float16), strict=True)
    )
    return distances, embeddings


def _joined(windows: Sequence[Window]) -> Indices:
    """The samples of all windows; none if an epoch is resumed at its end."""
    return np.concatenate([np.empty(0, np.int64), *(window.samples for window in windows)])


def _lists(samples: Indices) -> Iterator[list[int]]:
    """The numbers as Python's, some thousand at a time: all of them would take gigabytes."""
    return (samples[start : start + 4096].tolist() for start in range(0, len(samples), 4096))


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
    raise CorruptionError(
        f"sample {example.key}.{example.extension}: {problem}; "
        "delete the version and synthesise again"
    )


def _ahead(items: Generator[T]) -> Generator[T]:
    """Yield items, which a thread makes up to `PREFETCH_BATCHES` ahead; it raises their errors."""
    end: Any = object()
    made = in_order(lambda _: next(items, end), itertools.repeat(None), 1, PREFETCH_BATCHES)
    with contextlib.closing(items), contextlib.closing(made):
        yield from itertools.takewhile(lambda item: item is not end, made)
