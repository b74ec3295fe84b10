"""Sample images from a generator during its training and assign them to classes."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from dfkd.lab.baselines.inverter import PartRequest
from dfkd.synthesis.image_source import Synthesised, synthesised
from dfkd.utils.pixels import to_bytes


class SnapshotSampler:
    """Collects the N images of a part from an unconditional generator, at evenly spaced rounds.

    DFAD and PRE-DFKD train their student on the images of all rounds and keep no data set. So the
    stored data set samples the whole training, and a later student sees what theirs saw, and not
    only images of the final generator.
    """

    def __init__(self, request: PartRequest, rounds: range, snapshots: int) -> None:
        """Plan the snapshots.

        Args:
            request: the part.
            rounds: the rounds of training that belong to the part.
            snapshots: number of rounds, at most, from which images are taken.
        """
        self.request = request
        # Snapshot n of N is taken when n/N of the rounds are done, and fills the part to n/N of its
        # images. A part with fewer rounds than snapshots has one after each round.
        taken = min(snapshots, len(rounds))
        self.schedule = {
            rounds[len(rounds) * n // taken - 1]: len(request.seeds) * n // taken
            for n in range(1, taken + 1)
        }
        """Number of images that must be there after a round, for the rounds with a snapshot."""
        self.pixels: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.count = 0

    def take(self, number: int, draw: Callable[[], Tensor], loss: Tensor) -> None:
        """Take the images that are scheduled after round `number`, if any.

        Args:
            draw: returns a batch of pixels [B, 3, S, S].
            loss: the generator's loss in this round, which is recorded for each image.
        """
        missing = self.schedule.get(number, 0) - self.count
        # One draw is a batch, which may be less than a snapshot's share, or more.
        while missing > 0:
            with torch.no_grad():
                pixels = to_bytes(draw())[:missing]
            self.pixels.append(pixels)
            self.losses.append(loss.detach().cpu().expand(len(pixels)))
            self.steps.append(torch.full((len(pixels),), number + 1))
            self.count += len(pixels)
            missing -= len(pixels)

    def assigned(self, probabilities: Callable[[Tensor], Tensor]) -> Synthesised:
        """All images in the order of the part's labels, as `assign_to_classes` places them.

        Args:
            probabilities: maps images, uint8 [N, H, W, 3], to the teacher's class probabilities
                [N, M] on the CPU.
        """
        pixels = torch.cat(self.pixels)
        order = assign_to_classes(probabilities(pixels), self.request.labels.cpu())
        return synthesised(
            pixels[order], torch.cat(self.losses)[order], torch.cat(self.steps)[order]
        )


def assign_to_classes(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Assign N images to N slots, each of which has a class; greedy by the teacher's confidence.

    No image is discarded or made because of its class, so the images follow the distribution of the
    generator. The class only determines the shard in which an image is stored: its label is the
    teacher's distances.

    Args:
        probabilities: the teacher's class probabilities [N, M] of the images.
        labels: class of each slot, int64 [N].

    Returns:
        The index of the image in each slot, int64 [N].
    """
    free = [deque[int]() for _ in range(probabilities.shape[1])]
    for slot, label in enumerate(labels.tolist()):
        free[label].append(slot)
    # All pairs of image and class are visited from the most probable on. An image whose best class
    # is full takes its next best one, and every image gets a slot, as all pairs are visited.
    order, assigned = torch.empty_like(labels), set[int]()
    for pair in probabilities.flatten().argsort(descending=True, stable=True).tolist():
        image, label = divmod(pair, len(free))
        if image not in assigned and free[label]:
            order[free[label].popleft()] = image
            assigned.add(image)
    return order
