"""Fine-tuning on a few labelled images: cross-entropy in two phases (section 4.3). Torch only.

A classifier here is a `Student` whose outputs are logits: LARGER is likelier. All starts have this
one form, so that nothing but their first weights tells them apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.augmentation import augment
from dfkd.device import autocast
from dfkd.distillation import Course, make_optimizer
from dfkd.plan import derive_seed
from dfkd.seeding import seeded
from dfkd.student import Student, fold
from dfkd.training import FewShot


@dataclass(frozen=True)
class Labelled:
    """Images and their real classes."""

    pixels: Tensor
    """uint8 [N, 3, S, S], on the CPU."""
    labels: Tensor
    """int64 [N]"""

    def __len__(self) -> int:
        return len(self.labels)


def from_distances(student: Student, temperature: float) -> Student:
    """A copy whose logits are -distance / temperature: it answers as the student does.

    A fresh head would throw away what the student knows of its classes, and with it the left end
    of the curve. With the teacher's own temperature softmax of these logits is, to first order,
    CLIP's softmax of scaled cosines, so that training begins from calibrated probabilities.
    """
    return fold(student, mean=0.0, std=-1 / temperature)


@torch.no_grad()
def embed(classifier: Student, pixels: Tensor, places: Tensor, batch_size: int) -> Tensor:
    """Features float32 [P, F] of a backbone in eval mode, on its device.

    Args:
        pixels: uint8 [N, 3, S, S], of which `batch_size` at a time are looked at.
        places: int64 [P], of the images in `pixels`.
    """
    classifier.eval()
    device = classifier.mean.device
    parts = places.split(batch_size)
    return torch.cat([classifier.features(_scaled(pixels[part], device)) for part in parts])


@torch.no_grad()
def answers(classifier: Student, pixels: Tensor, places: Tensor, batch_size: int) -> Tensor:
    """What `likeliest` says of some images; arguments as for `embed`."""
    return likeliest(classifier, embed(classifier, pixels, places, batch_size))


@torch.no_grad()
def likeliest(classifier: Student, features: Tensor) -> Tensor:
    """The likeliest class int64 [P] on the CPU, -1 where the logits are not finite.

    Args:
        features: float32 [P, F], as `embed` gives them.
    """
    logits: Tensor = classifier.head(features)
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


def tune(
    classifier: Student, shots: Labelled, config: FewShot, seed: int, features: Tensor | None = None
) -> None:
    """Train a classifier in place; afterwards it is in eval mode.

    First `warmup_epochs` of the head alone on features that do not change, then `epochs` of
    everything on augmented views, with batch statistics. The phases share no momentum.

    Args:
        classifier: on the device to work on.
        shots: two images or more.
        seed: of batches, views and drop-path; the global generator is left as it was.
        features: of `shots`, float32 [N, F]; None trains the backbone from the first step on.
    """
    size = min(config.batch_size, len(shots))
    course = Course.of(config, -(-len(shots) // size))
    for step, chosen in enumerate(batches(len(shots), size, course.total, seed)):
        warming = features if step < course.warmup else None
        if step in (0, course.warmup):
            optimizer = _enter_phase(classifier, config, warming is None)
        if warming is not None:
            logits = classifier.head(warming[chosen])
        else:
            logits = _logits(classifier, shots.pixels[chosen], config, seed, step)
        loss = F.cross_entropy(logits, shots.labels[chosen].to(logits.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = course.rate(config, step)
        optimizer.step()
    classifier.eval()


def _enter_phase(classifier: Student, config: FewShot, whole: bool) -> torch.optim.Optimizer:
    classifier.train(whole)
    classifier.backbone.requires_grad_(whole)
    classifier.head.requires_grad_(True)
    return make_optimizer(config, [p for p in classifier.parameters() if p.requires_grad])


def _logits(classifier: Student, pixels: Tensor, config: FewShot, seed: int, step: int) -> Tensor:
    """float32 [B, M] of the views of one step; the same each time."""
    device = classifier.mean.device
    seed = derive_seed("view", seed, step)
    views = _scaled(pixels, device)
    if config.augmentation:
        views = augment(views, config.augmentation, torch.Generator(device).manual_seed(seed))
    with seeded(seed, device), autocast(device, config.precision):
        logits: Tensor = classifier(views.contiguous(memory_format=torch.channels_last))
    return logits.float()
