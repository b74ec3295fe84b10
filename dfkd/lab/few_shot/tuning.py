"""Few-shot training: the split of a domain, the weights that it starts from, and fine-tuning.

The paper does not say how the k images of a class are drawn. Here the draw is a pure function of
seed, domain, class name and the number of images of the class, so all starts train on the same
images. The images of a class have a random order and k takes the first k, so the k = 2 set contains
the k = 1 set. If a class has too few images, all but one are trained on. Every class thus keeps a
test image, and a class with a single image is only tested. An error instead would exclude every
domain with one rare class, such as the bundled set. The results state the number of images that
each figure was trained and tested on.

A classifier here is a `Student` whose outputs are logits: larger is likelier. All starts have this
form and the architecture of `distillation.student`, and end in one linear layer over the manifest's
classes. They differ only in their initial weights and in the learning rates for these weights.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.config.distillation import Augmentation, weights_file
from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.distillation.augmentation import augment
from dfkd.distillation.student_names import weights_identity
from dfkd.distillation.student_store import load_located, locate_student
from dfkd.errors import ManifestError
from dfkd.lab.few_shot.results import Curve, curves
from dfkd.lab.few_shot.settings import FewShot, Start
from dfkd.models.student import Student, build, read_card, rescale_output
from dfkd.utils.device import seeded
from dfkd.utils.pixels import from_batch


@dataclass(frozen=True)
class FewShotSplit:
    """Two disjoint lists of image positions in a domain, each in ascending order."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    seed: int
    """Seed of the training on it."""


def split_domain(
    labels: Sequence[int], classes: Sequence[str], domain: str, shots: int, seed: int
) -> FewShotSplit:
    """Split a domain: `training_count` images of each class for training, the rest for test.

    Args:
        labels: class index of each image, in the order of the images.
        classes: names by index.
        domain: name of the domain, part of the draw's seed.
        shots: k; with 0 all images are in the test set.
        seed: the few-shot seed.
    """
    # One pass, because DomainNet has 345 classes and 170,000 images in a domain.
    by_class: list[list[int]] = [[] for _ in classes]
    for position, label in enumerate(labels):
        by_class[label].append(position)
    train: set[int] = set()
    # Class by class, so a class's draw does not change with the images of the others.
    for name, positions in zip(classes, by_class, strict=True):
        first = draw_order(seed, domain, name, len(positions))
        train |= {positions[number] for number in first[: training_count(shots, len(positions))]}
    test = (position for position in range(len(labels)) if position not in train)
    return FewShotSplit(
        tuple(sorted(train)), tuple(test), derive_seed("fewshot", seed, domain, shots)
    )


def draw_order(seed: int, domain: str, name: str, images: int) -> list[int]:
    """The numbers 0 .. `images` - 1 of a class's images in the order in which they are drawn.

    The order sorts by a hash, so it does not depend on versions of Python or libraries.
    """
    lots = [derive_seed("shots", seed, domain, name, image) for image in range(images)]
    return sorted(range(images), key=lots.__getitem__)


def training_count(shots: int, images: int) -> int:
    """The number of a class's images to train on: `shots`, but at most all images but one."""
    return min(shots, max(images - 1, 0))


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
    size, device = min(BATCH, len(shots)), classifier.mean.device
    # The last batch of an epoch is filled from the next permutation.
    steps = config.epochs * -(-len(shots) // size)
    peaks = learning_rates(config, start)
    parts = (classifier.backbone, classifier.head)
    groups = [{"params": list(part.parameters())} for part in parts]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    # Views are drawn from seed and step alone, so a training does not depend on what ran before.
    for step, indices in enumerate(batches(len(shots), size, steps, seed)):
        of_step = derive_seed("view", seed, step)
        generator = torch.Generator(device).manual_seed(of_step)
        views = augment(_scaled(shots.pixels[indices], device), AUGMENTATION, generator)
        # Drop-path draws from torch's global generator and takes no other. Not with the seed of the
        # views, because on a GPU it would draw the numbers of their crops again.
        with seeded(derive_seed("drop-path", of_step), device):
            logits: Tensor = classifier(views.contiguous(memory_format=torch.channels_last))
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


@dataclass(frozen=True)
class InitialWeights:
    """The initial weights of a start and few-shot seed."""

    start: Start
    weights: str
    """Identifies the backbone: equal texts mean equal weights."""
    make: Callable[[], Student]
    """Makes the classifier, whose outputs are logits, on the device to work on."""


def initial_weights(
    manifest: Manifest, start: Start, seed: int, device: torch.device
) -> InitialWeights:
    """The initial weights of a start for a few-shot seed.

    Seeds use the students of `distillation.seeds` in turn. With several, the standard deviation
    over seeds includes the variance of distillation; with one, it is over draws of images alone.

    Raises:
        ManifestError: the student is missing, or the library weights cannot be loaded.
    """
    if start == "student":
        # Of the last method, as the export.
        location = locate_student(manifest, manifest.methods[-1], student_seed(manifest, seed))
        if not location.finished:
            raise ManifestError(
                "--starts",
                f"needs the student of method {location.method} seed {location.seed} at "
                f"{location.location}",
                "student",
                "run dfkd distill with this manifest, or leave student out",
            )
        sha256 = read_card(location.storage)["sha256"]
        return InitialWeights(
            start,
            f"student {sha256}",
            lambda: from_distances(load_located(location, manifest.classes, device)[0]),
        )
    config, size, weights = manifest.distillation, manifest.synthesis.image_size, f"seed {seed}"
    # Library weights are the same for every seed; random ones follow from it.
    if start == "library":
        weights = f"library {weights_identity(config.initial_weights)}"
    else:
        # `build` refuses a warm-up of a random backbone, but it concerns distillation only.
        config = dataclasses.replace(config, weights=("none",), warmup_epochs=0)

    def make() -> Student:
        classes = len(manifest.classes)
        return build(config, classes, size, seed, manifest.cache).to(device)

    return InitialWeights(start, weights, make)


def student_seed(manifest: Manifest, seed: int) -> int:
    """The distillation seed for a few-shot seed n: `distillation.seeds[n % len(seeds)]`."""
    seeds = manifest.distillation.seeds
    return seeds[seed % len(seeds)]


def check_starts(
    manifest: Manifest, config: FewShot, device: torch.device, students: bool = True
) -> None:
    """Make each start once, to raise errors before any training.

    Args:
        students: whether the start `student` is made too; a plan does not need it.

    Raises:
        ManifestError: as `initial_weights`, or there are no weights for the start `library`.
        CorruptionError: a student is damaged.
    """
    if "library" in config.starts and manifest.distillation.initial_weights == "none":
        raise ManifestError(
            "--starts",
            "must do without library where distillation.weights is none",
            list(config.starts),
            "leave library out",
        )
    for start in config.starts:
        if start != "student":  # these differ between seeds in random numbers only
            initial_weights(manifest, start, config.seeds[0], device).make()
        elif students:
            once = {student_seed(manifest, seed): seed for seed in config.seeds}
            for seed in once.values():
                initial_weights(manifest, start, seed, device).make()


def curve_captions(manifest: Manifest, config: FewShot) -> dict[Curve, str]:
    """A description of each curve, for display."""
    library = manifest.distillation.initial_weights
    if file := weights_file(library):
        library = file.name
    used = ", ".join(str(n) for n in sorted({student_seed(manifest, s) for s in config.seeds}))
    captions: dict[Curve, str] = {
        "untouched": "the distilled student before any training, on the same test images",
        "student": f"distilled, {manifest.methods[-1]} images, seed {used}",
        "library": f"weights {library}",
        "scratch": "random weights",
    }
    return {curve: captions[curve] for curve in curves(config.starts)}
