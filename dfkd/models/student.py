"""Students: a library's backbone and one linear layer, which map pixels to distances.

The layer gives the distances themselves, or an embedding in the labeller's space (a student of
`distillation.target: embedding` or `both`), whose distances to the class texts follow from it.
"""

import copy
import hashlib
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, Field, TypeAdapter
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.config.distillation import Distillation
from dfkd.config.hashing import derive_seed
from dfkd.config.paths import CACHE
from dfkd.errors import CorruptionError, ManifestError, one_line
from dfkd.models.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_backbone,
    feature_count,
)
from dfkd.storage import layout
from dfkd.storage.base import SMALL_OBJECT, MissingObject, Storage
from dfkd.utils.device import seeded
from dfkd.utils.strict_json import canonical, parse, read_as
from dfkd.utils.types import Name, Sha256, Size

WEIGHTS, CARD = layout.STUDENT_WEIGHTS, layout.STUDENT_CARD


class Student(nn.Module):
    """Maps pixels float32 [N, 3, H, W] in [0, 1] to distances float32 [N, M]; SMALLER is closer.

    Attributes:
        texts: float32 [M, E], the unit text embeddings of the classes of a student of embeddings;
            None for a student of distances, and for one of embeddings while it is trained.
    """

    mean: Tensor
    std: Tensor
    texts: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Linear,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("texts", None)

    def forward(self, pixels: Tensor) -> Tensor:
        """Distances [N, M]; in training what the head learns, which may be standardised."""
        if self.texts is None:
            return self.output(pixels)
        # `dfkd.models.labeller.distances`, 2 * atan2(|a - b|, |a + b|)^2, is angle^2 / 2. This form
        # has operators that ONNX has too.
        cosines = self.embed(pixels) @ self.texts.T
        return cosines.clamp(-1, 1).acos().square() / 2

    def embed(self, pixels: Tensor) -> Tensor:
        """Unit embeddings [N, E] in the labeller's space, of a student of embeddings."""
        return F.normalize(self.output(pixels), dim=1)

    def output(self, pixels: Tensor) -> Tensor:
        """The head's output: distances [N, M], or embeddings [N, E] that are not normalised."""
        features, device = self.features(pixels), pixels.device.type
        if not torch.is_autocast_enabled(device):
            output: Tensor = self.head(features)
        else:
            # The head stays in float32, because distances to classes differ by a few hundredths,
            # and bfloat16 has steps of 0.004 near their usual value of 0.87.
            with torch.autocast(device, enabled=False):
                output = self.head(features.float())
        return output

    def with_classes(self, texts: Tensor | None) -> "Student":
        """A copy of a student of embeddings for other classes.

        Args:
            texts: unit text embeddings [M, E] of the classes; with None the copy returns the
                head's output.
        """
        other = copy.deepcopy(self)
        other.texts = None if texts is None else texts.to(self.mean.device)
        return other

    def features(self, pixels: Tensor) -> Tensor:
        """The backbone's features [N, F]."""
        features: Tensor = self.backbone((pixels - self.mean) / self.std)
        return features


def build(
    config: Distillation,
    outputs: int,
    image_size: int,
    seed: int,
    cache: str = CACHE,
) -> Student:
    """An untrained student; its random weights depend only on `seed`.

    Args:
        outputs: M, the number of classes, or E for a student of embeddings.
        cache: the folder with torchvision's published weights.

    Raises:
        ManifestError: no such architecture, or it has no such stem.
        WeightsError: the initial weights are missing or belong to another architecture.
    """
    with seeded(derive_seed("student", seed)):
        backbone, mean, std = build_backbone(config, image_size, cache)
        head = nn.Linear(feature_count(backbone, image_size, config.architecture), outputs)
    return Student(backbone, head, mean, std)


def rescale_output(student: Student, shift: float | Tensor, scale: float) -> Student:
    """A copy whose head returns `scale * output + shift`.

    It undoes the standardisation of the targets, and turns distances into logits (`scale` < 0).

    Args:
        shift: a scalar, or a vector with an entry for each output.
    """
    rescaled = copy.deepcopy(student)
    with torch.no_grad():
        rescaled.head.weight.mul_(scale)
        rescaled.head.bias.mul_(scale).add_(shift)
    return rescaled


def card(
    config: Distillation, classes: tuple[str, ...], image_size: int, embedding_dim: int = 0
) -> dict[str, Any]:
    """The card of a student: the settings that `load_student` needs, and facts for readers.

    Args:
        embedding_dim: E of a student of embeddings; 0 for a student of distances.
    """
    # A student of distances has neither.
    embedding = {"target": config.target, "embedding_dim": embedding_dim} if embedding_dim else {}
    return {
        "schema": 1,
        "architecture": config.architecture,
        "classes": list(classes),
        "image_size": image_size,
        "input": "float32 RGB [N, 3, image_size, image_size] in [0, 1]; the model normalises",
        "output": "squared spherical distances [N, classes]; smaller is closer, predict by argmin",
        **embedding,
    }


def save_student(storage: Storage, student: Student, meta: dict[str, Any]) -> bool:
    """Write the weights and then the card `meta`; returns False if there was a student already."""
    tensors = {
        key: tensor.detach().cpu().contiguous() for key, tensor in student.state_dict().items()
    }
    data = safetensors.torch.save(tensors)
    if not storage.put_if_absent(WEIGHTS, data):
        # An attempt that died before its card, or a concurrent one, has written weights. The card
        # must describe these.
        data = storage.get(WEIGHTS)
    stored = {**meta, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return storage.put_if_absent(CARD, canonical(stored))


def load_student(
    storage: Storage, device: torch.device | str = "cpu"
) -> tuple[Student, dict[str, Any]]:
    """A finished student in evaluation mode, and its card.

    Args:
        storage: the student's folder.

    Raises:
        CorruptionError: an object is missing or differs from what was written.
    """
    meta = read_card(storage)
    try:
        data = storage.get(WEIGHTS)
    except MissingObject:
        raise _damaged(storage.location(WEIGHTS), "is missing") from None
    if hashlib.sha256(data).hexdigest() != meta["sha256"]:
        raise _damaged(storage.location(WEIGHTS), "sha256 differs from student.json")
    config = Distillation(student=(meta["architecture"],), weights=("none",), warmup_epochs=0)
    classes, width = len(meta["classes"]), meta.get("embedding_dim", 0)
    try:
        student = build(config, width or classes, meta["image_size"], seed=0)
    except ManifestError as error:  # its remedy is for a manifest
        raise _damaged(storage.location(CARD), one_line(error)) from None
    if width:
        student.texts = torch.empty(classes, width)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise _damaged(storage.location(WEIGHTS), one_line(error)) from None
    # Another release of timm may build another network under the name.
    expected = {key: value.shape for key, value in student.state_dict().items()}
    if {key: value.shape for key, value in tensors.items()} != expected:
        raise _damaged(storage.location(WEIGHTS), "has other tensors than its architecture")
    student.load_state_dict(tensors)
    return student.eval().requires_grad_(False).to(device), meta


class _StudentCard(BaseModel, strict=True):
    """The keys of a card that the code relies on; a card has more."""

    schema_: Literal[1] = Field(alias="schema")
    architecture: Name
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1)]
    embedding_dim: Size = 0
    sha256: Sha256
    bytes: Size
    version: Sha256 | None = None
    """Fingerprint of the data set that it learned from; a trained student has one."""


_CARD = TypeAdapter(_StudentCard)


def read_card(storage: Storage) -> dict[str, Any]:
    """The card of a finished student.

    Raises:
        CorruptionError: the card is missing or differs from what was written.
    """
    data = storage.get(CARD, SMALL_OBJECT)
    try:
        read_as(_CARD, data)
    except ValueError as error:
        raise _damaged(storage.location(CARD), str(error)) from None
    meta: dict[str, Any] = parse(data)
    return meta


def _damaged(location: str, problem: str) -> CorruptionError:
    """The error about an object of a finished student."""
    return CorruptionError(f"{location}: {problem}; delete the student's folder and distil again")
