"""Speed of reading a published version, compared with bare decoding of the same images."""

import torch
from torchvision.io import ImageReadMode, decode_image

from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import PublishedVersion
from dfkd.lab.benchmarks.measure import Effort, Figure, Results, median_ratio, time_in_turns
from dfkd.lab.benchmarks.stand_in import put_version, temporary_root

BATCH = 48
SIZES = (64, 128, 224)
"""Width and height of the images in pixels."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Images per second of one rank that reads and verifies versions of noise.

    Returns:
        `figures`: for each image size the stream, and bare decoding in one thread.
    """
    figures: list[Figure] = []
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
        for receipt in version.receipts()
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
