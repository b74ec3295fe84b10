"""What the student is told of an image: the teacher's distances to texts of the classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.distillation import Label
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts, style_texts
from dfkd.streaming import Batch
from dfkd.teacher import Teacher, distances


def label_source(manifest: Manifest, device: torch.device) -> Label | None:
    """What `distillation.labels` names; None are the distances that the shards hold."""
    config = manifest.distillation
    if config.labels == "stored":
        return None
    # float32 whatever the student's precision: classes differ by little (see Student.forward).
    teacher = Teacher.load(manifest.teacher, device, cache=manifest.cache)
    texts = target_texts(manifest, teacher)
    if config.labels == "live":
        return live(teacher, texts)
    return restyled(texts, style_directions(manifest, teacher))


def target_texts(manifest: Manifest, teacher: Teacher) -> Tensor:
    """Unit embeddings [M, E] that images are compared with: the class prompts (equation 4), or an
    ensemble, each class' mean over the style dictionary and its class prompt."""
    plain = class_texts(manifest, teacher)
    if manifest.distillation.texts == "template":
        return plain
    styled = torch.stack([style_texts(manifest, teacher, name) for name in manifest.classes])
    return F.normalize(torch.cat([styled, plain[:, None]], dim=1).mean(dim=1), dim=1)


def style_directions(manifest: Manifest, teacher: Teacher) -> Tensor:
    """How each of S styles moves a text [S, E]: its mean over classes, from the class prompts."""
    styled = torch.stack([style_texts(manifest, teacher, name) for name in manifest.classes])
    return (styled - class_texts(manifest, teacher)[:, None]).mean(dim=0)


def live(teacher: Teacher, texts: Tensor) -> Label:
    """Distances of the views themselves to texts [M, E]."""

    def label(pixels: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        return distances(teacher.encode_image(pixels), texts)

    return label


def restyled(texts: Tensor, directions: Tensor) -> Label:
    """Distances of the stored embeddings, each moved up to once along a style of directions [S, E].

    Nothing is encoded: an epoch costs as little as with stored distances.
    """

    def label(pixels: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        count = len(batch.embeddings)
        styles = torch.randint(len(directions), (count,), generator=generator)
        reach = torch.rand(count, 1, generator=generator).to(texts.device)
        moved = batch.embeddings.to(texts.device) + reach * directions[styles.to(texts.device)]
        return distances(F.normalize(moved, dim=1), texts)

    return label
