"""What the objective of a student of embeddings needs: moments of a version, and class texts."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.receipts import Receipt
from dfkd.distillation.label_moments import LabelMoments
from dfkd.distillation.labels import load_labeller, target_embeddings
from dfkd.distillation.objective import MIN_STD, EmbeddingObjective
from dfkd.storage.base import in_order


def embedding_objective(
    manifest: Manifest, version: PublishedVersion, moments: LabelMoments | None = None
) -> EmbeddingObjective:
    """The objective on a version; it encodes the class texts.

    The same version gives the same bits, so a resumed training goes on with the same objective.

    Args:
        moments: of the labeller; of the teacher, whose embeddings the version stores, None. Then
            all shards are read once.

    Raises:
        CorruptionError: a shard is not what was published.
        WeightsError: the labeller's files are missing or damaged.
    """
    if moments is None:
        mean, std = embedding_moments(version)
        spread = float(version.facts["label_std"])
    else:
        mean, std = moments.embedding_mean, max(moments.embedding_std, MIN_STD)
        _, spread = moments.of_distances
    distance_std = max(spread, MIN_STD) if manifest.distillation.target == "both" else None
    return EmbeddingObjective(mean, std, encode_classes(manifest, manifest.classes), distance_std)


def encode_classes(manifest: Manifest, classes: tuple[str, ...]) -> Tensor:
    """The unit text embeddings float32 [M, E] of any classes, on the CPU.

    They are made like those of the manifest's own classes (`distillation.texts`), by the labeller,
    of which a student of embeddings has one. One of these classes keeps its meaning.

    Raises:
        ManifestError: the labeller cannot read or distinguish the names.
        WeightsError: the labeller's files are missing or damaged.
    """
    other, (config,) = manifest.with_classes(classes), manifest.labellers.values()
    labeller = load_labeller(other, config, torch.device("cpu"))
    return target_embeddings(other, labeller, config.template)


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
