"""The few-shot split: k images of each class are trained on, the rest is tested (section 4.3).

The paper does not say how the k images are drawn. Here the draw is a pure function of seed, domain,
class name and the number of images of the class, so all starts train on the same images. The images
of a class have a random order and k takes the first k, so the k = 2 set contains the k = 1 set.

If a class has too few images, all but one are trained on. Every class thus keeps a test image, and
a class with a single image is only tested. An error instead would exclude every domain with one
rare class, such as the bundled set. The results state the number of images that each figure was
trained and tested on. PACS, VLCS, ImageCLEF-DA and VisDA have more than 16 images of every class in
every domain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dfkd.config.hashing import derive_seed


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
