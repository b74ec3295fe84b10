"""The objective of a student of embeddings, whose classes can be replaced after the training."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import Batch
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.shards import Receipt
from dfkd.distillation.labels import MIN_STD, target_embeddings
from dfkd.errors import CorruptionError
from dfkd.models.student import Student, fold
from dfkd.models.teacher import Teacher, check_classes, distances
from dfkd.storage.base import in_order


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
    """Standard deviation of the version's distances, by which the added loss is divided; None adds
    none."""

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
        student, teacher = self._distances(outputs, targets)
        return loss + F.l1_loss(student, teacher) / self.distance_std

    def nearest(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest class [B] to each output and to each target."""
        student, teacher = self._distances(outputs, targets)
        return student.argmin(1), teacher.argmin(1)

    def _distances(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Distances [B, M] of student and teacher to the class texts."""
        embeddings = F.normalize(outputs * self.std + self.mean, dim=1)
        return distances(embeddings, self.texts), distances(targets, self.texts)

    def finish(self, student: Student) -> Student:
        """The finished student: its output is an embedding in the teacher's space."""
        return fold(student, self.mean, self.std).with_classes(self.texts)


def embedding_objective(manifest: Manifest, version: PublishedVersion) -> EmbeddingObjective:
    """The objective on a version: it reads all shards once, and encodes the class texts.

    The same version gives the same bits, so a resumed training goes on with the same objective.

    Raises:
        CorruptionError: a shard is not what was published.
        WeightsError: the teacher's files are missing or damaged.
    """
    mean, std = embedding_moments(version)
    both = manifest.distillation.target == "both"
    distance_std = max(float(version.manifest["label_std"]), MIN_STD) if both else None
    return EmbeddingObjective(mean, std, encode_classes(manifest, manifest.classes), distance_std)


def encode_classes(manifest: Manifest, classes: tuple[str, ...]) -> Tensor:
    """The unit text embeddings float32 [M, E] of any classes, on the CPU.

    They are made like those of the manifest's own classes (`distillation.texts`).

    Raises:
        ManifestError: the teacher cannot read or distinguish the names.
        WeightsError: the teacher's files are missing or damaged.
    """
    other = manifest.with_classes(classes)
    teacher = Teacher.load(manifest.teacher, torch.device("cpu"), cache=manifest.cache)
    check_classes(teacher, classes, manifest.teacher.template)
    return target_embeddings(other, teacher)


def embedding_moments(version: PublishedVersion) -> tuple[Tensor, float]:
    """The mean float32 [E] of a version's embeddings, and the root mean square around it.

    Raises:
        CorruptionError: a shard is not what was published, or embeddings differ in dimension.
    """

    def embeddings(receipt: Receipt) -> npt.NDArray[np.float64]:
        rows = [sample.arrays["embedding"] for sample in version.samples(receipt)]
        return np.stack(rows).astype(np.float64)

    count, total, squares = 0, np.zeros(()), 0.0
    try:
        for rows in in_order(embeddings, (each for each in version.shards if each.samples)):
            count, total = count + len(rows), total + rows.sum(axis=0)
            squares += float(np.square(rows).sum())
    except ValueError as error:
        raise CorruptionError(
            f"version {version.id}: embeddings differ in dimension ({error}); "
            "delete the version and synthesise again"
        ) from None
    mean = total / count
    std = float(np.sqrt((squares / count - np.square(mean).sum()) / mean.size))
    return torch.from_numpy(mean.astype(np.float32)), max(std, MIN_STD)
