"""What a method is given: the teacher as a classifier, the whole run, and one part of it."""

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
    """CLIP with class texts as what these methods were published for: pixels to logits.

    Attributes:
        teacher: frozen.
        texts: unit embeddings [M, E] of the vanilla class prompts.
    """

    teacher: Teacher
    texts: Tensor

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [N, M] float32 of pixels [N, 3, H, W] in [0, 1], differentiable.

        `logit_scale * cosine`, which is what CLIP's softmax was trained on: the distances of Eq 4
        have no softmax, and all four methods were published, with their weights, temperatures and
        rates, for logits. Each image's mean over classes is taken off. No softmax sees that, but a
        student that learns them by L1 would have to find an offset that tells of no class.
        """
        scaled = self.teacher.logit_scale * self.teacher.encode_image(pixels) @ self.texts.T
        return scaled - scaled.mean(dim=1, keepdim=True)

    def whiten(self, pixels: Tensor) -> Tensor:
        """Pixels as the teacher's layers see them: less its mean, by its standard deviation."""
        return (pixels - self.teacher.mean) / self.teacher.std

    def pixels(self, whitened: Tensor) -> Tensor:
        """What `whiten` gives `whitened` for; in [0, 1] only if that is in range."""
        return whitened * self.teacher.std + self.teacher.mean


@dataclass(frozen=True)
class RunContext:
    """The whole run, which a method makes part after part.

    Attributes:
        seed: of the networks that its parts share.
        images: of all parts together.
        image_size: pixels a side.
        earlier: gives the stored images of a finished part by its number, uint8 [N, H, W, 3].
    """

    seed: int
    images: int
    image_size: int
    earlier: Callable[[int], Tensor]

    def seed_of(self, purpose: str) -> int:
        """Of one network, or of anything else that parts share."""
        return derive_seed(purpose, self.seed)


@dataclass(frozen=True)
class PartRequest:
    """The images of one part, or of a batch of it. Same course, state and run, same images.

    Attributes:
        labels: class of each image, int64 [N] on the teacher's device.
        seeds: one for each image; together they are the seed of all that images share.
        image_size: pixels a side.
        part: its number.
        before: images of all parts before it.
    """

    labels: Tensor
    seeds: Sequence[int]
    image_size: int
    part: int = 0
    before: int = 0

    def draws(self, purpose: str) -> torch.Generator:
        """A source of random numbers, on the CPU so that devices draw alike; one a purpose."""
        return torch.Generator().manual_seed(derive_seed(purpose, *self.seeds))

    def select(self, rows: slice) -> "PartRequest":
        """The run that makes only these images."""
        return PartRequest(self.labels[rows], self.seeds[rows], self.image_size)

    def rounds(self, total: int, context: RunContext) -> range:
        """Of `total` rounds of the course, those in which this part is made."""
        first, last = self.before, self.before + len(self.seeds)
        return range(total * first // context.images, total * last // context.images)


def even_batches(count: int, size: int) -> list[slice]:
    """As few batches as possible of at most `size` of `count` images, as even as possible.

    A small rest would have batch-norm statistics of its own.
    """
    number = math.ceil(count / size)
    edges = [math.ceil(count * i / number) for i in range(number + 1)]
    return [slice(*pair) for pair in pairwise(edges)]


def synthesised(pixels: Tensor, losses: Tensor, steps: int | Tensor) -> Synthesised:
    """What a method gives back; an image whose loss is no number has diverged.

    Args:
        pixels: uint8 [N, H, W, 3].
        losses: [N].
        steps: of each image, or [N].
    """
    losses = losses.detach().float().cpu()
    taken = torch.as_tensor(steps, dtype=torch.int64).expand(len(losses))
    return Synthesised(pixels, losses, taken, ~losses.isfinite())
