"""The interface of what makes the pixels of a unit of work, and what it is given and returns."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.dataset.versions import Version
from dfkd.models.generators.generator import Generator
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import StoredPrompt

CPU_BATCH_SIZE = 8
"""Batch size on a CPU with `synthesis.batch_size: 0`; larger batches are hardly faster."""


@dataclass(frozen=True)
class SourceContext:
    """What a source is made from."""

    manifest: Manifest
    """Of a single method."""
    teacher: Teacher
    generator: Generator | None
    """The loaded generator; None for a source that follows no prompts."""
    version: Version
    """The version whose images are made. A source whose parts depend on each other may keep its
    state there, below `dfkd.storage.layout.STATES`, which is deleted at the publication."""


@dataclass(frozen=True)
class Synthesised:
    """B images in the order of their seeds, on the CPU."""

    pixels: Tensor
    """uint8 [B, H, W, 3]."""
    losses: Tensor
    """A loss of each image, float32 [B]: of latents that of the last step."""
    steps: Tensor
    """Steps that each image took, int64 [B]."""
    diverged: Tensor
    """bool [B], true if a loss was not finite; such an image must not be used."""


class ImageSource(ABC):
    """Makes the pixels of images; created with a `SourceContext` and the settings of its kind."""

    whole_part = False
    """Whether `make` must get all images of a part in one call."""
    batch_key = "synthesis.batch_size"
    """The key that bounds the memory of a batch, which an error names."""

    @abstractmethod
    def make(self, prompts: Sequence[StoredPrompt], seeds: Sequence[int]) -> Synthesised:
        """The images of a batch; each seed belongs to one image."""

    def limit(self, size: int) -> None:  # noqa: B027 - may stay empty
        """Expect at most `size` images in a batch from here on."""

    def begin(self, part: int) -> int:
        """The part with which to begin so that `part` becomes what it is in an uninterrupted run.

        Called once, before the first part of a unit. Parts before `part` are made again, without
        writing shards.
        """
        return part

    def finish(self, part: int) -> None:  # noqa: B027 - may stay empty
        """Called after each part, when all its shards are in storage."""


def initial_batch_size(manifest: Manifest, device: torch.device) -> int:
    """Images in the first batch; `ShardMaker` halves the number if memory is too small for it."""
    config = manifest.synthesis
    if device.type != "cuda":
        return config.batch_size or CPU_BATCH_SIZE
    most = config.shard_size
    if manifest.source.follows_prompts:
        most = manifest.generator.settings.gpu_batch_size or most
    return config.batch_size or min(config.shard_size, most)


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
