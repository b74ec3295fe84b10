"""What standardises the labels of a version that its teacher did not give, measured on its images.

A version tells mean and standard deviation of its teacher's distances. For other labellers, one
pass over the version's images measures them, and the result is stored under `labels/`.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.receipts import Receipt
from dfkd.distillation.labels import load_ensemble
from dfkd.distillation.objective import MIN_STD
from dfkd.distillation.student_names import labellers_identity
from dfkd.errors import CorruptionError
from dfkd.models.labeller import distances
from dfkd.storage import layout
from dfkd.storage.base import MissingObject, Storage, in_order
from dfkd.utils.images import decode_image
from dfkd.utils.pixels import from_bytes
from dfkd.utils.progress import bar
from dfkd.utils.strict_json import canonical

SCHEMA = 1
"""To be increased with every code change that changes the moments of unchanged settings."""
BATCH = 64
"""Images that are labelled at once."""


@dataclass(frozen=True)
class LabelMoments:
    """Moments of the answers of K labellers on the images of a version."""

    mean: Tensor
    """float64 [K], mean of each labeller's distances over all images and classes."""
    covariance: Tensor
    """float64 [K, K], their covariance."""
    embedding_mean: Tensor
    """float32 [E], mean embedding of the first labeller."""
    embedding_std: float
    """Root mean square of all entries of (embedding - mean)."""

    @property
    def weights(self) -> tuple[float, ...]:
        """w_k of each labeller (`dfkd.distillation.labels`); they add up to 1."""
        inverse = 1 / self.covariance.diagonal().sqrt().clamp_min(MIN_STD)
        return tuple((inverse / inverse.sum()).tolist())

    @property
    def of_distances(self) -> tuple[float, float]:
        """Mean and standard deviation of the ensemble's distances."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return float(weights @ self.mean), math.sqrt(float(weights @ self.covariance @ weights))


def key_of(manifest: Manifest, version: PublishedVersion) -> str:
    """The object with the moments: the version, and a hash of all else that determines them.

    Raises:
        ManifestError, WeightsError: a labeller's files are missing.
    """
    identity = {
        "schema": SCHEMA,
        "labellers": labellers_identity(manifest),
        "texts": manifest.distillation.texts,
    }
    if manifest.distillation.texts == "styles":
        from dfkd.prompts.styles import dictionary

        identity["styles"] = [manifest.prompts.template, *dictionary(manifest.prompts)]
    digest = hashlib.sha256(canonical(identity)).hexdigest()[:12]
    return f"{layout.LABELS}{version.id}-{digest}.safetensors"


def read_moments(manifest: Manifest, version: PublishedVersion, root: Storage) -> LabelMoments:
    """The moments that `measure` has stored.

    Raises:
        MissingObject: it has not.
        CorruptionError: the object is damaged.
    """
    key, count = key_of(manifest, version), len(manifest.labellers)
    data = root.get(key)
    try:
        stored = safetensors.torch.load(data)
        found = LabelMoments(
            stored["mean"],
            stored["covariance"],
            stored["embedding_mean"],
            float(stored["embedding_std"]),
        )
        shapes = tuple(found.mean.shape), tuple(found.covariance.shape)
        if shapes != ((count,), (count, count)) or not all(
            bool(torch.isfinite(each).all()) for each in stored.values()
        ):
            raise ValueError
    except (SafetensorError, KeyError, ValueError):
        raise CorruptionError(
            f"{root.location(key)}: is not what was written; delete it and distil again"
        ) from None
    return found


def measure(
    manifest: Manifest, version: PublishedVersion, root: Storage, device: torch.device
) -> LabelMoments:
    """The moments of a version, which are stored; a pass over its images unless they already are.

    Raises:
        CorruptionError: a shard is not what was published, or the stored object is damaged.
        ManifestError, WeightsError: as `load_ensemble`.
    """
    try:
        return read_moments(manifest, version, root)
    except MissingObject:
        pass
    ensemble = load_ensemble(manifest, device)
    K, size = len(ensemble.labellers), manifest.synthesis.image_size

    def images(receipt: Receipt) -> npt.NDArray[np.uint8]:
        """The images [N, S, S, 3] of a shard."""
        samples = version.samples(receipt)
        return np.stack([each.decoded(lambda data: decode_image(data, size)) for each in samples])

    count, entries = 0, 0
    total, products = torch.zeros(K).double(), torch.zeros(K, K).double()
    vectors, squares = torch.zeros(ensemble.texts[0].shape[1]).double(), 0.0
    title = f"labels of {', '.join(manifest.labellers)}"
    filled = (each for each in version.receipts() if each.samples)
    with bar(title, version.facts["samples"], "img") as progress, torch.inference_mode():
        for shard in in_order(images, filled):
            for chunk in torch.from_numpy(shard).split(BATCH):
                pixels = from_bytes(chunk.to(device)).contiguous()
                embeddings = [each.encode_image(pixels) for each in ensemble.labellers]
                rows = torch.stack(
                    [
                        distances(embedding, texts).flatten().double().cpu()
                        for embedding, texts in zip(embeddings, ensemble.texts, strict=True)
                    ]
                )
                total, products = total + rows.sum(dim=1), products + rows @ rows.T
                first = embeddings[0].double().cpu()
                vectors, squares = vectors + first.sum(dim=0), squares + float(first.square().sum())
                count, entries = count + len(chunk), entries + rows.shape[1]
                progress.update(len(chunk))
    mean, embedding_mean = total / entries, vectors / count
    spread = squares / count - float(embedding_mean.square().sum())
    stored = {
        "mean": mean,
        "covariance": products / entries - torch.outer(mean, mean),
        "embedding_mean": embedding_mean.float(),
        "embedding_std": torch.tensor(math.sqrt(max(spread / len(embedding_mean), 0.0))).double(),
    }
    root.put_if_absent(key_of(manifest, version), safetensors.torch.save(stored))
    return read_moments(manifest, version, root)


def moments_of(manifest: Manifest, version: PublishedVersion, root: Storage) -> LabelMoments | None:
    """What `measure` has stored, or None where the teacher alone labels, of which a version tells.

    Raises:
        MissingObject, CorruptionError: as `read_moments`.
    """
    if manifest.distillation.labelled_by_teacher:
        return None
    return read_moments(manifest, version, root)
