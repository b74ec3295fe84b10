"""Fault 4: a shard that is cut, flipped or another's is found before a sample of it is used."""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import Version, begin
from dfkd.errors import CorruptionError
from dfkd.export.take_home import calibration_images
from tests.helpers.partial_version import ENVIRONMENT, IDENTITY, TASKS, commit, home, write_task
from tests.helpers.tiny_version import publish, write_manifest

pytestmark = pytest.mark.faults

BLOCK = 512


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> PublishedVersion:
    """Three shards of two images; each is read by all that reads shards."""
    folder = tmp_path_factory.mktemp("damage")
    path = write_manifest(folder, synthesis={"images_per_class": 2, "shard_size": 2})
    return publish(Manifest.read(path))


def place(version: PublishedVersion, number: int = 0) -> Path:
    return Path(version.storage.location(version.shards[number].shard))


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def cut(data: bytes) -> Iterator[bytes]:
    """At every boundary of a block."""
    return (data[:end] for end in range(0, len(data), BLOCK))


def emptied(data: bytes) -> Iterator[bytes]:
    """With zeros, as some disks leave them, from every member on: a tar that looks complete."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            yield data[: member.offset] + bytes(len(data) - member.offset)


def flipped(data: bytes) -> Iterator[bytes]:
    """One bit: in every block, of header, content and padding, each time at another place in it."""
    for number, start in enumerate(range(0, len(data), BLOCK)):
        copy = bytearray(data)
        copy[start + number * 37 % BLOCK] ^= 1 << number % 8
        yield bytes(copy)


def others(data: bytes, other: bytes) -> Iterator[bytes]:
    """Another shard's bytes, and a mixture of both."""
    size = min(len(data), len(other))
    yield other
    yield data[: size // 2] + other[size // 2 : size]


def readers(version: PublishedVersion) -> list[Callable[[], object]]:
    first = version.shards[0]

    def streamed(cache_bytes: int) -> object:
        return list(Stream(version, 32, 6, 0, cache_bytes=cache_bytes).batches(0))

    return [
        lambda: next(version.samples(first)),
        lambda: streamed(0),
        lambda: streamed(1 << 20),
        lambda: calibration_images(version, 32),
    ]


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "another's"])
def test_no_reader_uses_a_damaged_shard(version: PublishedVersion, how: str) -> None:
    whole, other = place(version).read_bytes(), place(version, 1).read_bytes()
    made = {
        "cut": cut(whole),
        "emptied": emptied(whole),
        "flipped": flipped(whole),
        "another's": others(whole, other),
    }[how]
    name = version.shards[0].shard
    tried = 0
    for data in made:
        assert data != whole
        tried += 1
        with replaced(place(version), data):
            for read in readers(version):
                with pytest.raises(
                    CorruptionError, match=f"{name}: .* (its receipt|the index) says"
                ):
                    read()
            assert [name in line for line in verify(version)] == [True]
    blocks = len(whole) // BLOCK
    assert tried == {"cut": blocks, "emptied": 8, "flipped": blocks, "another's": 2}[how]
    assert verify(version) == []
    print(f"{how}: {tried} damaged shards, each refused by {len(readers(version))} readers, verify")


def test_no_damaged_shard_is_published(tmp_path: Path) -> None:
    """A receipt is there, and its shard is not as it was committed."""
    version = begin(home(tmp_path), IDENTITY)
    for task in TASKS:
        commit(version, task)
    path, other = (Path(version.storage.location(f"shards/{t.id}.tar")) for t in TASKS[:2])
    whole = path.read_bytes()
    some = [*cut(whole), *emptied(whole), *flipped(whole)][::7]
    for data in (*some, other.read_bytes()):
        with replaced(path, data):
            with pytest.raises(CorruptionError, match="its receipt says"):
                version.publish(TASKS, ENVIRONMENT)
            assert not version.published
    assert version.publish(TASKS, ENVIRONMENT).id == version.id


def test_no_damaged_shard_is_committed(tmp_path: Path) -> None:
    """Neither one that the worker made, nor one that a dead attempt left without a receipt."""
    version = begin(home(tmp_path / "run"), IDENTITY)
    task, other = TASKS[:2]
    whole = write_task(task, tmp_path / "whole.tar").read_bytes()
    damaged = [*cut(whole), *emptied(whole), write_task(other, tmp_path / "other.tar").read_bytes()]
    for data in damaged:
        (tmp_path / "bad.tar").write_bytes(data)
        refuse(version, tmp_path / "bad.tar")
        left = f"shards/{task.id}.tar"
        version.storage.put(left, data)
        refuse(version, tmp_path / "whole.tar")
        version.storage.delete(left)
    assert version.commit(task, tmp_path / "whole.tar").samples == task.count


def refuse(version: Version, tar: Path) -> None:
    with pytest.raises(CorruptionError):
        version.commit(TASKS[0], tar)
    assert version.receipts() == {}
