"""Fine-tuning on a few labelled images: cross-entropy at a low rate (section 4.3). Torch only.

A classifier here is a `Student` whose outputs are logits: LARGER is likelier. All starts have this
one form, so that nothing but their first weights, and the rates that suit these, tells them apart.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.distillation import Augmentation, FewShot, Start
from dfkd.config.plan import derive_seed
from dfkd.distillation.augmentation import augment
from dfkd.models.student import Student, fold
from dfkd.utils.seeding import seeded

BATCH = 32
AUGMENTATION: tuple[Augmentation, ...] = ("flip", "crop")

TEMPERATURE = 0.01
"""CLIP's own: it divides cosines by it, as a student's distances are divided here."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and their real classes."""

    pixels: Tensor
    """uint8 [N, 3, S, S], on the CPU."""
    labels: Tensor
    """int64 [N]"""

    def __len__(self) -> int:
        return len(self.labels)


def from_distances(student: Student) -> Student:
    """A copy whose logits are -distance / `TEMPERATURE`: it answers as the student does.

    A fresh head would throw away what the student knows of its classes. Softmax of these logits is,
    to first order, CLIP's softmax of scaled cosines, so that training begins from calibrated
    probabilities.
    """
    return fold(student, mean=0.0, std=-1 / TEMPERATURE)


@torch.no_grad()
def features_of(classifier: Student, pixels: Tensor, places: Tensor, batch_size: int) -> Tensor:
    """Features float32 [P, F] of a backbone in eval mode, on its device.

    Args:
        classifier: which is put into eval mode.
        pixels: uint8 [N, 3, S, S], of which `batch_size` at a time are looked at.
        places: int64 [P], of the images in `pixels`.
    """
    classifier.eval()
    device = classifier.mean.device
    parts = places.split(batch_size)
    return torch.cat([classifier.features(_scaled(pixels[part], device)) for part in parts])


@torch.no_grad()
def predict(classifier: Student, pixels: Tensor, places: Tensor, batch_size: int) -> Tensor:
    """The likeliest class int64 [P] on the CPU, -1 where the logits are not finite.

    Arguments as for `features_of`.
    """
    logits: Tensor = classifier.head(features_of(classifier, pixels, places, batch_size))
    finite = torch.isfinite(logits).all(dim=1)
    return torch.where(finite, logits.argmax(dim=1), -1).cpu()


def _scaled(pixels: Tensor, device: torch.device) -> Tensor:
    moved = pixels.to(device).float().div_(255)
    return moved.contiguous(memory_format=torch.channels_last)


def batches(images: int, size: int, steps: int, seed: int) -> Tensor:
    """int64 [steps, size]: the images of each step, one permutation of all of them after another.

    Each batch is full, whatever the number of images: batch norm needs two images or more.
    """
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-steps * size // images)
    order = [torch.randperm(images, generator=generator) for _ in range(rounds)]
    return torch.cat(order)[: steps * size].view(steps, size)


def fine_tune(
    classifier: Student, shots: LabelledImages, config: FewShot, seed: int, start: Start
) -> None:
    """Train all of a classifier in place, on augmented views; afterwards it is in eval mode.

    Weights that have learned something move at `learning_rate`, random ones at `fresh_rate`. A
    backbone that has learned keeps its batch-norm statistics, and has no drop-path: those of a
    handful of images are too far from what its weights were trained with.

    Args:
        classifier: on the device to work on.
        shots: two images or more.
        seed: of batches, views and drop-path; the global generator is left as it was.
        start: what the classifier's weights are.
    """
    classifier.train()
    classifier.backbone.train(start == "scratch")
    classifier.requires_grad_(True)
    size = min(BATCH, len(shots))
    steps = config.epochs * -(-len(shots) // size)
    peaks = learning_rates(config, start)
    parts = (classifier.backbone, classifier.head)
    groups = [{"params": list(part.parameters())} for part in parts]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    for step, chosen in enumerate(batches(len(shots), size, steps, seed)):
        logits = _logits(classifier, shots.pixels[chosen], derive_seed("view", seed, step))
        loss = F.cross_entropy(logits, shots.labels[chosen].to(logits.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
    classifier.eval()


def learning_rates(config: FewShot, start: Start) -> tuple[float, float]:
    """The first learning rates of a start's backbone and head."""
    known, fresh = config.learning_rate, config.fresh_rate
    return {"student": (known, known), "library": (known, fresh), "scratch": (fresh, fresh)}[start]


def _logits(classifier: Student, pixels: Tensor, seed: int) -> Tensor:
    """float32 [B, M] of the views of one step; the same each time."""
    device = classifier.mean.device
    generator = torch.Generator(device).manual_seed(seed)
    views = augment(_scaled(pixels, device), AUGMENTATION, generator)
    with seeded(seed, device):
        logits: Tensor = classifier(views.contiguous(memory_format=torch.channels_last))
    return logits
