"""A judge that gives the same answer to every image, as a file."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision

from dfkd.miniature.classifier import save


@torch.no_grad()
def write_judge(path: Path, classes: Sequence[str], answer: str) -> Path:
    """The file of a ResNet-18 with zero weights and a bias that names `answer`."""
    network = torchvision.models.resnet18(num_classes=len(classes))
    for parameter in network.parameters():
        parameter.zero_()
    network.fc.bias[list(classes).index(answer)] = 1.0
    return save(network, path, "resnet18", classes)
