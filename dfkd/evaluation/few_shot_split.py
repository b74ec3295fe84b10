"""Which images of a domain are trained on: k of each class, the rest is the test set (section 4.3).

The paper names the protocol and no draw. Here it is a pure function of seed, domain, class and the
number of the class's images, so that all starts learn from the same ones: the images of a class
have an order, and k takes the first k. So the k = 2 set contains the k = 1 set.

Of a class with too few images all but one are taken: every class keeps its place in the test set,
and of a class with a single image none is seen. To refuse instead would shut out every domain with
one rare class, the bundled set among them; results say what each figure was trained and tested on.
PACS, VLCS, ImageCLEF-DA and VisDA have more than 16 images of every class in every domain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dfkd.config.plan import derive_seed


@dataclass(frozen=True)
class FewShotSplit:
    """A domain's images in two parts that share none: positions, each part in rising order."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def split_domain(
    labels: Sequence[int], classes: Sequence[str], domain: str, shots: int, seed: int
) -> FewShotSplit:
    """`training_count` images of each class for training, and the rest; all are the test set at 0 shots.

    Args:
        labels: class index of each image, in the order of the images.
        classes: names by index.
        domain: its name.
        shots: k.
        seed: another draw.
    """
    train: set[int] = set()
    for index, name in enumerate(classes):
        places = [place for place, label in enumerate(labels) if label == index]
        first = draw_order(seed, domain, name, len(places))[: training_count(shots, len(places))]
        train |= {places[number] for number in first}
    test = (place for place in range(len(labels)) if place not in train)
    return FewShotSplit(tuple(sorted(train)), tuple(test))


def draw_order(seed: int, domain: str, name: str, images: int) -> list[int]:
    """The images 0 .. `images` - 1 of one class of a domain in the order in which they are drawn.

    By a hash of each one's lot, and so the same with every version of Python and every library.
    """
    lots = [derive_seed("shots", seed, domain, name, image) for image in range(images)]
    return sorted(range(images), key=lots.__getitem__)


def training_count(shots: int, images: int) -> int:
    """How many of a class's images are trained on: `shots`, or all but one of too few."""
    return min(shots, max(images - 1, 0))
