"""How well an epoch's order mixes, by counting; every seed is fixed."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.dataset.sampling_order import Indices, reading_order, run_length, runs_of, shuffled

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def runs(counts: list[int], length: int, first: int = 0) -> tuple[Indices, Indices]:
    """The runs of shards of so many samples."""
    return runs_of(first + np.cumsum([0, *counts]), length)


def test_a_run_lies_within_one_shard() -> None:
    begins, lengths = runs([5, 2, 4], 2)
    assert begins.tolist() == [0, 2, 4, 5, 7, 9]
    assert lengths.tolist() == [2, 2, 1, 2, 2, 2]
    assert [each.tolist() for each in runs([5, 2], 9, first=10)] == [[10, 15], [5, 2]]


@given(COUNTS, st.integers(1, 9), st.integers(0, 99))
def test_runs_are_read_once_and_each_in_one_go(counts: list[int], length: int, seed: int) -> None:
    begins, lengths = runs(counts, length)
    order = reading_order(begins, lengths, np.random.default_rng(seed)).tolist()
    assert sorted(order) == list(range(sum(counts)))
    for begin, held in zip(begins.tolist(), lengths.tolist(), strict=True):
        at = order.index(begin)
        assert order[at : at + held] == list(range(begin, begin + held))


@given(COUNTS, st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_every_sample_leaves_once_and_no_more_than_the_buffer_are_held(
    counts: list[int], length: int, buffer: int, seed: int
) -> None:
    (begins, lengths), generator = runs(counts, length), np.random.default_rng(seed)
    order = shuffled(reading_order(begins, lengths, generator), buffer, generator)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    fetched, held, most = set(), 0, 0
    for run in (np.searchsorted(begins, order, "right") - 1).tolist():
        if run not in fetched:  # as the stream does: a run is fetched at its first sample
            fetched.add(run)
            held += int(lengths[run])
        most = max(most, held)
        held -= 1
    assert most <= buffer + length


def test_a_buffer_of_all_is_a_permutation_and_a_buffer_of_one_changes_nothing() -> None:
    samples = np.arange(1000)
    whole = shuffled(samples, 1000, np.random.default_rng(0))
    assert np.array_equal(whole, np.random.default_rng(0).permutation(samples))
    assert np.array_equal(shuffled(samples, 1, np.random.default_rng(0)), samples)


def counted(order: Indices, each: int, classes: int, batch: int) -> Indices:
    """[batches, classes]: images of each class, which are `each` in all, in each batch."""
    labels = order[: len(order) // batch * batch].reshape(-1, batch) // each
    return np.stack([np.bincount(row, minlength=classes) for row in labels])


def spread(counts: Indices) -> float:
    """Standard deviation of a class's images in a batch, over batches and classes."""
    return float(np.sqrt(counts.var(axis=0).mean()))


BUFFER = (128 << 20) // 100_000
"""Images of 100 KB that the stream's buffer holds."""


@pytest.mark.parametrize("batch", [32, 128, 512])
@pytest.mark.parametrize(("classes", "each"), [(7, 3000), (65, 1000), (345, 300)])
def test_batches_are_nearly_as_even_as_under_uniform_shuffling(
    classes: int, each: int, batch: int
) -> None:
    """Class-pure shards of 100 images, a buffer that holds a small part of them."""
    generator = np.random.default_rng(0)
    counts = [100] * (classes * each // 100)
    pieces = runs(counts, run_length(BUFFER, batch))
    ours = shuffled(reading_order(*pieces, generator), BUFFER, generator)
    share = 1 / classes
    uniform = np.sqrt(batch * share * (1 - share))
    assert spread(counted(ours, each, classes, batch)) < 1.15 * uniform
    # What a buffer over whole shards does, so that the measure itself is seen to tell.
    shards = shuffled(reading_order(*runs(counts, 100), generator), BUFFER, generator)
    if batch == 128:
        assert spread(counted(shards, each, classes, batch)) > 2 * uniform


@pytest.mark.parametrize(("classes", "each"), [(7, 3000), (345, 300)])
def test_the_batches_of_several_ranks_are_as_even_together(classes: int, each: int) -> None:
    generator, world, batch = np.random.default_rng(0), 4, 128
    rows = batch // world
    pieces = runs([100] * (classes * each // 100), run_length(BUFFER, rows))
    share = classes * each // batch * rows
    reading = reading_order(*pieces, generator)
    ranks = [
        shuffled(reading[rank * share : (rank + 1) * share], BUFFER, generator).reshape(-1, rows)
        for rank in range(world)
    ]
    together = np.concatenate(ranks, axis=1).reshape(-1)
    uniform = np.sqrt(batch / classes * (1 - 1 / classes))
    assert spread(counted(together, each, classes, batch)) < 1.2 * uniform


def test_the_order_of_many_shards_takes_little_more_memory_than_itself() -> None:
    pieces = runs([100] * 1000, 5)
    tracemalloc.start()
    try:
        generator = np.random.default_rng(0)
        order = shuffled(reading_order(*pieces, generator), 5000, generator)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(order) == 100_000
    assert most < 8 * order.nbytes
