"""Single samples of a version, each verified by itself."""

import random
from pathlib import Path

import numpy as np
import pytest

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.random_access import Examples, parse
from dfkd.errors import CorruptionError
from tests.helpers.tiny_version import publish, write_manifest


@pytest.fixture
def version(tmp_path: Path) -> PublishedVersion:
    """3 classes x 10 images in shards of 4, 4 and 2."""
    return publish(Manifest.read(write_manifest(tmp_path, synthesis={"images_per_class": 10})))


def place(version: PublishedVersion, shard: int) -> Path:
    path = Path(version.home.location(list(version.receipts())[shard].key))
    path.chmod(0o644)
    return path


def test_each_sample_is_what_its_shard_holds(version: PublishedVersion) -> None:
    examples = Examples(version)
    whole = [sample for receipt in version.receipts() for sample in version.samples(receipt)]
    assert len(examples) == len(whole) == 30
    for begin, end in ((0, 4), (4, 8), (8, 10), (1, 2), (29, 30)):
        found = examples.read(np.arange(begin, end))
        for number, data in zip(range(begin, end), found, strict=True):
            example, sample = parse(data), whole[number]
            assert (example.key, example.image) == (sample.key, sample.image)
            assert example.extension == sample.extension
            assert example.distances == sample.arrays["distances"].tobytes()
            assert example.embedding == sample.arrays["embedding"].tobytes()
    keys = [parse(data).key for data in examples.read(np.array([4, 7]))]
    assert keys == [whole[4].key, whole[7].key]
    assert examples.labels(np.arange(30)).tolist() == [
        sample.metadata["class_index"] for sample in whole
    ]


def refuses(examples: Examples, sample: int) -> bool:
    try:
        examples.read(np.array([sample]))
    except CorruptionError:
        return True
    return False


def test_any_flipped_bit_of_a_shard_is_found_by_the_sample_it_lies_in(
    version: PublishedVersion,
) -> None:
    """Headers, contents, padding and end mark: each byte of a shard belongs to one sample."""
    examples, path = Examples(version), place(version, 1)
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(200):
        bit = chance.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert sum(refuses(examples, sample) for sample in range(4, 8)) == 1
        with pytest.raises(CorruptionError, match="the index says"):
            examples.read(np.arange(4, 8))


@pytest.mark.parametrize("kept", [0, 1, 600, 5000])
def test_a_shard_that_is_cut_is_found(version: PublishedVersion, kept: int) -> None:
    examples, path = Examples(version), place(version, 0)
    path.write_bytes(path.read_bytes()[:kept])
    for sample in (0, 3):
        if kept < 5000 or sample:
            with pytest.raises(CorruptionError, match="the index says"):
                examples.read(np.array([sample]))


def test_a_damaged_index_is_refused(version: PublishedVersion) -> None:
    path = Path(version.storage.location(version.blocks[0].index_key))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptionError, match="is not what was published; run dfkd verify"):
        Examples(version).rows(0)
