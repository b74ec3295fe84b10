"""The inputs of a method: the teacher as a classifier, the whole run, and one part of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dfkd.config.plan import derive_seed
from dfkd.models.teacher import Teacher
from dfkd.synthesis.latents import Synthesised


@dataclass(frozen=True)
class Classifier:
    """CLIP with class texts as a classifier from pixels to logits, which all methods expect.

    Attributes:
        teacher: the frozen teacher.
        texts: unit embeddings [M, E] of the vanilla class prompts.
    """

    teacher: Teacher
    texts: Tensor

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits, float32 [N, M], of pixels [N, 3, H, W] in [0, 1]; differentiable.

        They are `logit_scale * cosine`, on which CLIP's softmax was trained. The distances of Eq 4
        are not logits, and the weights, temperatures and rates of all four methods were published
        for logits. The mean over classes is subtracted for each image. A softmax does not depend on
        it, but a student trained by L1 would have to learn this offset, which carries no class.
        """
        scaled = self.teacher.logit_scale * self.teacher.encode_image(pixels) @ self.texts.T
        return scaled - scaled.mean(dim=1, keepdim=True)

    def whiten(self, pixels: Tensor) -> Tensor:
        """Normalise pixels as the teacher does: subtract its mean, divide by its deviation."""
        return (pixels - self.teacher.mean) / self.teacher.std

    def pixels(self, whitened: Tensor) -> Tensor:
        """The inverse of `whiten`; the result is in [0, 1] only if the input is in range."""
        return whitened * self.teacher.std + self.teacher.mean


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
    """The images of one part, or of a batch of it; with context and state it determines them.

    Attributes:
        labels: class of each image, int64 [N] on the teacher's device.
        seeds: one for each image; together they seed everything that the images share.
        image_size: side of an image in pixels.
        part: number of the part.
        before: number of images in all earlier parts.
    """

    labels: Tensor
    seeds: Sequence[int]
    image_size: int
    part: int = 0
    before: int = 0

    def draws(self, purpose: str) -> torch.Generator:
        """A generator for one purpose; on the CPU, so that all devices draw the same numbers."""
        return torch.Generator().manual_seed(derive_seed(purpose, *self.seeds))

    def select(self, rows: slice) -> "PartRequest":
        """The request for a subset of the images."""
        return PartRequest(self.labels[rows], self.seeds[rows], self.image_size)

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


def synthesised(pixels: Tensor, losses: Tensor, steps: int | Tensor) -> Synthesised:
    """The result of a method; an image whose loss is not finite counts as diverged.

    Args:
        pixels: uint8 [N, H, W, 3].
        losses: [N].
        steps: one number for all images, or [N].
    """
    losses = losses.detach().float().cpu()
    taken = torch.as_tensor(steps, dtype=torch.int64).expand(len(losses))
    return Synthesised(pixels, losses, taken, ~losses.isfinite())
