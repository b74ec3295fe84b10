import dataclasses
import threading

import numpy as np
import pytest
import torch

from dfkd.config import plan
from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.dataset import loader
from dfkd.dataset.loader import (
    CACHE_BYTES,
    PREFETCH_BATCHES,
    RankShare,
    Stream,
    cache_limit,
    decode,
    steps_per_epoch,
)
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.random_access import Example
from dfkd.dataset.sampling_order import reading_order
from dfkd.errors import ManifestError
from dfkd.storage.base import CONCURRENT_REQUESTS, Request
from tests.helpers.tiny_version import publish, write_manifest


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> PublishedVersion:
    """3 classes x 10 images in shards of 4, 4 and 2."""
    folder = tmp_path_factory.mktemp("streaming")
    path = write_manifest(folder, synthesis={"images_per_class": 10})
    return publish(Manifest.read(path))


def stream(version: PublishedVersion, batch_size: int = 6, **options: object) -> Stream:
    return Stream(version, 32, batch_size, seed=5, **options)


def read(source: Stream, epoch: int = 0, step: int = 0) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(vars(batch).values()) for batch in source.batches(epoch, step)]


def same(left: list[tuple[torch.Tensor, ...]], right: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x, y, strict=True)
    )


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
    assert torch.equal(colour, embeddings.float().argmax(1))


def test_the_order_depends_on_seed_and_epoch(version: PublishedVersion) -> None:
    orders = [stream(version).order(epoch).tolist() for epoch in (0, 1, 0)]
    orders.append(Stream(version, 32, 6, seed=6).order(0).tolist())
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert orders[0] != orders[3]


def test_the_order_depends_on_rank_and_world(version: PublishedVersion) -> None:
    """Each of these ranks sees six images; the first and the last see the same ones."""
    orders = set()
    for rank, world in ((0, 5), (1, 5), (0, 4)):
        source = stream(version, 2 * world, share=RankShare(rank, world))
        drawn = np.random.default_rng(derive_seed("runs", 5, 0))
        (window,) = source.windows(0)
        read = reading_order(window.begins, window.lengths, drawn)
        piece = read[6 * rank : 6 * rank + 6].tolist()
        orders.add(tuple(piece.index(sample) for sample in source.order(0).tolist()))
    assert len(orders) == 3


@pytest.mark.parametrize(
    "share", [*(RankShare(decode_threads=n) for n in (0, 1, 3)), RankShare(0, 2), RankShare(1, 2)]
)
@pytest.mark.parametrize("buffer_bytes", [1, 1 << 27])
def test_batches_are_the_same_with_and_without_a_cache(
    version: PublishedVersion, share: RankShare, buffer_bytes: int
) -> None:
    cached = stream(version, buffer_bytes=buffer_bytes, share=share)
    streamed = stream(version, buffer_bytes=buffer_bytes, cache_bytes=0, share=share)
    assert cached.cached
    assert not streamed.cached
    # The cache begins with a part of the first epoch, as in a training that is resumed.
    for epoch, step in ((0, 2), (1, 0), (0, 0)):
        assert same(read(cached, epoch, step), read(streamed, epoch, step))


def test_a_version_that_the_cache_holds_is_read_and_decoded_once(
    version: PublishedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def counted(example: Example, image_size: int) -> torch.Tensor:
        decoded.append(example.key)
        return decode(example, image_size)

    monkeypatch.setattr(loader, "decode", counted)
    observed, seen = watched(version)
    source = stream(observed)
    read(source)
    assert len(decoded) == len(set(decoded)) == 30
    seen.clear()
    read(source, epoch=1)
    assert len(decoded) == 30
    assert seen == []


def test_a_rank_may_keep_a_small_version_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_rank` has its share of the memory."""
    monkeypatch.setattr(loader, "available_memory", lambda: 0)
    assert cache_limit(8.0) == CACHE_BYTES


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_where_there_is_a_gpu_batches_are_pinned_ahead(
    version: PublishedVersion, monkeypatch: pytest.MonkeyPatch, cache_bytes: int
) -> None:
    threads: list[str] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return tensor.clone()

    plain = read(stream(version, cache_bytes=cache_bytes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    assert same(read(stream(version, cache_bytes=cache_bytes)), plain)
    assert len(threads) == 4 * 5  # four tensors in each batch
    assert threading.main_thread().name not in threads


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_resuming_within_an_epoch_gives_the_rest_of_it(
    version: PublishedVersion, cache_bytes: int
) -> None:
    whole = read(stream(version, cache_bytes=cache_bytes), epoch=2)
    assert same(read(stream(version, cache_bytes=cache_bytes), epoch=2, step=3), whole[3:])
    assert read(stream(version, cache_bytes=cache_bytes), epoch=2, step=5) == []


@pytest.mark.parametrize(
    ("world", "batch_size"),
    [(2, 6), (3, 9), (9, 9), (10, 20), *((world, 10) for world in range(1, 10))],
)
def test_ranks_share_each_batch_evenly_and_no_sample_is_seen_by_two(
    version: PublishedVersion, world: int, batch_size: int
) -> None:
    """There may be more ranks than shards, and ranks that do not divide the batch.

    The buffer is so small that shards have several runs.
    """
    buffer_bytes = 12 * sum(receipt.bytes for receipt in version.receipts()) // 30
    ranks = [
        stream(version, batch_size, share=RankShare(rank, world), buffer_bytes=buffer_bytes)
        for rank in range(world)
    ]
    rows, steps = [rank.rank_batch_size for rank in ranks], 30 // batch_size
    assert sum(rows) == batch_size
    assert max(rows) - min(rows) <= 1
    for epoch in range(3):
        orders = [rank.order(epoch) for rank in ranks]
        assert [len(order) for order in orders] == [steps * count for count in rows]
        seen = np.concatenate(orders).tolist()
        assert len(set(seen)) == len(seen) == steps * batch_size


def watched(version: PublishedVersion) -> tuple[PublishedVersion, list[Request]]:
    """The version, and the requests that are made for it."""
    seen: list[Request] = []
    return dataclasses.replace(version, home=version.home.observed(seen.append)), seen


def test_a_run_is_read_by_one_request(version: PublishedVersion) -> None:
    total = sum(receipt.bytes for receipt in version.receipts())
    observed, seen = watched(version)
    source = stream(observed, cache_bytes=0, buffer_bytes=24 * total // 30 + 1)
    assert source.buffer == 24
    (window,) = source.windows(0)
    assert window.lengths.tolist() == [2] * 15  # so many for each image of a batch of 6
    seen.clear()
    read(source)
    assert len(seen) == 15
    assert sum(each.bytes for each in seen) == total


def test_a_request_is_no_longer_than_its_limit(
    version: PublishedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(receipt.bytes for receipt in version.receipts())
    monkeypatch.setattr(loader, "MAX_RUN_BYTES", total // 30 + 1)
    source = stream(version, cache_bytes=0, buffer_bytes=24 * total // 30 + 1)
    assert source.run_length == 1  # without the limit 2


def test_little_more_than_what_is_needed_is_read_ahead(version: PublishedVersion) -> None:
    observed, seen = watched(version)
    batches = stream(observed, 1, cache_bytes=0, buffer_bytes=1).batches(0)
    seen.clear()
    next(batches)
    batches.close()
    # Each run is one image: those of the batch, of the next ones that are decoded or parsed, and in
    # flight.
    assert len(seen) <= 1 + 2 * (PREFETCH_BATCHES + 1) + CONCURRENT_REQUESTS < 30


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_leaving_early_ends_the_reading_thread(version: PublishedVersion, cache_bytes: int) -> None:
    batches = stream(version, cache_bytes=cache_bytes, share=RankShare(decode_threads=2)).batches(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("dfkd")]


@pytest.fixture(scope="module")
def blocks_version(tmp_path_factory: pytest.TempPathFactory) -> PublishedVersion:
    """The same images as in `version`, in three blocks of 12, 12 and 6."""
    folder = tmp_path_factory.mktemp("blocks")
    path = write_manifest(folder, synthesis={"images_per_class": 10})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "BLOCK_TASKS", 3)
        return publish(Manifest.read(path))


def windows_of(version: PublishedVersion, images: int, **options: object) -> Stream:
    """A stream whose windows have about so many images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "WINDOW_IMAGES", images)
        return stream(version, **options)


@pytest.mark.parametrize("images", [1, 24, 30])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_image_is_seen_once_whatever_the_windows(
    blocks_version: PublishedVersion, images: int, world: int
) -> None:
    ranks = [
        windows_of(blocks_version, images, share=RankShare(rank, world), cache_bytes=0)
        for rank in range(world)
    ]
    assert ranks[0].window_blocks == {1: 1, 24: 2, 30: 3}[images]
    for epoch in range(2):
        seen = torch.cat([batch[0] for rank in ranks for batch in read(rank, epoch)])
        assert len(seen.flatten(1).unique(dim=0)) == len(seen) == 30
        numbers = np.concatenate([rank.order(epoch) for rank in ranks])
        assert sorted(numbers.tolist()) == list(range(30))
    orders = [ranks[0].order(epoch).tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("share", [RankShare(), RankShare(1, 2)])
def test_an_epoch_of_several_windows_is_resumed_anywhere(
    blocks_version: PublishedVersion, cache_bytes: int, share: RankShare
) -> None:
    def fresh() -> Stream:
        return windows_of(blocks_version, 1, share=share, cache_bytes=cache_bytes)

    whole = read(fresh(), epoch=3)
    for step in range(5):
        assert same(read(fresh(), epoch=3, step=step), whole[step:])


def test_batches_of_several_windows_have_their_own_labels(
    blocks_version: PublishedVersion,
) -> None:
    for pixels, distances, labels, _ in read(windows_of(blocks_version, 1, cache_bytes=0)):
        colour = pixels.float().mean(dim=(2, 3)).argmax(1)
        assert torch.equal(colour, labels)
        assert torch.equal(colour, distances.argmin(1))


def test_a_rank_opens_only_the_blocks_of_its_own_piece(
    blocks_version: PublishedVersion,
) -> None:
    observed, seen = watched(blocks_version)
    for rank, opened in ((0, 1), (1, 2), (3, 1)):
        source = windows_of(observed, 1, share=RankShare(rank, 4), cache_bytes=0)
        seen.clear()
        source.order(0)
        assert len(seen) == 2 * opened  # receipts and index
