"""Backbones of students: torchvision's ResNets and timm's models, and their initial weights."""

import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from dfkd.config.distillation import Distillation, weights_file
from dfkd.errors import ManifestError, WeightsError, one_line
from dfkd.models.weights.artifacts import Artifact, at_address, cached
from dfkd.models.weights.reading import load_into, match, read_state_dict

FIELD = "distillation.weights"
"""The manifest key of the initial weights, for errors."""

HEAD = "head|fc|classif|logits|last_linear"
"""Finds the names of a library's last layers, which a backbone lacks."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_backbone(
    config: Distillation, image_size: int, cache: str
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A backbone with its initial weights, and mean and deviation of its input's channels.

    Random weights come from torch's global generator. Arguments and errors are those of
    `dfkd.models.student.build`.
    """
    artifact = library_file(config)
    if config.architecture.startswith("timm:"):
        backbone, mean, std = _timm(config, image_size)
    else:
        _require_resnet(config.architecture)
        # Blocks of random weights start as the identity, as timm's do (arXiv:1706.02677, section
        # 5.1). After 300 steps of `dfkd pretrain` a ResNet-50 named 69 % of validation icons,
        # without it 35 %.
        backbone = torchvision.models.get_model(
            config.architecture, weights=None, zero_init_residual=True
        )
        backbone.fc = nn.Identity()
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    if artifact:
        _load_backbone(backbone, cached(FIELD, config.initial_weights, artifact.file, cache))
    elif file := weights_file(config.initial_weights):
        _load_backbone(backbone, file)
    return backbone, mean, std


def names_library(weights: str) -> bool:
    """Whether `weights` is a library's name of published weights."""
    return weights != "none" and not weights_file(weights)


def library_file(config: Distillation) -> Artifact | None:
    """The file with torchvision's initial weights; None if the weights are not torchvision's.

    Raises:
        ManifestError: torchvision has no such architecture.
        WeightsError: the library has no such weights of this architecture.
    """
    if not names_library(config.initial_weights):
        return None
    # timm knows no names, so any other than this would silently mean the same weights.
    known: dict[str, Any] = {"pretrained": None}
    if not config.architecture.startswith("timm:"):
        _require_resnet(config.architecture)
        known = dict(torchvision.models.get_model_weights(config.architecture).__members__)
    if config.initial_weights not in known:
        raise WeightsError(
            FIELD,
            f"must be none, a safetensors file, or {', '.join(known)}",
            config.initial_weights,
            "name one of these",
        )
    if known[config.initial_weights] is None:
        return None
    licence = "BSD-3-Clause (pytorch/vision); trained on ImageNet"
    return at_address(known[config.initial_weights].url, licence)


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


def _timm(
    config: Distillation, image_size: int
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A model of timm without its head, and mean and deviation of its input's channels."""
    import timm  # here, because the import takes seconds, and ResNets do not need it

    name = config.architecture.removeprefix("timm:")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"{name[:6]}*")[:5])
        raise ManifestError(
            "distillation.student", "must be a model of timm", name, f"near it: {near or 'none'}"
        )
    # A file of weights is loaded later, but the library's own only by building the model with them.
    library = names_library(config.initial_weights)
    try:
        settings = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # a model, but a tag of weights that it has not
        known = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise ManifestError(
            "distillation.student",
            "must be a model of timm, with a tag that it has or without one",
            name,
            f"choose among {known or 'none'}",
        ) from None
    options: dict[str, Any] = {"num_classes": 0}  # no head
    # A transformer has one position embedding per patch, so it must know the size in advance.
    if settings and settings.fixed_input_size:
        options["img_size"] = image_size
    try:
        model = timm.create_model(name, pretrained=library, **options)
    # Of an impossible size some models say so by a ValueError or an AssertionError.
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        if library:
            raise WeightsError(
                FIELD,
                f"the library could not load them ({one_line(error)})",
                config.initial_weights,
                "download them elsewhere and give the path of a safetensors file, or do without",
            ) from None
        raise ManifestError(
            "distillation.student",
            f"cannot be built for {image_size} px ({one_line(error)})",
            config.architecture,
            "choose another model or synthesis.image_size",
        ) from None
    mean, std = (settings.mean, settings.std) if settings else (IMAGENET_MEAN, IMAGENET_STD)
    return model, tuple(mean), tuple(std)


def _load_backbone(backbone: nn.Module, path: Path) -> None:
    """Fill a backbone from a library's state dict or from a student of this project."""
    state = read_state_dict(FIELD, path)
    if any(key.startswith("backbone.") for key in state):
        state = {
            key.removeprefix("backbone."): tensor
            for key, tensor in state.items()
            if key.startswith("backbone.")
        }
    expected = backbone.state_dict()
    # Keys of the file's head are dropped, because the student has a head of its own. No others are:
    # those of further blocks belong to a deeper network, such as a ResNet-34 for a ResNet-18.
    selected = {
        key: tensor
        for key, tensor in state.items()
        if key in expected or not re.search(HEAD, key.partition(".")[0])
    }
    for key in expected.keys() - selected.keys():
        if key.endswith("num_batches_tracked"):  # old files of PyTorch do not have this counter
            selected[key] = expected[key]
    remedy = "give weights of distillation.student"
    match(FIELD, path, selected, expected, remedy)
    load_into(FIELD, path, backbone, selected)


@torch.no_grad()
def feature_count(backbone: nn.Module, image_size: int, name: str) -> int:
    """Number of the backbone's features, found by a forward pass on one image.

    Libraries have no common attribute for it.
    """
    training = backbone.training
    backbone.eval()
    try:
        features = backbone(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ManifestError(
            "distillation.student",
            f"does not take images of {image_size} px ({one_line(error)})",
            name,
            "choose another model or synthesis.image_size",
        ) from None
    # Some transformers give a vector for each part of the image.
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise ManifestError(
            "distillation.student",
            "must give one vector of features for each image",
            name,
            "choose another model",
        )
    backbone.train(training)
    return features.shape[1]
