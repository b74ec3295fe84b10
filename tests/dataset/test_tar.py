"""The quick reader of shards takes what `write_shard` writes, and agrees with tarfile on it."""

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.dataset import tar as plain_tar
from dfkd.dataset.shards import write_shard
from tests.helpers.partial_version import make_sample

BLOCK = tarfile.BLOCKSIZE


def shard(folder: Path, images: list[bytes], labels: int = 3) -> bytes:
    like = make_sample(0, 0)
    arrays = like.arrays | {"distances": np.ones(labels, "<f4")}
    samples = [
        dataclasses.replace(like, key=f"s{i}", image=image, arrays=arrays)
        for i, image in enumerate(images)
    ]
    write_shard(samples, folder / "shard.tar")
    return (folder / "shard.tar").read_bytes()


def by_tarfile(data: bytes) -> list[tuple[str, slice]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [(m.name, slice(m.offset_data, m.offset_data + m.size)) for m in tar]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=1500), max_size=4), st.integers(0, 400))
def test_a_shard_reads_as_tarfile_reads_it(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], labels: int
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    data = shard(folder, images, labels)
    found = plain_tar.members(data)
    assert found == by_tarfile(data)
    assert len(found) == 4 * len(images)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_is_content_or_left_to_tarfile(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Only the content of members may differ from what `write_shard` writes."""
    folder = tmp_path_factory.mktemp("plain")
    whole = shard(folder, [b"x" * 700])
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != whole[place]))
    changed = whole[:place] + bytes([value]) + whole[place + 1 :]
    inside = any(span.start <= place < span.stop for _, span in by_tarfile(whole))
    assert plain_tar.members(changed) == (by_tarfile(whole) if inside else None)


def test_what_write_shard_never_writes_is_left_to_tarfile(tmp_path: Path) -> None:
    whole = shard(tmp_path, [b"x"])
    for change in (
        lambda m: setattr(m, "mode", 0o777),
        lambda m: setattr(m, "uname", "root"),
        lambda m: setattr(m, "mtime", 1),
        lambda m: setattr(m, "type", tarfile.SYMTYPE),
        lambda m: setattr(m, "linkname", "/etc/passwd"),
    ):
        member = tarfile.TarInfo.frombuf(whole[:BLOCK], "utf-8", "strict")
        change(member)
        assert plain_tar.members(member.tobuf(tarfile.USTAR_FORMAT) + whole[BLOCK:]) is None
    assert plain_tar.members(b"garbage" * 200) is None
    assert plain_tar.members(whole[: BLOCK - 1]) is None


def test_a_member_that_is_cut_ends_behind_the_data(tmp_path: Path) -> None:
    whole = shard(tmp_path, [b"x" * 2000])
    cut = whole[: BLOCK + 100]
    found = plain_tar.members(cut)
    assert found[-1][1].stop > len(cut)


def test_places_are_those_of_the_members(tmp_path: Path) -> None:
    whole = shard(tmp_path, [b"", b"x" * 2000])
    assert list(plain_tar.member_slices(whole)) == plain_tar.members(whole)


@pytest.mark.parametrize("digits", [b"-0000000512", b"0000000o512", b" 0000000512", b"00000000009"])
def test_places_end_whatever_the_sizes_claim(tmp_path: Path, digits: bytes) -> None:
    data = bytearray(shard(tmp_path, [b"x" * 2000]))
    data[plain_tar._SIZE_FIELD] = digits
    with pytest.raises(ValueError, match=r"size|base 8"):
        list(plain_tar.member_slices(bytes(data)))
