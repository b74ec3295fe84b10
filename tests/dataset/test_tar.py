"""The quick reader of verified samples agrees with tarfile, and ends whatever the headers claim."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.dataset.shards import write_shard
from dfkd.dataset.tar import member_slices, members
from tests.helpers.partial_version import make_sample


def shard(folder: Path, images: list[bytes], labels: int = 3) -> bytes:
    like = make_sample(0, 0)
    arrays = like.arrays | {"distances": np.ones(labels, "<f4")}
    samples = [
        dataclasses.replace(like, key=f"s{i}", image=image, arrays=arrays)
        for i, image in enumerate(images)
    ]
    write_shard(samples, folder / "shard.tar")
    return (folder / "shard.tar").read_bytes()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=1500), max_size=4), st.integers(0, 400))
def test_a_shard_reads_as_tarfile_reads_it(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], labels: int
) -> None:
    data = shard(tmp_path_factory.mktemp("plain"), images, labels)
    found = list(member_slices(data))
    assert [(name.decode(), span) for name, span in found] == list(members(data))
    assert len(found) == 4 * len(images)


@pytest.mark.parametrize("digits", [b"-0000000512", b"0000000o512", b" 0000000512", b"00000000009"])
def test_places_end_whatever_the_sizes_claim(tmp_path: Path, digits: bytes) -> None:
    data = bytearray(shard(tmp_path, [b"x" * 2000]))
    data[124:135] = digits  # the size in a header of POSIX
    with pytest.raises(ValueError, match=r"size|base 8"):
        list(member_slices(bytes(data)))
