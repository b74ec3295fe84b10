"""How fast a published version is read, beside bare decoding of the same bytes on one core, and how
well an epoch mixes its classes, beside uniform shuffling.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image

from dfkd.benchmarks.measure import Call, Figure, median_ratio, time_in_turns
from dfkd.benchmarks.stand_in import put_version, replace_values, temporary_root
from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import BUFFER_BYTES, Stream
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.sampling_order import Indices, reading_order, run_bounds, run_length, shuffled
from dfkd.storage.local import open_storage

BATCH = 48
SIZES = (64, 128, 224)
"""Pixels a side."""
CLASSES = {7: 3000, 65: 3000, 345: 300}
"""How many, and the images of each: PACS, Office-Home and DomainNet at full size."""
SHARD, IMAGE_BYTES, MIXED_BATCH, EPOCHS = 100, 100_000, 128, 3
"""Of the orders whose batches are counted."""


def measure(manifest: Manifest, per_class: int, repeats: int) -> dict[str, Any]:
    """Images a second of one rank that reads and verifies versions of noise, one an image size.

    Args:
        manifest: whose classes and storage, a disk or an S3 server, are taken.
        per_class: images of each class.

    Returns:
        `figures`: for each size the stream, bare decoding in one thread, and reading with sha256;
        for each number of classes the figures of `mixing`.
    """
    figures = [figure for classes in CLASSES for figure in mixing(classes)]
    for size in SIZES:
        with temporary_root(_sized(manifest, size, per_class)) as sized:
            version = put_version(sized, open_storage(sized.storage.root))
            figures += _figures(version, size, repeats)
    return {"figures": [figure.as_dict() for figure in figures]}


def _sized(manifest: Manifest, size: int, per_class: int) -> Manifest:
    return replace_values(
        manifest.with_method(manifest.method),
        synthesis={"images_per_class": per_class, "shard_size": per_class, "image_size": size},
    )


def _figures(version: PublishedVersion, size: int, repeats: int) -> list[Figure]:
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

    found = time_in_turns({"read": read, "decode": decode, "raw": _read_and_hash(version)}, repeats)
    decoding, reading = f"bare decoding, {size} px", f"reading and sha256, {size} px"
    return [
        Figure(
            f"stream, {size} px",
            "images/s",
            found["read"],
            decoding,
            median_ratio(found["read"], found["decode"]),
        ),
        Figure(decoding, "images/s", found["decode"]),
        Figure(reading, "B/s", found["raw"]),
    ]


def mixing(classes: int) -> list[Figure]:
    """How evenly batches hold the classes: the stream's, of whole shards, and uniform shuffling's.

    Counted on orders alone. Shards hold one class, and the buffer a part of the images.
    """
    buffer = BUFFER_BYTES // IMAGE_BYTES
    each = CLASSES[classes]
    counts = [SHARD] * (classes * each // SHARD)
    lengths = {"runs": run_length(buffer, MIXED_BATCH), "whole shards": SHARD, "uniform": 1}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in lengths}
    for epoch in range(EPOCHS):
        generator = np.random.default_rng(epoch)
        for name, length in lengths.items():
            order = reading_order(run_bounds(counts, length), generator)
            if name != "uniform":
                order = shuffled(order, buffer, generator)
            labels = order[: len(order) // MIXED_BATCH * MIXED_BATCH] // each
            found[name].append(_evenness(labels.reshape(-1, MIXED_BATCH), classes))
    return [figure for place in (0, 1) for figure in _compared_with_uniform(found, place, classes)]


def _evenness(labels: Indices, classes: int) -> tuple[float, float]:
    """Of [batches, images]: standard deviation of a class's share in %, classes that are absent."""
    counts = np.stack([np.bincount(row, minlength=classes) for row in labels])
    deviation = np.sqrt(counts.var(axis=0).mean()) / labels.shape[1]
    return 100 * float(deviation), float((counts == 0).sum(axis=1).mean())


def _compared_with_uniform(
    found: Mapping[str, Sequence[tuple[float, float]]], place: int, classes: int
) -> Iterator[Figure]:
    what, unit = (("a class's share varies", "%"), ("absent classes", "a batch"))[place]
    values = {name: tuple(each[place] for each in pairs) for name, pairs in found.items()}
    uniform = values.pop("uniform")
    if not min(uniform):
        return  # no class is ever absent
    peer = f"{what}, {classes} classes, uniform"
    for name, some in values.items():
        ratio = median_ratio(some, uniform)
        yield Figure(f"{what}, {classes} classes, {name}", unit, some, peer=peer, ratio=ratio)
    yield Figure(peer, unit, uniform)


def _read_and_hash(version: PublishedVersion) -> Call:
    """Fetch all shards and hash them; its units are bytes."""

    def call() -> float:
        total = 0
        for receipt in version.shards:
            data = version.home.get(receipt.key)
            hashlib.sha256(data).hexdigest()
            total += len(data)
        return float(total)

    return call
