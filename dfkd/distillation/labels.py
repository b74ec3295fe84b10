"""Training targets of a student: the teacher's distances to the class texts, or its embedding."""

from collections.abc import Callable

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from dfkd.config.manifest import Manifest
from dfkd.models.teacher import Teacher, distances
from dfkd.prompts.styles import (
    check_styled_prompts,
    class_text_embeddings,
    style_text_embeddings,
)

TargetFunction = Callable[[Tensor], Tensor]
"""Maps views [B, 3, H, W] float32 in [0, 1] to the teacher's distances [B, M] or embeddings [B, E],
float32."""


def target_function(manifest: Manifest, device: torch.device) -> TargetFunction | None:
    """The targets of augmented views; None for what the shards store.

    Raises:
        ManifestError: see `target_embeddings`.
        WeightsError: the teacher's files are missing or damaged.
    """
    if manifest.distillation.stored_labels:
        return None
    # Always float32: distances to different classes differ by a few hundredths, and bfloat16 has
    # steps of 0.004 near their usual value.
    teacher = Teacher.load(manifest.teacher, device, cache=manifest.cache)
    fold_batch_norms(teacher.visual)
    if manifest.distillation.embeds:
        return teacher.encode_image
    return live_targets(teacher, target_embeddings(manifest, teacher))


def target_embeddings(manifest: Manifest, teacher: Teacher) -> Tensor:
    """The unit text embeddings float32 [M, E] that images are compared with.

    With `distillation.texts: template` they are the class prompts (equation 4), with `styles` an
    ensemble: each class' mean over its class prompt and the styles of the dictionary.

    Raises:
        ManifestError: a prompt in a style is longer than the teacher's context.
    """
    plain = class_text_embeddings(manifest, teacher)
    if manifest.distillation.texts == "template":
        return plain
    check_styled_prompts(manifest, teacher)
    styled = torch.stack(
        [style_text_embeddings(manifest, teacher, each) for each in manifest.meanings]
    )
    # A mean of unit vectors is shorter than 1, but spherical distances need unit vectors.
    return F.normalize(torch.cat([styled, plain[:, None]], dim=1).mean(dim=1), dim=1)


def live_targets(teacher: Teacher, text_embeddings: Tensor) -> TargetFunction:
    """The distances of the views themselves to unit text embeddings [M, E]."""
    return lambda views: distances(teacher.encode_image(views), text_embeddings)


def fold_batch_norms(tower: nn.Module) -> None:
    """Put the batch norms of a CLIP's ResNet in eval mode into the convolutions before them.

    Its outputs stay the same up to rounding, and it no longer reads and writes all features once
    more for each norm. Other towers are left alone, because names of modules do not tell whether a
    norm comes right after a convolution.
    """
    if not isinstance(tower, ModifiedResNet):
        return
    pairs = [(f"conv{number}", f"bn{number}") for number in (1, 2, 3)] + [("0", "1")]
    for module in list(tower.modules()):
        children = dict(module.named_children())
        for convolution, norm in pairs:
            if isinstance(children.get(norm), nn.BatchNorm2d):
                folded = fuse_conv_bn_eval(children[convolution], children[norm])
                setattr(module, convolution, folded)
                setattr(module, norm, nn.Identity())
