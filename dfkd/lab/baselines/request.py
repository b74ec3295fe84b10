"""What a conventional method is asked for, part by part."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dfkd.config.hashing import derive_seed


@dataclass(frozen=True)
class RunContext:
    """The whole run, which a method makes part after part.

    Attributes:
        seed: seed of everything that the parts share.
        images: number of images of all parts together.
        image_size: side of an image in pixels.
        earlier: returns the stored images of a finished part by its number, uint8 [N, H, W, 3].
    """

    seed: int
    images: int
    image_size: int
    earlier: Callable[[int], Tensor]

    def seed_of(self, purpose: str) -> int:
        """The seed of one network, or of anything else that the parts share."""
        return derive_seed(purpose, self.seed)


@dataclass(frozen=True)
class PartRequest:
    """What a part, or a batch of it, is to hold.

    The images follow from the request, the `RunContext` and the state after the part before.

    Attributes:
        labels: class of each image, int64 [N] on the teacher's device.
        seeds: one for each image; together they seed everything that the images share.
        part: number of the part.
        before: number of images in all earlier parts.
    """

    labels: Tensor
    seeds: Sequence[int]
    part: int = 0
    before: int = 0

    def make_rng(self, purpose: str) -> torch.Generator:
        """A generator for one purpose; on the CPU, so that all devices draw the same numbers."""
        return torch.Generator().manual_seed(derive_seed(purpose, *self.seeds))

    def select(self, rows: slice) -> "PartRequest":
        """The request for a subset of the images."""
        before = self.before + rows.indices(len(self.seeds))[0]
        return PartRequest(self.labels[rows], self.seeds[rows], self.part, before)

    def rounds(self, total: int, context: RunContext) -> range:
        """The rounds of this part, when the images of a run share `total` rounds evenly."""
        first, last = self.before, self.before + len(self.seeds)
        return range(total * first // context.images, total * last // context.images)


def even_batches(count: int, size: int) -> list[slice]:
    """Slices that cut `count` images into the fewest batches of at most `size`, evenly.

    The batches are even, because a small last one would have different batch-norm statistics.
    """
    number = math.ceil(count / size)
    edges = [math.ceil(count * i / number) for i in range(number + 1)]
    return [slice(*pair) for pair in pairwise(edges)]
