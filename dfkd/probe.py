"""The frozen warm-up as what it is, a linear probe: features once, then epochs of the head alone.

Only where nothing else changes from epoch to epoch: no augmentation, and labels that are stored.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.batch_norm import layers
from dfkd.device import autocast
from dfkd.plan import derive_seed
from dfkd.streaming import Batch, Stream
from dfkd.student import Student
from dfkd.training import Distillation

Agree = Callable[[nn.Module], None]
"""Makes the buffers of a module the mean over all ranks; with one rank, does nothing."""


LARGEST = 1 << 32
"""Bytes of features and labels, of all ranks together, that are worth keeping in memory."""


def can_probe(config: Distillation, images: int, width: int) -> bool:
    """Whether a frozen backbone sees the same images and labels every epoch, and they are few.

    Args:
        width: numbers that are kept of each image, its features and its distances.
    """
    small = 4 * images * width <= LARGEST
    return config.labels == "stored" and not config.augmentation and small


@dataclass(frozen=True)
class Probed:
    """A batch of features in the place of images; on the student's device."""

    features: Tensor
    """float32 [B, F]."""
    distances: Tensor
    """float32 [B, M]."""
    labels: Tensor
    """int64 [B], on the CPU."""


class Probe:
    """The features of all images that a rank sees in an epoch, from two passes over them.

    The first pass takes the batch-norm statistics of the images (the mean over batches), with which
    the second computes the features: a random backbone would not give normalised ones otherwise.
    """

    def __init__(
        self,
        student: Student,
        stream: Stream,
        config: Distillation,
        seed: int,
        agree: Agree = lambda module: None,
    ) -> None:
        """Look at the images; `student` is left in training mode with its new statistics."""
        self.seed, self.rank, self.rows = seed, stream.share.rank, stream.rows
        device = student.mean.device
        with torch.no_grad(), autocast(device, config.precision):
            _take_statistics(student, stream.batches(0))
            agree(student)
            student.eval()
            found = [
                Probed(features(student, batch), batch.distances.to(device), batch.labels)
                for batch in stream.batches(0)
            ]
            student.train()
        self.features = torch.cat([each.features for each in found])
        self.distances = torch.cat([each.distances for each in found])
        self.labels = torch.cat([each.labels for each in found])

    def batches(self, epoch: int, step: int = 0) -> Iterator[Probed]:
        """The batches of an epoch from `step` on: this rank's images in an order of their own."""
        seed = derive_seed("probe", self.seed, epoch, self.rank)
        order = torch.randperm(
            len(self.features), generator=torch.Generator().manual_seed(seed)
        ).split(self.rows)
        for rows in order[step:]:
            there = rows.to(self.features.device)
            yield Probed(self.features[there], self.distances[there], self.labels[rows])


def _take_statistics(student: Student, batches: Iterable[Batch]) -> None:
    """Give batch norm the mean statistics of some batches."""
    norms = layers(student)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # which is how torch spells the mean
    student.train()
    for batch in batches:
        features(student, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def features(student: Student, batch: Batch) -> Tensor:
    """What the backbone makes of a batch: float32 [B, F]; batch norm is as the student's mode."""
    pixels = batch.pixels.to(student.mean.device).float().div_(255)
    return student.features(pixels.contiguous(memory_format=torch.channels_last)).float()
