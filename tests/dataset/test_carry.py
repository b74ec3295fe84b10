"""A version that carries shards of another one over by reference, without a copy."""

import dataclasses
from pathlib import Path

import pytest

from dfkd.dataset.published import PublishedVersion, advance, current, open_version
from dfkd.dataset.receipts import Images, Receipt, decode, encode
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import begin
from dfkd.errors import DfkdError, Exit, InfrastructureError
from dfkd.report.gallery import read_index
from dfkd.storage import layout
from tests.helpers.jobs import contents
from tests.helpers.partial_version import (
    BLOCKS,
    IDENTITY,
    TASKS,
    fill,
    home,
    open_filling,
    regenerated,
)


def losses(version: PublishedVersion) -> list[set[float]]:
    return [{s.metadata["loss"] for s in version.samples(r)} for r in version.receipts()]


def test_carried_shards_are_read_where_they_lie(tmp_path: Path) -> None:
    base = fill(tmp_path)
    version = regenerated(tmp_path, base, 1, TASKS[:1])
    assert list(version.storage.list("shards/")) == [f"shards/{TASKS[0].id}.tar"]
    assert [r.version for r in version.receipts()] == ["", *[base.id] * 3]
    assert losses(version) == [{1.5}, {0.5}, {0.5}, {0.5}]
    assert list(version.receipts())[1].key == list(base.receipts())[1].key
    assert verify(version) == []
    assert current(home(tmp_path)) == version
    card = version.storage.get("README.md").decode()
    assert f"versions/{base.id}`, from which they were carried over: 3" in card


def test_a_chain_ends_at_the_version_that_holds_the_bytes(tmp_path: Path) -> None:
    base = fill(tmp_path)
    first = regenerated(tmp_path, base, 1, TASKS[:1])
    second = regenerated(tmp_path, first, 2, TASKS[1:2])
    assert [r.version for r in second.receipts()] == [first.id, base.id, "", base.id]
    assert losses(second) == [{1.5}, {0.5}, {2.5}, {0.5}]
    assert verify(second) == []
    assert second.block_index(second.blocks[0], ["key"]).num_rows == 11
    assert read_index(second).total == 11


def test_carrying_again_changes_nothing(tmp_path: Path) -> None:
    base = fill(tmp_path)
    regenerated(tmp_path, base, 1, TASKS[:1])
    before = contents(tmp_path)
    regenerated(tmp_path, base, 1, TASKS[:1])
    assert contents(tmp_path) == before


def test_a_candidate_is_published_and_not_current(tmp_path: Path) -> None:
    base = fill(tmp_path)
    candidate = regenerated(tmp_path, base, 1, TASKS[:1], make_current=False)
    assert current(home(tmp_path)) == base
    assert open_version(home(tmp_path), candidate.id) == candidate


def test_verify_names_a_damaged_carried_shard(tmp_path: Path) -> None:
    base = fill(tmp_path)
    version = regenerated(tmp_path, base, 1, TASKS[:1])
    version.home.put(list(version.receipts())[2].key, b"damaged")
    assert [list(version.receipts())[2].key in line for line in verify(version)] == [True]


def test_a_receipt_says_where_its_shard_lies() -> None:
    images = Images([4], [1], ["an owl"], [0.5], [0.25], [20], [0], ["png"], [0], ["ef" * 32])
    receipt = Receipt(
        "0000-00000", "shards/0000-00000.tar", "ab" * 32, 10, 1, (2,), "cd" * 32, 2, 0.1, 0.01, 0
    )
    carried = dataclasses.replace(receipt, version="0123456789abcdef")
    assert receipt.key == f"versions/{'cd' * 8}/shards/0000-00000.tar"
    assert carried.key == "versions/0123456789abcdef/shards/0000-00000.tar"
    for each in (receipt, carried):
        assert decode(encode(each, images), "there") == (each, images)


def test_a_version_that_is_being_removed_is_not_begun_or_made_current(tmp_path: Path) -> None:
    base = fill(tmp_path)
    candidate = regenerated(tmp_path, base, 1, TASKS[:1], make_current=False)
    home(tmp_path).put(f"versions/{candidate.id}/{layout.REMOVING}", b"")
    with pytest.raises(DfkdError, match=r"is being removed; run dfkd clean") as refused:
        advance(home(tmp_path), candidate.id)
    assert refused.value.exit_code == Exit.FAILED
    with pytest.raises(DfkdError, match="is being removed"):
        regenerated(tmp_path, base, 1, TASKS[:1])
    begin(home(tmp_path), IDENTITY | {"salt": 5})  # other versions can be begun


def test_a_version_that_is_half_removed_is_no_unfinished_work(tmp_path: Path) -> None:
    version = fill(tmp_path)
    version.storage.put(layout.REMOVING, b"")
    version.storage.delete(layout.PUBLISHED)
    begin(home(tmp_path), IDENTITY | {"salt": 5})


def test_a_manifest_that_is_made_anew_is_the_one_that_current_names(tmp_path: Path) -> None:
    first = fill(tmp_path)
    first.storage.delete(layout.PUBLISHED)
    again = open_filling(tmp_path).publish(BLOCKS, {"torch": "another"})
    assert again.id == first.id
    assert current(home(tmp_path)) == again != first


def test_a_job_that_lost_its_lease_does_not_move_current(tmp_path: Path) -> None:
    base = fill(tmp_path)
    candidate = regenerated(tmp_path, base, 1, TASKS[:1], make_current=False)

    def lost() -> None:
        raise InfrastructureError("lost")

    with pytest.raises(InfrastructureError, match="lost"):
        advance(home(tmp_path), candidate.id, lost)
    assert current(home(tmp_path)) == base
    advance(home(tmp_path), base.id, lost)  # nothing is to be moved
