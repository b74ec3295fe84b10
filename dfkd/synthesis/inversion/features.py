"""Taps on a teacher's image tower: features of its stages, and the raw embedding."""

import re
from typing import Any

from torch import Tensor

from dfkd.models.batch_norm import Taps, layers
from dfkd.models.teacher import Teacher


def stage_taps(teacher: Teacher) -> Taps[Tensor]:
    """Taps on the input of each stage of a ResNet tower, averaged over positions: [N, C].

    In a tower without stages the taps are on the input of each batch-norm layer.
    """
    visual: Any = teacher.model.visual
    named = list(visual.named_modules())
    stages = [module for name, module in named if re.fullmatch(r"(.*\.)?layer\d", name)]
    tapped = stages or layers(visual)
    return Taps(tapped, lambda module, entering, output: entering.float().flatten(2).mean(dim=2))


def embedding_taps(teacher: Teacher) -> Taps[Tensor]:
    """A tap on the image embedding [N, E] before it is normalised."""
    visual: Any = teacher.model.visual
    return Taps([visual], lambda module, entering, output: output.float())
