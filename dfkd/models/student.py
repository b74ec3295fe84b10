"""Students: a library's backbone and one linear layer, which map pixels to distances.

The layer gives the distances themselves, or an embedding in the teacher's space (a student of
`distillation.target: embedding`), whose distances to the class texts follow from it.
"""

import contextlib
import copy
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
import torchvision
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.config.bundled import CACHE
from dfkd.config.distillation import Distillation
from dfkd.config.hashing import derive_seed
from dfkd.errors import CorruptionError, ManifestError, WeightsError, one_line
from dfkd.models.small_convolutions import SmallMaps
from dfkd.models.weights.artifacts import Artifact, at_address, cached
from dfkd.models.weights.reading import load_into, match, read_state_dict
from dfkd.storage.base import Storage
from dfkd.utils import strict_json
from dfkd.utils.device import seeded
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import Sha256, Size, first_problem

WEIGHTS, CARD = "student.safetensors", "student.json"
"""The two objects of a finished student. The card is written last, so it marks completion."""

MAX_SIDE = 4096
"""Maximal image size in pixels that a card may state."""

MAX_WIDTH = 1 << 16
"""Maximal dimension of embeddings that a card may state."""

FIELD = "distillation.weights"
"""Default manifest key for errors about the initial weights."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        texts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("texts", texts)

    def forward(self, pixels: Tensor) -> Tensor:
        """Distances [N, M]; in training what the head learns, which may be standardised."""
        if self.texts is None:
            return self.output(pixels)
        # `dfkd.models.teacher.distances`, 2 * atan2(|a - b|, |a + b|)^2, is angle^2 / 2. This form
        # has operators that ONNX has too.
        cosines = self.embed(pixels) @ self.texts.T
        return cosines.clamp(-1, 1).acos().square() / 2

    def embed(self, pixels: Tensor) -> Tensor:
        """Unit embeddings [N, E] in the teacher's space, of a student of embeddings."""
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
        normal = (pixels - self.mean) / self.std
        # Not in evaluation, because an exported model must contain ordinary convolutions.
        as_products = self.training and pixels.device.type == "cpu"
        with SmallMaps() if as_products else contextlib.nullcontext():
            features: Tensor = self.backbone(normal)
        return features


def build(
    config: Distillation,
    outputs: int,
    image_size: int,
    seed: int,
    cache: str = CACHE,
    field: str = FIELD,
) -> Student:
    """An untrained student; its random weights depend only on `seed`.

    Args:
        outputs: M, the number of classes, or E for a student of embeddings.
        cache: the folder with torchvision's published weights.
        field: the manifest key that an error about the initial weights names.

    Raises:
        ManifestError: no such architecture, or it has no such stem.
        WeightsError: the initial weights are missing or belong to another architecture.
    """
    with seeded(derive_seed("student", seed)):
        if config.student.startswith("timm:"):
            backbone, mean, std = _timm(config, image_size, field)
        else:
            backbone, mean, std = _resnet(config, image_size, field)
        if artifact := published(config, field):
            _load_backbone(backbone, cached(field, config.weights, artifact, cache), field)
        elif names_file(config.weights):
            _load_backbone(backbone, Path(config.weights), field)
        head = nn.Linear(_feature_count(backbone, image_size, config.student), outputs)
    return Student(backbone, head, mean, std)


def names_file(weights: str) -> bool:
    """Whether `weights` is the path of a file instead of a library's name."""
    return "/" in weights or "." in weights


def names_library(weights: str) -> bool:
    """Whether `weights` is a library's name of published weights."""
    return weights != "none" and not names_file(weights)


def published(config: Distillation, field: str = FIELD) -> Artifact | None:
    """The file with torchvision's initial weights; None if the weights are not torchvision's.

    Args:
        field: the manifest key that an error about the weights names.

    Raises:
        ManifestError: torchvision has no such architecture.
        WeightsError: torchvision has no such weights of this architecture.
    """
    if config.student.startswith("timm:") or not names_library(config.weights):
        return None
    _require_resnet(config.student)
    known = torchvision.models.get_model_weights(config.student).__members__
    if config.weights not in known:
        raise WeightsError(
            field,
            f"must be none, a safetensors file, or {', '.join(known)}",
            config.weights,
            "name one of these",
        )
    licence = "BSD-3-Clause (pytorch/vision); trained on ImageNet"
    return at_address(known[config.weights].url, licence)


def _require_resnet(student: str) -> None:
    """Raise `ManifestError` unless torchvision has a ResNet of this name."""
    names = torchvision.models.list_models(module=torchvision.models)
    resnets = [name for name in names if "resne" in name]
    if student not in resnets:
        raise ManifestError(
            "distillation.student",
            "must be a torchvision ResNet or timm:NAME",
            student,
            f"use one of {', '.join(resnets)}",
        )


def _resnet(
    config: Distillation, image_size: int, field: str
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A torchvision ResNet without its head, and mean and deviation of its input's channels."""
    _require_resnet(config.student)
    model = torchvision.models.get_model(config.student, weights=None)
    if config.stem == "small" and names_library(config.weights):
        raise ManifestError(
            "distillation.stem",
            "the library's weights have the imagenet stem",
            config.stem,
            f"set distillation.stem=imagenet or change {field}",
        )
    if config.stem == "small":
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, _stride(image_size), 1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    return model, IMAGENET_MEAN, IMAGENET_STD


def _stride(image_size: int) -> int:
    """Stride of the small stem: 1 for images up to 48 px, 2 for larger ones.

    The last feature map is then about 4 x 4. At 64 px a stride of 1 would cost four times as much
    as a stride of 2, and fifteen times as much as the imagenet stem.
    """
    return 1 if image_size <= 48 else 2


def _not_loaded(config: Distillation, field: str, error: Exception) -> WeightsError:
    """The error about a library that has not given its weights."""
    return WeightsError(
        field,
        f"the library could not load them ({one_line(error)})",
        config.weights,
        "download them elsewhere and give the path of a safetensors file, or do without",
    )


def _timm(
    config: Distillation, image_size: int, field: str
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A model of timm without its head, and mean and deviation of its input's channels."""
    import timm  # here, because the import takes seconds, and ResNets do not need it

    name = config.student.removeprefix("timm:")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"{name[:6]}*")[:5])
        raise ManifestError(
            "distillation.student", "must be a model of timm", name, f"near it: {near or 'none'}"
        )
    if config.stem == "small":
        raise ManifestError(
            "distillation.stem",
            "small is for torchvision's ResNets",
            config.student,
            "set distillation.stem=imagenet",
        )
    # A file of weights is loaded later, but the library's own only by building the model with them.
    library = names_library(config.weights)
    settings = timm.models.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": 0}  # no head
    # A transformer has one position embedding per patch, so it must know the size in advance.
    if settings and settings.fixed_input_size:
        options["img_size"] = image_size
    try:
        model = timm.create_model(name, pretrained=library, **options)
    except (OSError, RuntimeError) as error:
        if library:
            raise _not_loaded(config, field, error) from None
        raise ManifestError(
            "distillation.student",
            f"cannot be built for {image_size} px ({one_line(error)})",
            config.student,
            "choose another model or synthesis.image_size",
        ) from None
    mean, std = (settings.mean, settings.std) if settings else (IMAGENET_MEAN, IMAGENET_STD)
    return model, tuple(mean), tuple(std)


def _load_backbone(backbone: nn.Module, path: Path, field: str) -> None:
    """Fill a backbone from a library's state dict or from a student of this project."""
    state = read_state_dict(field, path)
    if any(key.startswith("backbone.") for key in state):
        state = {
            key.removeprefix("backbone."): tensor
            for key, tensor in state.items()
            if key.startswith("backbone.")
        }
    expected = backbone.state_dict()
    # Keys of the file's head are dropped, because the student has a head of its own.
    selected = {key: tensor for key, tensor in state.items() if key in expected}
    for key in expected.keys() - selected.keys():
        if key.endswith("num_batches_tracked"):  # old files of PyTorch do not have this counter
            selected[key] = expected[key]
    remedy = "give weights of distillation.student with distillation.stem"
    match(field, path, selected, expected, remedy)
    load_into(field, path, backbone, selected)


@torch.no_grad()
def _feature_count(backbone: nn.Module, image_size: int, name: str) -> int:
    """Number of the backbone's features, found by a forward pass on one image.

    Libraries have no common attribute for it.
    """
    training = backbone.training
    backbone.eval()
    try:
        shape = backbone(torch.zeros(1, 3, image_size, image_size)).shape
    except (RuntimeError, AssertionError) as error:
        raise ManifestError(
            "distillation.student",
            f"does not take images of {image_size} px ({one_line(error)})",
            name,
            "choose another model or synthesis.image_size",
        ) from None
    backbone.train(training)
    return int(shape[1])


def fold(student: Student, mean: float | Tensor, std: float) -> Student:
    """A copy that returns `std * output + mean`: distances instead of standardised ones.

    Args:
        mean: a scalar, or a vector with an entry for each output.
    """
    folded = copy.deepcopy(student)
    with torch.no_grad():
        folded.head.weight.mul_(std)
        folded.head.bias.mul_(std).add_(mean)
    return folded


def card(
    config: Distillation, classes: tuple[str, ...], image_size: int, embedding_dim: int = 0
) -> dict[str, Any]:
    """The card of a student: the settings that `load_student` needs, and facts for readers.

    Args:
        embedding_dim: E of a student of embeddings; 0 for a student of distances.
    """
    # Cards of students of distances are older than the two keys and do without.
    embedding = {"target": config.target, "embedding_dim": embedding_dim} if embedding_dim else {}
    return {
        "schema": 1,
        "architecture": config.student,
        "stem": config.stem,
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
    data = storage.get(WEIGHTS)
    if hashlib.sha256(data).hexdigest() != meta["sha256"]:
        raise _damaged(storage.location(WEIGHTS), f"sha256 differs from {CARD}")
    config = Distillation(
        student=meta["architecture"], stem=meta["stem"], weights="none", warmup_epochs=0
    )
    classes, width = len(meta["classes"]), meta.get("embedding_dim", 0)
    student = build(config, width or classes, meta["image_size"], seed=0)
    if width:
        student.texts = torch.empty(classes, width)
    try:
        student.load_state_dict(safetensors.torch.load(data))
    except (SafetensorError, RuntimeError) as error:
        raise _damaged(storage.location(WEIGHTS), one_line(error)) from None
    return student.eval().requires_grad_(False).to(device), meta


class _StudentCard(BaseModel, strict=True):
    """The keys of a card that the code relies on; a card has more."""

    schema_: Literal[1] = Field(alias="schema")
    architecture: str
    stem: Literal["imagenet", "small"]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    embedding_dim: Annotated[int, Field(ge=0, le=MAX_WIDTH)] = 0
    sha256: Sha256
    bytes: Size


def read_card(storage: Storage) -> dict[str, Any]:
    """The card of a finished student.

    Raises:
        CorruptionError: the card is missing or differs from what was written.
    """
    data = storage.get(CARD)
    try:
        meta: dict[str, Any] = strict_json.parse(data)
        _StudentCard.model_validate_json(data)
    except ValidationError as error:
        key, rule, _ = first_problem(error)
        raise _damaged(storage.location(CARD), f"{key}: {rule}") from None
    except ValueError as error:
        raise _damaged(storage.location(CARD), str(error)) from None
    return meta


def _damaged(location: str, problem: str) -> CorruptionError:
    """The error about an object of a finished student."""
    return CorruptionError(f"{location}: {problem}; delete the student's folder and distil again")
