"""Images from a generator in training, and the classes that they are filed under."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from dfkd.synthesis.inversion.run import Classifier, PartRequest, synthesised
from dfkd.synthesis.latents import Synthesised
from dfkd.utils.pixels import from_bytes, to_bytes

LABEL_BATCH_SIZE = 64
"""Images that the teacher sees at once."""


class SnapshotSampler:
    """The N images of a part: of an unconditional generator, at evenly spread rounds of training.

    DFAD and PRE-DFKD train their student on what the generator gives on the way and have no data
    set in the end; so that a stored one shows a student what theirs saw, it is a sample of the way,
    and not of the last generator alone.
    """

    def __init__(self, request: PartRequest, rounds: range, snapshots: int) -> None:
        self.request = run
        taken = min(snapshots, len(rounds))
        ends = [rounds[len(rounds) * (number + 1) // taken - 1] for number in range(taken)]
        shares = [len(request.seeds) * (number + 1) // taken for number in range(taken)]
        self.schedule = dict(zip(ends, shares, strict=True))
        self.pixels: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.count = 0

    def take(self, number: int, draw: Callable[[], Tensor], loss: Tensor) -> None:
        """After round `number`: as many images as are due, if any are.

        Args:
            draw: gives a batch of pixels [B, 3, S, S].
            loss: of the generator in this round, which each image is told to have.
        """
        wanted = self.schedule.get(number, 0) - self.count
        while wanted > 0:
            with torch.no_grad():
                pixels = to_bytes(draw())[:wanted]
            self.pixels.append(pixels)
            self.losses.append(loss.detach().cpu().expand(len(pixels)))
            self.steps.append(torch.full((len(pixels),), number + 1))
            self.count += len(pixels)
            wanted -= len(pixels)

    def assigned(self, classifier: Classifier) -> Synthesised:
        """All images, each in a place of the run that has the class the teacher sees, if it can."""
        pixels = torch.cat(self.pixels)
        probabilities = torch.cat(
            [_seen(classifier, part) for part in pixels.split(LABEL_BATCH_SIZE)]
        )
        order = assign_to_classes(probabilities, self.request.labels.cpu())
        return synthesised(
            pixels[order], torch.cat(self.losses)[order], torch.cat(self.steps)[order]
        )


@torch.no_grad()
def _seen(classifier: Classifier, pixels: Tensor) -> Tensor:
    there = from_bytes(pixels.to(classifier.texts.device))
    return classifier.logits(there).softmax(1).cpu()


def assign_to_classes(probabilities: Tensor, labels: Tensor) -> Tensor:
    """For each of N places, which have a class each [N], the index of one of N images [N, M].

    The surest image and class come first, while the class has a place. What no place is left for in
    the classes that the teacher sees goes where there is room: no image is thrown away or made
    because of its class, so that the images are what the generator gives. Their labels are the
    teacher's distances in any case, and a class is only where an image is filed.
    """
    free = [deque[int]() for _ in range(probabilities.shape[1])]
    for place, label in enumerate(labels.tolist()):
        free[label].append(place)
    order, filed = torch.empty_like(labels), set[int]()
    for pair in probabilities.flatten().argsort(descending=True, stable=True).tolist():
        image, label = divmod(pair, len(free))
        if image not in filed and free[label]:
            order[free[label].popleft()] = image
            filed.add(image)
    return order
