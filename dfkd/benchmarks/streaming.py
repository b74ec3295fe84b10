"""How fast a published version is read, beside bare decoding of the same bytes on one core."""

import hashlib
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_image

from dfkd.benchmarks.measure import Call, Figure, quotient, turns
from dfkd.benchmarks.scratch import changed, scratch
from dfkd.benchmarks.standin import put_version
from dfkd.dataset import PublishedVersion
from dfkd.manifest import Manifest
from dfkd.storage import open_storage
from dfkd.streaming import Stream

BATCH = 48
SIZES = (64, 128, 224)
"""Pixels a side."""


def measure(manifest: Manifest, per_class: int, repeats: int) -> dict[str, Any]:
    """Images a second of one rank that reads and verifies versions of noise, one an image size.

    Args:
        manifest: whose classes and storage, a disk or an S3 server, are taken.
        per_class: images of each class.

    Returns:
        `figures`: for each size the stream, bare decoding in one thread, and reading with sha256.
    """
    figures = []
    for size in SIZES:
        with scratch(_sized(manifest, size, per_class)) as sized:
            version = put_version(sized, open_storage(sized.storage.root))
            figures += _figures(version, size, repeats)
    return {"figures": [figure.as_dict() for figure in figures]}


def _sized(manifest: Manifest, size: int, per_class: int) -> Manifest:
    return changed(
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

    found = turns({"read": read, "decode": decode, "raw": _raw(version)}, repeats)
    decoding, reading = f"bare decoding, {size} px", f"reading and sha256, {size} px"
    return [
        Figure(
            f"stream, {size} px",
            "images/s",
            found["read"],
            decoding,
            quotient(found["read"], found["decode"]),
        ),
        Figure(decoding, "images/s", found["decode"]),
        Figure(reading, "B/s", found["raw"]),
    ]


def _raw(version: PublishedVersion) -> Call:
    """Fetch all shards and hash them; its units are bytes."""

    def call() -> float:
        total = 0
        for receipt in version.shards:
            data = version.home.get(receipt.key)
            hashlib.sha256(data).hexdigest()
            total += len(data)
        return float(total)

    return call
