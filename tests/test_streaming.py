import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.dataset import PublishedVersion
from dfkd.errors import CorruptionError, ManifestError
from dfkd.manifest import Manifest
from dfkd.streaming import Share, Stream, mixed_order, steps_per_epoch
from surrogates import EMBEDDING, publish, write_manifest


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> PublishedVersion:
    """3 classes x 10 images in shards of 4, 4 and 2."""
    folder = tmp_path_factory.mktemp("streaming")
    path = write_manifest(folder, synthesis={"images_per_class": 10})
    return publish(Manifest.read(path))


def stream(version: PublishedVersion, batch_size: int = 6, **options: object) -> Stream:
    return Stream(version, 32, batch_size, seed=5, **options)  # type: ignore[arg-type]


def read(source: Stream, epoch: int = 0, step: int = 0) -> list[tuple[torch.Tensor, ...]]:
    return [
        (batch.pixels, batch.distances, batch.labels, batch.embeddings)
        for batch in source.batches(epoch, step)
    ]


def same(left: list[tuple[torch.Tensor, ...]], right: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 99))
def test_a_pass_shows_every_sample_once_and_holds_no_more_than_its_buffer(
    counts: list[int], buffer: int, seed: int
) -> None:
    order = mixed_order(counts, buffer, np.random.default_rng(seed)).tolist()
    assert sorted(map(tuple, order)) == [(s, i) for s, n in enumerate(counts) for i in range(n)]
    opened, held, most = set(), 0, 0
    for shard, _ in order:
        if shard not in opened:
            opened.add(shard)
            held += counts[shard]
        most = max(most, held)
        held -= 1
    assert most <= buffer + 2 * max(counts)


def test_class_pure_shards_are_mixed_within_batches() -> None:
    order = mixed_order([50] * 20, buffer=300, generator=np.random.default_rng(0))
    classes = order[:, 0] // 5
    for start in range(0, 800, 50):
        assert len(set(classes[start : start + 50])) == 4


def test_steps_are_whole_batches() -> None:
    assert steps_per_epoch(100, 30) == 3
    with pytest.raises(ManifestError, match=r"distillation\.batch_size.*99 images"):
        steps_per_epoch(99, 100)


def test_an_epoch_is_one_pass_with_the_labels_of_its_images(version: PublishedVersion) -> None:
    batches = read(stream(version))
    assert len(batches) == 5
    pixels, distances, labels, embeddings = map(torch.cat, zip(*batches, strict=True))
    assert pixels.shape == (30, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert len(pixels.flatten(1).unique(dim=0)) == 30
    colour = pixels.float().mean(dim=(2, 3)).argmax(1)
    assert torch.equal(colour, distances.argmin(1))
    assert torch.equal(colour, labels)
    assert embeddings.shape == (30, EMBEDDING)


def test_the_order_depends_on_seed_and_epoch(version: PublishedVersion) -> None:
    orders = [stream(version).order(epoch).tolist() for epoch in (0, 1, 0)]
    orders.append(Stream(version, 32, 6, seed=6).order(0).tolist())
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert orders[0] != orders[3]


@pytest.mark.parametrize("readers", [0, 1, 3])
@pytest.mark.parametrize("buffer_bytes", [1, 1 << 27])
def test_how_it_is_read_changes_nothing(
    version: PublishedVersion, readers: int, buffer_bytes: int
) -> None:
    cached = stream(version, buffer_bytes=buffer_bytes)
    streamed = stream(
        version, buffer_bytes=buffer_bytes, cache_bytes=0, share=Share(readers=readers)
    )
    assert cached.cached
    assert not streamed.cached
    for epoch in (0, 1):
        assert same(read(cached, epoch), read(streamed, epoch))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_resuming_within_an_epoch_gives_the_rest_of_it(
    version: PublishedVersion, cache_bytes: int
) -> None:
    whole = read(stream(version, cache_bytes=cache_bytes), epoch=2)
    assert same(read(stream(version, cache_bytes=cache_bytes), epoch=2, step=3), whole[3:])


def test_ranks_read_their_own_shards_and_make_equally_many_steps(
    version: PublishedVersion,
) -> None:
    ranks = [stream(version, share=Share(rank, 2)) for rank in range(2)]
    for epoch in range(3):
        orders = [rank.order(epoch) for rank in ranks]
        assert [len(order) for order in orders] == [15, 15]
        shards = [set((order[:, 0] % 9).tolist()) for order in orders]
        assert not shards[0] & shards[1]


def test_a_rank_with_too_few_samples_repeats_its_own(version: PublishedVersion) -> None:
    ranks = [stream(version, batch_size=9, share=Share(rank, 9)) for rank in range(9)]
    for rank in ranks:
        order = rank.order(0)
        assert len(order) == 3
        assert len(set((order[:, 0] % 9).tolist())) == 1
    small = next(r for r in ranks if r.shards[r.order(0)[0, 0]].samples == 2)
    pixels = torch.cat([found[0] for found in read(small)])
    assert len(pixels.flatten(1).unique(dim=0)) == 2
    uncached = stream(version, 9, share=small.share, cache_bytes=0)
    assert same(read(small), read(uncached))


def test_fewer_shards_than_readers_is_refused(version: PublishedVersion) -> None:
    with pytest.raises(ManifestError, match=r"distillation\.workers.*9 shards.*got 10"):
        stream(version, batch_size=10, share=Share(0, 5, readers=2))


def test_a_damaged_shard_stops_the_stream_before_it_is_used(tmp_path: Path) -> None:
    version = publish(Manifest.read(write_manifest(tmp_path)))
    shard = Path(version.storage.location(version.shards[0].shard))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    for cache_bytes in (0, 1 << 20):
        with pytest.raises(CorruptionError, match=version.shards[0].shard):
            read(stream(version, cache_bytes=cache_bytes))
    shard.write_bytes(data[:2048])
    with pytest.raises(CorruptionError, match="bytes"):
        read(stream(version, cache_bytes=0))


def test_images_of_another_size_are_refused(version: PublishedVersion) -> None:
    with pytest.raises(CorruptionError, match="48 px"):
        next(Stream(version, 48, 6, seed=0).batches(0))


def test_leaving_early_ends_the_reading_thread(version: PublishedVersion) -> None:
    batches = stream(version, cache_bytes=0, share=Share(readers=2)).batches(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("dfkd")]


def test_the_order_of_many_shards_takes_little_more_memory_than_itself() -> None:
    tracemalloc.start()
    try:
        order = mixed_order([100] * 1000, 5000, np.random.default_rng(0))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(order) == 100_000
    assert most < 4 * order.nbytes
