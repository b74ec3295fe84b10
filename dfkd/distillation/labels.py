"""Training targets: the teacher's distances from an image to the class texts (equation 4)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.distillation.distiller import TargetFunction
from dfkd.models.teacher import Teacher, distances
from dfkd.prompts.maker import class_texts, style_texts


def target_function(manifest: Manifest, device: torch.device) -> TargetFunction | None:
    """The targets that `distillation.labels` selects; None means the distances in the shards."""
    if manifest.distillation.labels == "stored":
        return None
    # Always float32: the distances to the classes differ by little (see Student.forward).
    teacher = Teacher.load(manifest.teacher, device, cache=manifest.cache)
    return live_targets(teacher, target_embeddings(manifest, teacher))


def target_embeddings(manifest: Manifest, teacher: Teacher) -> Tensor:
    """Unit text embeddings [M, E] that images are compared with.

    With `distillation.texts: template` these are the class prompts (equation 4); with `styles` each
    is the normalised mean over the class in every style of the dictionary and the class prompt.
    """
    plain = class_texts(manifest, teacher)
    if manifest.distillation.texts == "template":
        return plain
    styled = torch.stack([style_texts(manifest, teacher, name) for name in manifest.classes])
    return F.normalize(torch.cat([styled, plain[:, None]], dim=1).mean(dim=1), dim=1)


def live_targets(teacher: Teacher, text_embeddings: Tensor) -> TargetFunction:
    """Targets computed from each view: distances to unit `text_embeddings` [M, E]."""
    return lambda views: distances(teacher.encode_image(views), text_embeddings)
