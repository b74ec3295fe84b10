"""What the objective of a student of embeddings needs: moments of a version, and class texts."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.receipts import Receipt
from dfkd.distillation.labels import target_embeddings
from dfkd.distillation.objective import MIN_STD, EmbeddingObjective
from dfkd.models.teacher import Teacher, check_classes
from dfkd.storage.base import in_order


def embedding_objective(manifest: Manifest, version: PublishedVersion) -> EmbeddingObjective:
    """The objective on a version: it reads all shards once, and encodes the class texts.

    The same version gives the same bits, so a resumed training goes on with the same objective.

    Raises:
        CorruptionError: a shard is not what was published.
        WeightsError: the teacher's files are missing or damaged.
    """
    mean, std = embedding_moments(version)
    both = manifest.distillation.target == "both"
    distance_std = max(float(version.facts["label_std"]), MIN_STD) if both else None
    return EmbeddingObjective(mean, std, encode_classes(manifest, manifest.classes), distance_std)


def encode_classes(manifest: Manifest, classes: tuple[str, ...]) -> Tensor:
    """The unit text embeddings float32 [M, E] of any classes, on the CPU.

    They are made like those of the manifest's own classes (`distillation.texts`), and one of these
    keeps its meaning.

    Raises:
        ManifestError: the teacher cannot read or distinguish the names.
        WeightsError: the teacher's files are missing or damaged.
    """
    other = manifest.with_classes(classes)
    teacher = Teacher.load(manifest.teacher, torch.device("cpu"), cache=manifest.cache)
    check_classes(teacher, other.meanings, manifest.teacher.template)
    return target_embeddings(other, teacher)


def embedding_moments(version: PublishedVersion) -> tuple[Tensor, float]:
    """The mean float32 [E] of a version's embeddings, and the root mean square around it.

    Raises:
        CorruptionError: a shard is not what was published.
    """

    def embeddings(receipt: Receipt) -> npt.NDArray[np.float64]:
        rows = [sample.arrays["embedding"] for sample in version.samples(receipt)]
        return np.stack(rows).astype(np.float64)

    count, total, squares = 0, np.zeros(()), 0.0
    for rows in in_order(embeddings, (each for each in version.receipts() if each.samples)):
        count, total = count + len(rows), total + rows.sum(axis=0)
        squares += float(np.square(rows).sum())
    mean = total / count
    std = float(np.sqrt((squares / count - np.square(mean).sum()) / mean.size))
    return torch.from_numpy(mean.astype(np.float32)), max(std, MIN_STD)
