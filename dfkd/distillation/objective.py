"""What a student learns: distances to the class texts (equation 5), or the teacher's embedding.

Both are standardised for the training, and `finish` puts the inverse into the student's head.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.dataset.batch import Batch
from dfkd.models.labeller import distances
from dfkd.models.student import Student, rescale_output

MIN_STD = 1e-6
"""Least standard deviation that targets are divided by: those of one image may be equal."""


@dataclass(frozen=True)
class DistanceObjective:
    """L1 loss on targets (distance - shift) / divisor; the default changes nothing.

    With `standardise: true` these are mean and standard deviation of the version's distances.
    After the training `rescale_output` puts its inverse into the student's head.
    """

    shift: float = 0.0
    divisor: float = 1.0

    @classmethod
    def of(
        cls, standardise: bool | tuple[float, float], mean: float, std: float
    ) -> "DistanceObjective":
        """The objective that `distillation.standardise` asks for.

        Args:
            standardise: mean and standard deviation of the targets; true stands for (0, 1), false
                leaves the distances as they are.
            mean: the mean of the version's distances.
            std: their standard deviation.
        """
        if standardise is False:
            return cls()
        target_mean, target_std = (0.0, 1.0) if standardise is True else standardise
        # (d - mean) / std * target_std + target_mean, written as one shift and one division.
        factor = max(std, MIN_STD) / target_std
        return cls(mean - factor * target_mean, factor)

    def stored(self, batch: Batch) -> Tensor:
        """The targets that are stored with the images: distances [B, M]."""
        return batch.distances

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs float32 [B, M] on the teacher's distances [B, M] (equation 5)."""
        # A CLIP's distances to all classes differ by a few hundredths. L1 gradients do not shrink
        # with the error, so the usual learning rates would overshoot such targets.
        return F.l1_loss(outputs, (targets - self.shift) / self.divisor)

    def nearest(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest class [B] to each output and to each target."""
        return outputs.argmin(1), targets.argmin(1)

    def finish(self, student: Student) -> Student:
        """The finished student: its output is a distance."""
        return rescale_output(student, self.shift, self.divisor)


@dataclass(frozen=True)
class EmbeddingObjective:
    """Mean squared error on the teacher's embeddings, standardised as (embedding - mean) / std.

    The embeddings of a CLIP lie in a narrow cone: what distinguishes images is small beside the
    mean of all. With `distillation.target: both` the L1 loss on the distances to the class texts
    (equation 5) is added, because the squared error spends most on directions in which the classes
    do not differ.
    """

    mean: Tensor
    """float32 [E], mean of the embeddings that a version stores."""
    std: float
    """Root mean square of all entries of (embedding - mean)."""
    texts: Tensor
    """float32 [M, E], unit text embeddings of the classes."""
    distance_std: float | None = None
    """Standard deviation of the version's distances. If it is set, `loss` adds the L1 loss on
    distances, divided by it."""

    def to(self, device: torch.device) -> "EmbeddingObjective":
        """The same on another device."""
        return replace(self, mean=self.mean.to(device), texts=self.texts.to(device))

    def stored(self, batch: Batch) -> Tensor:
        """The targets that are stored with the images: embeddings [B, E]."""
        return batch.embeddings

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs float32 [B, E] on the teacher's embeddings [B, E], a scalar."""
        loss = F.mse_loss(outputs, (targets - self.mean) / self.std)
        if self.distance_std is None:
            return loss
        # The mean of the distances cancels, so standardising divides the difference by their std.
        student = distances(F.normalize(outputs * self.std + self.mean, dim=1), self.texts)
        return loss + F.l1_loss(student, distances(targets, self.texts)) / self.distance_std

    def nearest(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest class [B] to each output and to each target."""
        # Distances fall with the cosine, whose largest needs no exact arccosine and no unit vector.
        student, teacher = outputs * self.std + self.mean, targets
        return (student @ self.texts.T).argmax(1), (teacher @ self.texts.T).argmax(1)

    def finish(self, student: Student) -> Student:
        """The finished student: its output is an embedding in the labeller's space."""
        return rescale_output(student, self.mean, self.std).with_classes(self.texts)


Objective = DistanceObjective | EmbeddingObjective

RAW_DISTANCES = DistanceObjective()
"""The objective on the distances as they are."""
