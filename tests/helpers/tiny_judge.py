"""A judge that gives the same answer to every image, as a file."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dfkd.config.distillation import Distillation
from dfkd.lab.miniature.classifier import save
from dfkd.models.student import build


@torch.no_grad()
def write_judge(path: Path, classes: Sequence[str], answer: str) -> Path:
    """The file of a ResNet-18 with zero weights and a bias that names `answer`."""
    config = Distillation(student="resnet18", weights="none", warmup_epochs=0)
    network = build(config, len(classes), 64, seed=0)
    for parameter in network.parameters():
        parameter.zero_()
    network.head.bias[list(classes).index(answer)] = 1.0
    return save(network, path, "resnet18", classes)
