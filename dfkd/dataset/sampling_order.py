"""The order in which an epoch reads its samples and the order in which it shows them.

Shards hold one class each, and single reads would cost one request per sample. So runs of
consecutive samples are read in random order, and a shuffle buffer mixes them. A version of millions
of samples is read window by window: each window is some random blocks, which have all classes.

Quality of the shuffle: let a class have share p of the samples, and let random runs of c samples
fill a buffer of B. A sample stays B steps on average and leaves at random. So the buffer holds p B
samples of the class with variance p (1 - p) B (c + 1) / 2, and a batch of n holds n p of them with
variance

    n p (1 - p) (1 + n (c - 1) / (2 B)).

Uniform shuffling has n p (1 - p). With `run_length` the standard deviation is at most
sqrt(1.25) = 1.12 times as large, for any number of classes.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
"""Sample numbers, counted in the order of shards, or positions in an array of them."""


def run_length(buffer: int, rows: int) -> int:
    """Samples in a run, so that the buffer holds two runs for each of the `rows` of a batch."""
    return max(1, buffer // (2 * rows))


def runs_of(bounds: Indices, length: int) -> tuple[Indices, Indices]:
    """The first sample of each of R runs, and its number of samples, int64 [R] each.

    The last run of a shard may be shorter than the others.

    Args:
        bounds: number of the first sample of each shard, and the end of the last one.
        length: number of samples in a run.
    """
    begins = [np.arange(begin, end, length) for begin, end in pairwise(bounds)]
    lengths = [
        np.minimum(length, end - starts) for starts, end in zip(begins, bounds[1:], strict=True)
    ]
    return np.concatenate(begins), np.concatenate(lengths)


def reading_order(begins: Indices, lengths: Indices, generator: np.random.Generator) -> Indices:
    """The numbers of all samples in these runs, int64 [N]: runs in random order, each run in
    ascending order.
    """
    runs = generator.permutation(len(begins))
    begins, lengths = begins[runs], lengths[runs]
    ends = np.cumsum(lengths)
    # Position i of the result lies in a run that starts at `ends - lengths` there, and holds the
    # sample with the same distance from `begins`; so the two differ by a constant for each run.
    shifts: Indices = np.repeat(begins - (ends - lengths), lengths)
    return np.arange(len(shifts)) + shifts


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
