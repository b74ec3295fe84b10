"""What the student is told of an image: the teacher's distances to texts of the classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.distillation.distiller import TargetFunction
from dfkd.models.teacher import Teacher, distances
from dfkd.prompts.maker import class_text_embeddings, style_text_embeddings


def target_function(manifest: Manifest, device: torch.device) -> TargetFunction | None:
    """What `distillation.labels` names; None are the distances that the shards hold."""
    if manifest.distillation.labels == "stored":
        return None
    # float32 whatever the student's precision: classes differ by little (see Student.forward).
    teacher = Teacher.load(manifest.teacher, device, cache=manifest.cache)
    return live_targets(teacher, target_embeddings(manifest, teacher))


def target_embeddings(manifest: Manifest, teacher: Teacher) -> Tensor:
    """Unit embeddings [M, E] that images are compared with: the class prompts (equation 4), or an
    ensemble, each class' mean over the style dictionary and its class prompt."""
    plain = class_text_embeddings(manifest, teacher)
    if manifest.distillation.texts == "template":
        return plain
    styled = torch.stack(
        [style_text_embeddings(manifest, teacher, name) for name in manifest.classes]
    )
    return F.normalize(torch.cat([styled, plain[:, None]], dim=1).mean(dim=1), dim=1)


def live_targets(teacher: Teacher, texts: Tensor) -> TargetFunction:
    """Distances of the views themselves to texts [M, E]."""
    return lambda views: distances(teacher.encode_image(views), texts)
