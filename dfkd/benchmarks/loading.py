"""Speed of reading a published version, and how well an epoch mixes the classes.

Reading is compared with bare decoding of the same images, mixing with uniform shuffling.
"""

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image

from dfkd.benchmarks.measure import (
    Effort,
    Figure,
    Results,
    compared_with_peer,
    median_ratio,
    time_in_turns,
)
from dfkd.benchmarks.stand_in import put_version, temporary_root
from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import BUFFER_BYTES, Stream
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.sampling_order import Indices, reading_order, run_bounds, run_length, shuffled

BATCH = 48
SIZES = (64, 128, 224)
"""Width and height of the images in pixels."""
CLASSES = {7: 3000, 65: 3000, 345: 300}
"""Images of each class by number of classes: PACS, Office-Home and DomainNet at full size."""
SHARD, IMAGE_BYTES, MIXED_BATCH, EPOCHS = 100, 100_000, 128, 3
"""Images in a shard, bytes of an image, batch size, and counted epochs of `mixing`."""
QUANTITIES = (("a class's share varies", "%"), ("absent classes", "a batch"))
"""Name and unit of the figures of `_evenness`."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Images per second of one rank that reads and verifies versions of noise.

    Returns:
        `figures`: for each image size the stream, and bare decoding in one thread; for each number
        of classes the figures of `mixing`.
    """
    figures = [figure for classes in CLASSES for figure in mixing(classes)]
    single, count = manifest.with_method(manifest.method), images_per_class(manifest, effort)
    for size in SIZES:
        settings = {"images_per_class": count, "shard_size": count, "image_size": size}
        with temporary_root(single, synthesis=settings) as sized:
            figures += _reading_figures(put_version(sized), size, effort.repeats)
    return {"figures": figures}


def images_per_class(manifest: Manifest, effort: Effort) -> int:
    """Images of each class in the versions that are read, which must hold a batch."""
    return max(effort.per_class, -(-BATCH // len(manifest.classes)))


def _reading_figures(version: PublishedVersion, size: int, repeats: int) -> list[Figure]:
    """Rates of the stream and of decoding, measured in turns."""
    # Without a cache, because a version of this size would be decoded once and kept.
    stream = Stream(version, size, BATCH, seed=0, cache_bytes=0)
    images = [
        torch.frombuffer(bytearray(sample.image), dtype=torch.uint8)
        for receipt in version.shards
        for sample in version.samples(receipt)
    ]

    def read() -> float:
        return float(sum(len(batch.pixels) for batch in stream.batches(0)))

    def decode() -> float:
        for image in images:
            decode_image(image, ImageReadMode.RGB)
        return float(len(images))

    rates = time_in_turns({"read": read, "decode": decode}, repeats)
    decoding, share = f"bare decoding, {size} px", median_ratio(rates["read"], rates["decode"])
    return [
        Figure(f"stream, {size} px", "images/s", rates["read"], decoding, share),
        Figure(decoding, "images/s", rates["decode"]),
    ]


def mixing(classes: int) -> list[Figure]:
    """How evenly batches hold the classes in three orders: runs, whole shards, and uniform.

    Nothing is read: the order of an epoch is enough to count the classes of its batches. A shard
    holds one class, and the shuffle buffer holds a part of the images.

    Args:
        classes: number of classes, a key of `CLASSES`.
    """
    buffer = BUFFER_BYTES // IMAGE_BYTES
    per_class = CLASSES[classes]
    counts = [SHARD] * (classes * per_class // SHARD)
    # Runs of one image in random order are uniform shuffling, so they need no buffer.
    lengths = {"runs": run_length(buffer, MIXED_BATCH), "whole shards": SHARD, "uniform": 1}
    evenness: dict[str, list[tuple[float, float]]] = {name: [] for name in lengths}
    for epoch in range(EPOCHS):
        generator = np.random.default_rng(epoch)
        for name, length in lengths.items():
            order = reading_order(run_bounds(counts, length), generator)
            if name != "uniform":
                order = shuffled(order, buffer, generator)
            labels = order[: len(order) // MIXED_BATCH * MIXED_BATCH] // per_class
            evenness[name].append(_evenness(labels.reshape(-1, MIXED_BATCH), classes))
    figures: list[Figure] = []
    for number, (quantity, unit) in enumerate(QUANTITIES):
        values = {
            f"{quantity}, {classes} classes, {name}": tuple(pair[number] for pair in pairs)
            for name, pairs in evenness.items()
        }
        *others, uniform = values
        # With few classes none is ever absent from a batch, so there is nothing to compare.
        if min(values[uniform]):
            figures += [compared_with_peer(uniform, name, unit, values) for name in others]
            figures.append(Figure(uniform, unit, values[uniform]))
    return figures


def _evenness(labels: Indices, classes: int) -> tuple[float, float]:
    """How evenly batches hold the classes.

    Args:
        labels: the class of each image [batches, batch size].
        classes: number of classes.

    Returns:
        The standard deviation over batches of a class's share of a batch, in percent; and the mean
        number of classes that a batch lacks.
    """
    counts = np.stack([np.bincount(row, minlength=classes) for row in labels])
    deviation = np.sqrt(counts.var(axis=0).mean()) / labels.shape[1]
    return 100 * float(deviation), float((counts == 0).sum(axis=1).mean())
