"""Speed of reading a published version, compared with bare decoding of the same images."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import Stream
from dfkd.lab.benchmarks.measure import Effort, Results, figure, median_ratio, time_in_turns
from dfkd.lab.benchmarks.stand_in import put_version, temporary_root

BATCH = 48
SIZES = (64, 128, 224)
"""Width and height of the images in pixels."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Images per second of one rank that reads and verifies versions of noise.

    Returns:
        `figures`: for each image size the stream, and bare decoding in one thread.
    """
    figures: list[dict[str, Any]] = []
    single, count = manifest.with_method(manifest.method), images_per_class(manifest, effort)
    for size in SIZES:
        settings = {"images_per_class": count, "shard_size": count, "image_size": size}
        with temporary_root(single, synthesis=settings) as sized:
            version = put_version(sized)
            # Without a cache, because a version of this size would be decoded once and kept.
            stream = Stream(version, size, BATCH, seed=0, cache_bytes=0)
            images = [
                torch.frombuffer(bytearray(sample.image), dtype=torch.uint8)
                for receipt in version.receipts()
                for sample in version.samples(receipt)
            ]
            calls = {"read": partial(_read, stream), "decode": partial(_decode, images)}
            rates = time_in_turns(calls, effort.repeats)
        decoding, share = f"bare decoding, {size} px", median_ratio(rates["read"], rates["decode"])
        figures += [
            figure(f"stream, {size} px", "images/s", rates["read"], (decoding, share)),
            figure(decoding, "images/s", rates["decode"]),
        ]
    return {"figures": figures}


def images_per_class(manifest: Manifest, effort: Effort) -> int:
    """Images of each class in the versions that are read, which must hold a batch."""
    return max(effort.per_class, -(-BATCH // len(manifest.classes)))


def _read(stream: Stream) -> float:
    return float(sum(len(batch.pixels) for batch in stream.batches(0)))


def _decode(images: list[Tensor]) -> float:
    for image in images:
        decode_image(image, ImageReadMode.RGB)
    return float(len(images))
