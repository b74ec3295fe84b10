"""A version that carries shards of another one over by reference, without a copy."""

import dataclasses
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dfkd.dataset.published import PublishedVersion, advance, current, open_version
from dfkd.dataset.shards import Receipt, decode_receipt, encode_receipt
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import begin
from dfkd.errors import DfkdError, Exit, InfrastructureError
from dfkd.report.gallery import read_index
from dfkd.storage import layout
from dfkd.utils.strict_json import canonical
from tests.helpers.jobs import contents
from tests.helpers.partial_version import IDENTITY, TASKS, fill, home, open_filling, regenerated


def losses(version: PublishedVersion) -> list[set[float]]:
    return [{s.metadata["loss"] for s in version.samples(r)} for r in version.shards]


def test_carried_shards_are_read_where_they_lie(tmp_path: Path) -> None:
    base = fill(tmp_path)
    version = regenerated(tmp_path, base, 1, TASKS[:1])
    assert list(version.storage.list("shards/")) == [f"shards/{TASKS[0].id}.tar"]
    assert [r.version for r in version.shards] == ["", *[base.id] * 3]
    assert losses(version) == [{1.5}, {0.5}, {0.5}, {0.5}]
    assert version.shards[1].key == base.shards[1].key
    assert verify(version) == []
    assert current(home(tmp_path)) == version
    card = version.storage.get("README.md").decode()
    assert f"versions/{base.id}`, from which they were carried over: 3" in card


def test_a_chain_ends_at_the_version_that_holds_the_bytes(tmp_path: Path) -> None:
    base = fill(tmp_path)
    first = regenerated(tmp_path, base, 1, TASKS[:1])
    second = regenerated(tmp_path, first, 2, TASKS[1:2])
    assert [r.version for r in second.shards] == [first.id, "", base.id, base.id]
    assert losses(second) == [{1.5}, {2.5}, {0.5}, {0.5}]
    assert verify(second) == []
    table = pq.read_table(io.BytesIO(second.storage.get("index.parquet")))
    assert table.num_rows == 11
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
    version.home.put(version.shards[2].key, b"damaged")
    assert [version.shards[2].key in line for line in verify(version)] == [True]


def test_a_receipt_says_where_its_shard_lies_only_if_it_is_elsewhere() -> None:
    receipt = Receipt("0000-00000", "shards/0000-00000.tar", "ab" * 32, 10, 1, (2,), "cd" * 32)
    own = canonical({
        "bytes": 10, "failed": [2], "fingerprint": "cd" * 32, "samples": 1, "sha256": "ab" * 32,
        "shard": "shards/0000-00000.tar", "task": "0000-00000",
    })  # fmt: skip
    assert encode_receipt(receipt) == own  # as ever: the receipts of old roots are these
    carried = dataclasses.replace(receipt, version="0123456789abcdef")
    assert receipt.key == f"versions/{'cd' * 8}/shards/0000-00000.tar"
    assert carried.key == "versions/0123456789abcdef/shards/0000-00000.tar"
    for each in (receipt, carried):
        assert decode_receipt(encode_receipt(each), "there") == each


def test_a_version_that_is_being_removed_is_not_begun_or_made_current(tmp_path: Path) -> None:
    base = fill(tmp_path)
    candidate = regenerated(tmp_path, base, 1, TASKS[:1], make_current=False)
    home(tmp_path).put(f"versions/{candidate.id}/{layout.REMOVING}", b"")
    with pytest.raises(DfkdError, match=r"is being removed; run jobs/clean\.py") as refused:
        advance(home(tmp_path), candidate.id)
    assert refused.value.exit_code == Exit.FAILED
    with pytest.raises(DfkdError, match="is being removed"):
        regenerated(tmp_path, base, 1, TASKS[:1])
    begin(home(tmp_path), IDENTITY | {"salt": 5})  # other versions can be begun


def test_a_version_that_is_half_removed_is_no_unfinished_work(tmp_path: Path) -> None:
    version = fill(tmp_path)
    version.storage.put(layout.REMOVING, b"")
    version.storage.delete(layout.MANIFEST)
    begin(home(tmp_path), IDENTITY | {"salt": 5})


def test_a_manifest_that_is_made_anew_is_the_one_that_current_names(tmp_path: Path) -> None:
    first = fill(tmp_path)
    first.storage.delete(layout.MANIFEST)
    again = open_filling(tmp_path).publish(TASKS, {"torch": "another"})
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
