"""What is published: index, data card and manifest, once, whoever races."""

import dataclasses
import gzip
import hashlib
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.config import plan
from dfkd.config.hashing import fingerprint
from dfkd.dataset import publication
from dfkd.dataset.published import INDEX_SCHEMA, current, open_version
from dfkd.dataset.receipts import decode, encode
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import Version, begin
from dfkd.errors import CorruptionError, PartialError
from tests.helpers.jobs import contents
from tests.helpers.partial_version import (
    BLOCKS,
    ENVIRONMENT,
    IDENTITY,
    TASKS,
    commit,
    commit_all,
    fill,
    home,
    make_sample,
)

ID = fingerprint(IDENTITY)[:16]
FAILED = {"0001-00001": [4]}


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return begin(home(tmp_path), IDENTITY)


def test_a_run_publishes_what_it_made(tmp_path: Path) -> None:
    published = fill(tmp_path)
    assert current(home(tmp_path)) == published == open_version(home(tmp_path), ID)
    assert published.id == ID
    assert published.classes == ("owl", "tree")
    (block,) = BLOCKS
    made = block[1]
    assert [receipt.task for receipt in published.receipts()] == [task.id for task in made]
    assert [receipt.failed for receipt in published.receipts()] == [(), (), (), (4,)]
    read = [sample for receipt in published.receipts() for sample in published.samples(receipt)]
    wanted = [(t.class_index, i) for t in made for i in t.indices if i not in FAILED.get(t.id, [])]
    assert [(s.metadata["class_index"], s.metadata["index"]) for s in read] == wanted
    assert all(s.image == make_sample(*which).image for s, which in zip(read, wanted, strict=True))
    assert verify(published) == []


def test_the_manifest_says_what_was_made_of_what(tmp_path: Path) -> None:
    published = fill(tmp_path)
    manifest = published.facts
    assert manifest["identity"] == IDENTITY
    assert manifest["fingerprint"] == fingerprint(IDENTITY)
    assert manifest["environment"] == ENVIRONMENT
    assert manifest["weights"] == {"teacher.weights": "ab" * 32}
    assert (manifest["samples"], manifest["failed"], manifest["quarantined"]) == (11, 1, [])
    labels = np.concatenate(
        [s.arrays["distances"] for r in published.receipts() for s in published.samples(r)]
    ).astype(np.float64)
    assert manifest["label_mean"] == pytest.approx(labels.mean(), rel=1e-12)
    assert manifest["label_std"] == pytest.approx(labels.std(), rel=1e-9)


def test_images_that_the_teacher_takes_for_another_class_are_counted(tmp_path: Path) -> None:
    published = fill(tmp_path)
    wrong = sum(
        int(sample.arrays["distances"].argmin()) != sample.metadata["class_index"]
        for receipt in list(published.receipts())
        for sample in published.samples(receipt)
    )
    assert 0 < wrong < 11
    assert published.facts["inconsistent"] == wrong
    card = published.storage.get("README.md").decode()
    assert f"- images that the teacher takes for another class than their own: {wrong}\n" in card


def test_the_index_has_one_row_for_each_sample_and_says_where_it_lies(tmp_path: Path) -> None:
    published = fill(tmp_path)
    (block,) = published.blocks
    table = pq.read_table(io.BytesIO(published.storage.get(block.index_key)))
    assert table.schema.equals(INDEX_SCHEMA)
    rows = table.to_pylist()
    assert len(rows) == 11
    assert len({row["key"] for row in rows}) == 11
    for row in rows:
        sample = make_sample(row["class_index"], row["index"])
        assert row["key"] == sample.key
        assert row["shard"] == f"shards/{row['class_index']:04d}-{row['index'] // 3:05d}.tar"
        for name in ("class", "seed", "method", "prompt", "loss", "confidence", "steps", "attempt"):
            assert row[name] == sample.metadata[name]
    for receipt in published.receipts():
        data = published.home.get(receipt.key)
        mine = [row for row in rows if row["shard"] == receipt.shard]
        starts = [row["start"] for row in mine]
        assert starts[0] == 0
        for row, stop in zip(mine, [*starts[1:], len(data)], strict=True):
            piece = data[row["start"] : stop]
            assert hashlib.sha256(piece).digest() == row["sha256"]
            with tarfile.open(fileobj=io.BytesIO(piece)) as tar:
                names = {name.partition(".")[0] for name in tar.getnames()}
            assert names == {row["key"]}


def test_the_index_is_written_in_bounded_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "INDEX_ROWS", 4)
    published = fill(tmp_path)
    (block,) = published.blocks
    file = pq.ParquetFile(io.BytesIO(published.storage.get(block.index_key)))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [6, 5]
    assert verify(published) == []


def test_the_data_card_names_what_a_user_must_know(tmp_path: Path) -> None:
    card = fill(tmp_path).storage.get("README.md").decode()
    for line in ("| owl | 6 | 0 |", "| tree | 5 | 1 |", f"| teacher.weights | `{'ab' * 32}` |"):
        assert line in card
    assert fingerprint(IDENTITY) in card
    assert "quarantined and left out: none" in card


def test_nothing_is_published_while_a_receipt_is_missing(version: Version) -> None:
    commit_all(version, without=("0001-00000",))
    with pytest.raises(PartialError, match=r"1 of 4 tasks have no receipt \(0001-00000\)"):
        version.publish(BLOCKS, ENVIRONMENT)
    with pytest.raises(PartialError, match="0001-00000"):
        version.publish(BLOCKS, ENVIRONMENT, quarantined=["0000-00000"])
    assert not version.published
    assert current(version.home) is None


def test_a_quarantined_task_may_be_missing_and_is_named(version: Version) -> None:
    commit_all(version, without=("0001-00000",))
    quarantined = ["0000-00000", "0001-00000"]  # the first has a receipt all the same
    published = version.publish(BLOCKS, ENVIRONMENT, quarantined)
    assert published.facts["quarantined"] == ["0001-00000"]
    assert [r.task for r in published.receipts()] == ["0000-00000", "0000-00001", "0001-00001"]
    assert "left out: 0001-00000" in published.storage.get("README.md").decode()
    assert verify(published) == []


def test_a_task_of_which_every_image_failed(version: Version) -> None:
    for task in TASKS[1:]:
        commit(version, task)
    assert commit(version, TASKS[0], failed=[0, 1, 2]).samples == 0
    published = version.publish(BLOCKS, ENVIRONMENT)
    assert published.facts["samples"] == 9
    assert verify(published) == []


def test_nothing_is_published_without_an_image(version: Version) -> None:
    for task in TASKS[1:]:
        commit(version, task, failed=task.indices)
    with pytest.raises(PartialError, match="not one image of its 4 tasks"):
        version.publish(BLOCKS, ENVIRONMENT, quarantined=[TASKS[0].id])
    assert not version.published


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    before = contents(tmp_path)
    fill(tmp_path)
    assert contents(tmp_path) == before


def test_racing_publishers_agree(version: Version) -> None:
    commit_all(version, without=("0001-00000",))

    def publish(number: int) -> str:
        if number:
            return version.publish(BLOCKS, ENVIRONMENT, ["0001-00000"]).id
        commit(version, TASKS[1])
        return version.publish(BLOCKS, ENVIRONMENT).id

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(publish, range(4))) == {ID}
    published = current(version.home)
    assert verify(published) == []
    assert list(version.home.list("current/")) == ["current/00000001.json"]


def test_another_pyarrow_never_replaces_an_index(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_all(version)
    published = version.publish(BLOCKS, {"pyarrow": "17.0"})
    (block,) = published.blocks
    index = version.storage.get(block.index_key)
    other = INDEX_SCHEMA.with_metadata({"written by": "another release"})
    monkeypatch.setattr(publication, "INDEX_SCHEMA", other)
    version.storage.put("README.md", b"edited")
    assert version.publish(BLOCKS, ENVIRONMENT) == published
    assert version.storage.get(block.index_key) == index
    assert verify(published) == []
    version.storage.delete(block.index_key)
    with pytest.raises(CorruptionError, match=r"otherwise than pyarrow 17\.0, which made it"):
        publication.repair_block(published, block)


def test_a_publisher_that_is_late_keeps_the_files_of_the_first(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first publishes while the second, which has another pyarrow, reads the receipts."""
    commit_all(version)
    block_files = publication.block_files

    def outrun(*arguments: Any) -> Any:
        monkeypatch.setattr(publication, "block_files", block_files)
        version.publish(BLOCKS, {"pyarrow": "17.0"})
        other = INDEX_SCHEMA.with_metadata({"written by": "another release"})
        monkeypatch.setattr(publication, "INDEX_SCHEMA", other)
        return block_files(*arguments)

    monkeypatch.setattr(publication, "block_files", outrun)
    published = version.publish(BLOCKS, ENVIRONMENT)
    assert published.facts["environment"] == {"pyarrow": "17.0"}
    assert verify(published) == []
    (block,) = published.blocks
    left = sorted(version.storage.list("index/"))
    assert left == sorted([block.index_key, block.receipts_key])


def test_files_of_a_publisher_that_lost_are_written_again(version: Version) -> None:
    commit_all(version, without=("0001-00000",))
    version.publish(BLOCKS, ENVIRONMENT, ["0001-00000"])
    version.storage.delete("README.md")
    version.storage.put("identity.json", b"damaged")
    published = current(version.home)
    assert len(verify(published)) == 2
    version.publish(BLOCKS, ENVIRONMENT)
    assert verify(published) == []


def test_a_run_of_many_shards_has_several_blocks(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_all(version)
    monkeypatch.setattr(plan, "BLOCK_TASKS", 2)
    split = [(f"{shard:05d}", [t for t in TASKS if t.shard_index == shard]) for shard in range(2)]
    published = version.publish(split, ENVIRONMENT)
    assert [(block.name, block.shards) for block in published.blocks] == [
        ("00000", 2),
        ("00001", 2),
    ]
    assert [receipt.task for receipt in published.receipts()] == [task.id for task in TASKS]
    columns = ["class_index", "index"]
    table = pa.concat_tables(published.block_index(each, columns) for each in published.blocks)
    wanted = [{"class_index": t.class_index, "index": i} for t in TASKS for i in t.indices]
    assert table.to_pylist() == wanted
    assert verify(published) == []
    first, second = published.blocks
    version.storage.put(second.receipts_key, b"[]")
    version.storage.delete(second.index_key)
    assert published.damaged_blocks() == [second]
    publication.repair_block(published, second)
    assert verify(published) == []
    with pytest.raises(CorruptionError, match="restore it from a copy"):
        publication.repair_block(published, dataclasses.replace(first, index="0" * 64))


def test_publication_reads_no_shard(version: Version) -> None:
    commit_all(version)
    for key in list(version.storage.list("shards/")):
        version.storage.delete(key)
    assert version.publish(BLOCKS, ENVIRONMENT).facts["samples"] == 12


@pytest.mark.parametrize("damage", ["missing", "flip", "cut", "longer", "other"])
def test_a_damaged_receipt_is_not_published(version: Version, damage: str) -> None:
    commit_all(version)
    key = "receipts/0001-00001.json.gz"
    data = bytearray(version.storage.get(key))
    if damage == "flip":
        data[len(data) // 2] ^= 4
    elif damage == "cut":
        del data[-1:]
    elif damage == "longer":
        data = data * 2
    elif damage == "other":
        data = bytearray(version.storage.get("receipts/0001-00000.json.gz"))
    version.storage.put(key, bytes(data))
    if damage == "missing":
        version.storage.delete(key)
        with pytest.raises(PartialError, match="1 of 4 tasks have no receipt"):
            version.publish(BLOCKS, ENVIRONMENT)
    else:
        with pytest.raises(CorruptionError, match=r"0001-00001\.json\.gz: .* delete it and run"):
            version.publish(BLOCKS, ENVIRONMENT)
    assert current(version.home) is None


@given(st.binary(max_size=200))
def test_bytes_that_are_no_receipt_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptionError, match="there: not a receipt"):
        decode(data, "there")


def test_a_receipt_that_inflates_without_end_is_refused() -> None:
    with pytest.raises(CorruptionError, match="no whole gzip file of one receipt"):
        decode(gzip.compress(bytes(20 << 20)), "there")


def test_a_receipt_whose_columns_are_shorter_than_its_shard_is_refused(version: Version) -> None:
    commit(version, TASKS[0])
    receipt, images = decode(version.storage.get("receipts/0000-00000.json.gz"), "there")
    shorter = dataclasses.replace(images, prompt=images.prompt[1:])
    with pytest.raises(CorruptionError, match=r"images\.prompt: 2 of 3 images"):
        decode(encode(receipt, shorter), "there")
