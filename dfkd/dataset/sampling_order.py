"""The order in which an epoch reads its samples and the order in which it shows them.

Shards hold one class each, and single reads would cost one request per sample. So runs of
consecutive samples are read in random order, and a shuffle buffer mixes them.

Quality of the shuffle: let a class have share p of the samples, and let random runs of c samples
fill a buffer of B. A sample stays B steps on average and leaves at random. So the buffer holds p B
samples of the class with variance p (1 - p) B (c + 1) / 2, and a batch of n holds n p of them with
variance

    n p (1 - p) (1 + n (c - 1) / (2 B)).

Uniform shuffling has n p (1 - p). With `run_length` the standard deviation is at most
sqrt(1.25) = 1.12 times as large, for any number of classes.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
"""Sample numbers, counted in the order of shards, or positions in an array of them."""


def run_length(buffer: int, rows: int) -> int:
    """Samples in a run, so that the buffer holds two runs for each of the `rows` of a batch."""
    return max(1, buffer // (2 * rows))


def run_bounds(counts: Sequence[int], length: int) -> Indices:
    """The start of each of R runs and the end of the last one, int64 [R + 1].

    The last run of a shard may be shorter than the others.

    Args:
        counts: number of samples in each shard, at least 1.
        length: number of samples in a run.
    """
    shard_bounds = np.cumsum([0, *counts])
    starts = [np.arange(begin, end, length) for begin, end in pairwise(shard_bounds)]
    return np.concatenate([*starts, shard_bounds[-1:]])


def reading_order(bounds: Indices, generator: np.random.Generator) -> Indices:
    """All sample numbers, int64 [N]: runs in random order, each run in ascending order."""
    runs = generator.permutation(len(bounds) - 1)
    begins, lengths = bounds[runs], np.diff(bounds)[runs]
    ends = np.cumsum(lengths)
    # Position i of the result lies in a run that starts at `ends - lengths` there, and holds the
    # sample with the same distance from `begins`; so the two differ by a constant for each run.
    shifts: Indices = np.repeat(begins - (ends - lengths), lengths)
    return np.arange(bounds[-1]) + shifts


def shuffled(samples: Indices, buffer: int, generator: np.random.Generator) -> Indices:
    """The samples in the order in which they leave a shuffle buffer, int64 [N].

    Once the buffer is full, each sample replaces a random one, which leaves. At the end the
    remaining samples leave in random order. A buffer as large as the data set gives a uniform
    permutation.
    """
    # The buffer is not simulated sample by sample, because a Python loop would be slow. All slots
    # are drawn first, and sorting by slot shows which sample replaces which.
    entering = max(0, len(samples) - buffer)
    if not entering:
        return generator.permutation(samples)
    slots = np.concatenate([np.arange(buffer), generator.integers(buffer, size=entering)])
    # A stable sort keeps the order of time within a slot, so each sample in `by_slot` is replaced
    # by the next one if that has the same slot.
    by_slot = np.argsort(slots, kind="stable")
    replaced = np.append(slots[by_slot[1:]] == slots[by_slot[:-1]], False)
    leaving = np.empty(entering, np.int64)
    # The first `buffer` samples replace nothing, so sample `buffer + i` causes the i-th departure.
    leaving[by_slot[1:][replaced[:-1]] - buffer] = samples[by_slot[replaced]]
    return np.concatenate([leaving, generator.permutation(samples[by_slot[~replaced]])])
