"""What a teacher's image tower makes of a batch on the way: features, and the embedding."""

import re
from typing import Any

from torch import Tensor

from dfkd.models.batch_norm import Taps, layers
from dfkd.models.teacher import Teacher


def stage_taps(teacher: Teacher) -> Taps[Tensor]:
    """Taps on the mean over positions [N, C] of what enters each stage of a ResNet tower.

    Of a tower without stages, what enters each batch-norm layer.
    """
    visual: Any = teacher.model.visual
    named = list(visual.named_modules())
    stages = [module for name, module in named if re.fullmatch(r"(.*\.)?layer\d", name)]
    chosen = stages or layers(visual)
    return Taps(chosen, lambda module, seen, output: seen.float().flatten(2).mean(dim=2))


def embedding_taps(teacher: Teacher) -> Taps[Tensor]:
    """A tap on the image embedding [N, E] before it is normalised."""
    visual: Any = teacher.model.visual
    return Taps([visual], lambda module, seen, output: output.float())
