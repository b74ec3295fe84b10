"""What readers open: pointers, manifests and rows of the index, and what they refuse."""

import contextlib
import json
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfkd.config.hashing import fingerprint
from dfkd.config.plan import Task
from dfkd.dataset.publication import block_files
from dfkd.dataset.published import INDEX_SCHEMA, advance, current, open_version
from dfkd.dataset.receipts import decode, encode
from dfkd.dataset.shards import describe, parse_shard
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import begin
from dfkd.errors import CorruptionError
from dfkd.storage.base import MissingObject
from tests.dataset.test_shards import with_sample
from tests.helpers.partial_version import (
    BLOCKS,
    ENVIRONMENT,
    IDENTITY,
    commit_all,
    fill,
    home,
    make_sample,
)

ID = fingerprint(IDENTITY)[:16]
FACTS = make_sample(0, 0).metadata
INTEGERS = [key for key, value in FACTS.items() if isinstance(value, int)]


@pytest.mark.parametrize("key", INTEGERS)
def test_integers_as_large_as_the_index_takes_are_read(key: str) -> None:
    limit = 1 << INDEX_SCHEMA.field(key).type.bit_width - 1
    for value in (1 - limit, limit - 1):
        text = json.dumps(FACTS | {key: value})
        assert list(parse_shard(with_sample(text.encode()), "x"))[3].metadata[key] == value
    text = json.dumps(FACTS | {key: limit})
    with pytest.raises(CorruptionError, match=rf"sample 'z': {key}: must be less than"):
        list(parse_shard(with_sample(text.encode()), "x"))


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(INTEGERS), st.integers()),
    st.text(st.characters()),
)
@example({"seed": 1 << 80}, "")
@example({}, "\ud800")
def test_metadata_that_is_read_can_be_written_to_the_index(
    numbers: dict[str, int], prompt: str
) -> None:
    text = json.dumps(FACTS | numbers | {"prompt": prompt, "index": 3})
    data = with_sample(text.encode())
    with contextlib.suppress(CorruptionError):
        task = Task(0, 0, 0, 4)
        entry = describe(data, task, "ab" * 32, [], "x")
        assert decode(encode(*entry), "x") == entry
        _, index = block_files([entry], ["owl"], "vanilla")
        row = pq.read_table(pa.BufferReader(index)).to_pylist()[3]
        sample, images = list(parse_shard(data, "x"))[3], entry[1]
        assert row["prompt"] == prompt
        assert {key: row[key] for key in INTEGERS} == {
            key: sample.metadata[key] for key in INTEGERS
        }
        assert (row["start"], row["sha256"].hex()) == (images.start[3], images.sha256[3])


def test_what_was_removed_does_not_become_current(tmp_path: Path) -> None:
    version = begin(home(tmp_path), IDENTITY)
    with pytest.raises(MissingObject, match=r"version\.json: no such object"):
        advance(version.home, version.id)


def test_the_version_that_was_published_last_is_current(tmp_path: Path) -> None:
    first = fill(tmp_path)
    second = begin(home(tmp_path), IDENTITY | {"salt": 5})
    assert current(home(tmp_path)) == first
    commit_all(second)
    assert second.publish(BLOCKS, ENVIRONMENT) == current(home(tmp_path))
    assert open_version(home(tmp_path), ID) == first
    fill(tmp_path)  # the first manifest again: its version is current again
    assert current(home(tmp_path)) == first
    assert len(list(home(tmp_path).list("current/"))) == 3


@pytest.mark.parametrize("name", ["version.json", "index", "receipts", "README.md"])
def test_any_flipped_bit_of_a_published_file_is_found(tmp_path: Path, name: str) -> None:
    published = fill(tmp_path)
    (block,) = published.blocks
    name = {"index": block.index_key, "receipts": block.receipts_key}.get(name, name)
    whole = published.storage.get(name)
    for place in random.Random(0).sample(range(len(whole)), 20):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        published.storage.put(name, bytes(data))
        try:
            held = current(home(tmp_path))
            problems = verify(held)
        except CorruptionError as error:
            problems = [str(error)]
        assert problems, place
        assert name in problems[0]


@pytest.mark.parametrize(
    "change",
    [
        *(lambda m, other=other: {"schema": other} for other in (2, 4, "3", None)),
        lambda m: {"samples": m["samples"] + 1},
        lambda m: {"shards": m["shards"] + 1},
        lambda m: {"failed": m["failed"] + 1},
        lambda m: {"inconsistent": None},
        lambda m: {"inconsistent": -1},
        lambda m: {"class_samples": m["class_samples"][:1]},
        lambda m: {"class_samples": [1, *m["class_samples"][1:]]},
        lambda m: {"card": None},
        lambda m: {"carried": {"../base": 1}},
        lambda m: {"blocks": m["blocks"] * 2},
        lambda m: {"blocks": [m["blocks"][0] | {"name": "../x"}]},
        lambda m: {"blocks": [m["blocks"][0] | {"samples": 1 << 62}]},
        lambda m: {"fingerprint": "0" * 64},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    published = fill(tmp_path)
    altered = published.facts | change(published.facts)
    published.storage.put("version.json", json.dumps(altered).encode())
    with pytest.raises(CorruptionError, match="is not what was published"):
        open_version(home(tmp_path), ID)


def test_the_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    published, other = fill(tmp_path), begin(home(tmp_path), IDENTITY | {"salt": 1})
    commit_all(other)
    other.publish(BLOCKS, ENVIRONMENT)
    published.storage.put("version.json", other.storage.get("version.json"))
    with pytest.raises(CorruptionError, match="is not what was published"):
        open_version(home(tmp_path), ID)


def test_a_pointer_that_claims_gigabytes_is_not_read_whole(tmp_path: Path) -> None:
    fill(tmp_path)
    with (tmp_path / "data/vanilla/current/00000002.json").open("wb") as file:
        file.truncate(1 << 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptionError, match="names no version"):
        current(home(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kilobytes


def pointer(**changes: object) -> bytes:
    return json.dumps({"number": 2, "version": "0" * 16, "sha256": "0" * 64} | changes).encode()


def test_a_pointer_to_nowhere_is_refused(tmp_path: Path) -> None:
    storage = home(tmp_path)
    fill(tmp_path)
    storage.put("current/notes.txt", b"")
    assert current(storage) is not None
    for content, reason in [
        (b"{", "names no version"),
        (b"{}", "names no version"),
        (pointer(version="0" * 16), "no such object"),
        (pointer(version="../x"), "names no version"),
        (pointer(number=3), "names no version"),
        (pointer(number=None), "names no version"),
        (pointer(number=10**400), "names no version"),
        (pointer(sha256="../version"), "names no version"),
    ]:
        storage.put("current/00000002.json", content)
        with pytest.raises(CorruptionError, match=reason):
            current(storage)
