"""Fine-tuning on a few labelled images: cross-entropy at a low rate (section 4.3). Torch only.

A classifier here is a `Student` whose outputs are logits: larger is likelier. All starts have this
form, so they differ only in their initial weights and in the learning rates for these weights.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.config.distillation import Augmentation
from dfkd.config.hashing import derive_seed
from dfkd.distillation.augmentation import augment
from dfkd.lab.few_shot.settings import FewShot, Start
from dfkd.lab.few_shot.split import FewShotSplit
from dfkd.models.student import Student, rescale_output
from dfkd.utils.device import seeded
from dfkd.utils.pixels import from_batch

BATCH = 32
"""Images in a step, or all of them if there are fewer."""
ANSWERED = 64
"""Images that a classifier answers at once; 64 of 224 px fit into any GPU's memory."""
FRESH_FACTOR = 10.0
"""Learning rate of random weights, relative to that of trained ones. Random weights have far to go,
and at this rate they would spoil trained ones."""
AUGMENTATION: tuple[Augmentation, ...] = ("flip", "crop")

TEMPERATURE = 0.01
"""That of OpenAI's CLIP, which divides cosines; here it divides a student's distances, of any
teacher."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and their true classes."""

    pixels: Tensor
    """uint8 [N, 3, S, S], on the CPU."""
    labels: Tensor
    """Class indices int64 [N]."""

    def __len__(self) -> int:
        return len(self.labels)


def from_distances(student: Student) -> Student:
    """A copy whose outputs are logits with the same predictions: -distance / `TEMPERATURE`, or for
    a student of embeddings cosine x embedding length / `TEMPERATURE`.

    A new head would lose what the student knows about its classes. The softmax of these logits is
    sharper than CLIP's of scaled cosines, because at CLIP's angles a distance changes 1.3 to 1.4
    times as much as the cosine; only a linear function of distances can be a linear layer. The
    length of a student's embedding is about 1, and its products with the texts follow from its
    features by one linear layer.
    """
    if student.texts is None:
        return rescale_output(student, shift=0.0, scale=-1 / TEMPERATURE)
    classifier, head = student.with_classes(None), student.head
    # Without its random weights, which would come from the global generator.
    classifier.head = nn.utils.skip_init(
        nn.Linear, head.in_features, len(student.texts), device=student.mean.device
    )
    with torch.no_grad():
        classifier.head.weight.copy_(student.texts @ head.weight / TEMPERATURE)
        classifier.head.bias.copy_(student.texts @ head.bias / TEMPERATURE)
    return classifier


@torch.no_grad()
def features_of(classifier: Student, pixels: Tensor, indices: Tensor) -> Tensor:
    """Features float32 [P, F] of the classifier's backbone, on its device.

    Args:
        classifier: is put into eval mode.
        pixels: uint8 [N, 3, S, S]; `ANSWERED` of them are on the device at a time.
        indices: int64 [P], the images in `pixels` to use.
    """
    classifier.eval()
    device = classifier.mean.device
    parts = indices.split(ANSWERED)
    return torch.cat([classifier.features(_scaled(pixels[part], device)) for part in parts])


@torch.no_grad()
def predict(classifier: Student, pixels: Tensor, indices: Tensor) -> Tensor:
    """The predicted class int64 [P] on the CPU; -1 if the logits are not finite.

    The arguments are those of `features_of`.
    """
    logits: Tensor = classifier.head(features_of(classifier, pixels, indices))
    # `argmax` takes NaN for the largest logit, which would be an answer like any other.
    finite = torch.isfinite(logits).all(dim=1)
    return torch.where(finite, logits.argmax(dim=1), -1).cpu()


def _scaled(pixels: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, 3, S, S] as float32 in [0, 1] on `device`, channels last."""
    return from_batch(pixels, device).contiguous(memory_format=torch.channels_last)


def batches(images: int, size: int, steps: int, seed: int) -> Tensor:
    """The images of each step, int64 [steps, size]: random permutations, one after the other.

    All batches are full, because batch norm needs at least two images.
    """
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-steps * size // images)
    # Whole permutations, so each image is seen as often as any other, give or take once.
    order = [torch.randperm(images, generator=generator) for _ in range(rounds)]
    return torch.cat(order)[: steps * size].view(steps, size)


def tune_on_split(
    classifier: Student, images: LabelledImages, split: FewShotSplit, config: FewShot, start: Start
) -> None:
    """`fine_tune` with the training images of a split of `images` and its seed."""
    train = torch.tensor(split.train)
    shots = LabelledImages(images.pixels[train], images.labels[train])
    fine_tune(classifier, shots, config, split.seed, start)


def fine_tune(
    classifier: Student, shots: LabelledImages, config: FewShot, seed: int, start: Start
) -> None:
    """Train all weights of a classifier in place on augmented views; leaves it in eval mode.

    Trained weights use `learning_rate`, random ones `FRESH_FACTOR` times as much. A trained
    backbone keeps its batch-norm statistics and has no drop-path, because the statistics of a
    handful of images are too far from those that its weights were trained with.

    Args:
        classifier: on the device to work on.
        shots: the training images, at least two.
        seed: seed of batches, views and drop-path; torch's global generator is not changed.
        start: the kind of the classifier's initial weights.
    """
    classifier.train()
    # Evaluation mode keeps the statistics of a trained backbone.
    classifier.backbone.train(start == "scratch")
    classifier.requires_grad_(True)
    size = min(BATCH, len(shots))
    # The last batch of an epoch is filled from the next permutation.
    steps = config.epochs * -(-len(shots) // size)
    peaks = learning_rates(config, start)
    parts = (classifier.backbone, classifier.head)
    groups = [{"params": list(part.parameters())} for part in parts]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    # Views are drawn from seed and step alone, so a training does not depend on what ran before.
    for step, indices in enumerate(batches(len(shots), size, steps, seed)):
        logits = _logits(classifier, shots.pixels[indices], derive_seed("view", seed, step))
        loss = F.cross_entropy(logits, shots.labels[indices].to(logits.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            # A cosine from the first rate to zero.
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
    classifier.eval()


def learning_rates(config: FewShot, start: Start) -> tuple[float, float]:
    """The initial learning rates of backbone and head for a start."""
    trained, fresh = config.learning_rate, FRESH_FACTOR * config.learning_rate
    return {"student": (trained, trained), "library": (trained, fresh), "scratch": (fresh, fresh)}[
        start
    ]


def _logits(classifier: Student, pixels: Tensor, seed: int) -> Tensor:
    """Logits float32 [B, M] of augmented views; the same for the same seed."""
    device = classifier.mean.device
    generator = torch.Generator(device).manual_seed(seed)
    views = augment(_scaled(pixels, device), AUGMENTATION, generator)
    # Drop-path draws from torch's global generator and takes no other. Not with the seed of the
    # views, because on a GPU it would draw the numbers of their crops again.
    with seeded(derive_seed("drop-path", seed), device):
        logits: Tensor = classifier(views.contiguous(memory_format=torch.channels_last))
    return logits
