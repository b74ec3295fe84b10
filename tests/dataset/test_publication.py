"""What is published: index, data card and manifest, once, whoever races."""

import hashlib
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfkd.config.hashing import fingerprint
from dfkd.dataset import publication
from dfkd.dataset.published import INDEX_SCHEMA, current, open_version
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import Version, begin
from dfkd.errors import CorruptionError, PartialError
from tests.helpers.jobs import contents
from tests.helpers.partial_version import (
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
    assert [receipt.task for receipt in published.shards] == [task.id for task in TASKS]
    assert [receipt.failed for receipt in published.shards] == [(), (), (), (4,)]
    read = [sample for receipt in published.shards for sample in published.samples(receipt)]
    wanted = [(t.class_index, i) for t in TASKS for i in t.indices if i not in FAILED.get(t.id, [])]
    assert [(s.metadata["class_index"], s.metadata["index"]) for s in read] == wanted
    assert all(s.image == make_sample(*which).image for s, which in zip(read, wanted, strict=True))
    assert verify(published) == []


def test_the_manifest_says_what_was_made_of_what(tmp_path: Path) -> None:
    published = fill(tmp_path)
    manifest = published.manifest
    assert manifest["identity"] == IDENTITY
    assert manifest["fingerprint"] == fingerprint(IDENTITY)
    assert manifest["environment"] == ENVIRONMENT
    assert manifest["weights"] == {"teacher.weights": "ab" * 32}
    assert (manifest["samples"], manifest["failed"], manifest["quarantined"]) == (11, 1, [])
    labels = np.concatenate(
        [s.arrays["distances"] for r in published.shards for s in published.samples(r)]
    ).astype(np.float64)
    assert manifest["label_mean"] == pytest.approx(labels.mean(), rel=1e-12)
    assert manifest["label_std"] == pytest.approx(labels.std(), rel=1e-9)


def test_images_that_the_teacher_takes_for_another_class_are_counted(tmp_path: Path) -> None:
    published = fill(tmp_path)
    wrong = sum(
        int(sample.arrays["distances"].argmin()) != sample.metadata["class_index"]
        for receipt in published.shards
        for sample in published.samples(receipt)
    )
    assert 0 < wrong < 11
    assert published.manifest["inconsistent"] == wrong
    card = published.storage.get("README.md").decode()
    assert f"- images that the teacher takes for another class than their own: {wrong}\n" in card


def test_the_index_has_one_row_for_each_sample_and_says_where_it_lies(tmp_path: Path) -> None:
    published = fill(tmp_path)
    table = pq.read_table(io.BytesIO(published.storage.get("index.parquet")))
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
    for receipt in published.shards:
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
    file = pq.ParquetFile(io.BytesIO(published.storage.get("index.parquet")))
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
        version.publish(TASKS, ENVIRONMENT)
    with pytest.raises(PartialError, match="0001-00000"):
        version.publish(TASKS, ENVIRONMENT, quarantined=["0000-00000"])
    assert not version.published
    assert current(version.home) is None


def test_a_quarantined_task_may_be_missing_and_is_named(version: Version) -> None:
    commit_all(version, without=("0001-00000",))
    quarantined = ["0000-00000", "0001-00000"]  # the first has a receipt all the same
    published = version.publish(TASKS, ENVIRONMENT, quarantined)
    assert published.manifest["quarantined"] == ["0001-00000"]
    assert [r.task for r in published.shards] == ["0000-00000", "0000-00001", "0001-00001"]
    assert "left out: 0001-00000" in published.storage.get("README.md").decode()
    assert verify(published) == []


def test_a_task_of_which_every_image_failed(version: Version) -> None:
    for task in TASKS[1:]:
        commit(version, task)
    assert commit(version, TASKS[0], failed=[0, 1, 2]).samples == 0
    published = version.publish(TASKS, ENVIRONMENT)
    assert published.manifest["samples"] == 9
    assert verify(published) == []


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    before = contents(tmp_path)
    fill(tmp_path)
    assert contents(tmp_path) == before


def test_racing_publishers_agree(version: Version) -> None:
    commit_all(version, without=("0001-00000",))

    def publish(number: int) -> str:
        if number:
            return version.publish(TASKS, ENVIRONMENT, ["0001-00000"]).id
        commit(version, TASKS[1])
        return version.publish(TASKS, ENVIRONMENT).id

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(publish, range(4))) == {ID}
    published = current(version.home)
    assert verify(published) == []
    assert list(version.home.list("current/")) == ["current/00000001.json"]


def test_another_pyarrow_never_replaces_an_index(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_all(version)
    version.publish(TASKS, {"pyarrow": "17.0"})
    index = version.storage.get("index.parquet")
    other = INDEX_SCHEMA.with_metadata({"written by": "another release"})
    monkeypatch.setattr(publication, "INDEX_SCHEMA", other)
    version.storage.put("README.md", b"edited")
    version.publish(TASKS, ENVIRONMENT)
    assert version.storage.get("index.parquet") == index
    assert verify(current(version.home)) == []
    version.storage.delete("index.parquet")
    with pytest.raises(CorruptionError, match=r"otherwise than pyarrow 17\.0, which made it"):
        version.publish(TASKS, ENVIRONMENT)


def test_a_publisher_that_is_late_keeps_the_files_of_the_first(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first publishes while the second, which has another pyarrow, reads the shards."""
    commit_all(version)
    write_index = publication.write_index

    def outrun(*arguments: Any) -> publication.LabelMoments:
        monkeypatch.setattr(publication, "write_index", write_index)
        version.publish(TASKS, {"pyarrow": "17.0"})
        other = INDEX_SCHEMA.with_metadata({"written by": "another release"})
        monkeypatch.setattr(publication, "INDEX_SCHEMA", other)
        return write_index(*arguments)

    monkeypatch.setattr(publication, "write_index", outrun)
    published = version.publish(TASKS, ENVIRONMENT)
    assert published.manifest["environment"] == {"pyarrow": "17.0"}
    assert verify(published) == []


def test_files_of_a_publisher_that_lost_are_written_again(version: Version) -> None:
    commit_all(version, without=("0001-00000",))
    version.publish(TASKS, ENVIRONMENT, ["0001-00000"])
    version.storage.put("index.parquet", b"of another publisher")
    version.storage.delete("README.md")
    version.storage.put("identity.json", b"damaged")
    published = current(version.home)
    assert len(verify(published)) == 3
    version.publish(TASKS, ENVIRONMENT)
    assert verify(published) == []


@pytest.mark.parametrize("damage", ["flip", "append", "cut"])
def test_a_damaged_shard_is_not_published(version: Version, damage: str) -> None:
    commit_all(version)
    data = bytearray(version.storage.get("shards/0001-00001.tar"))
    if damage == "flip":
        data[700] ^= 4
    elif damage == "append":
        data += bytes(10240)
    else:
        del data[-512:]
    version.storage.put("shards/0001-00001.tar", bytes(data))
    with pytest.raises(CorruptionError, match=r"shards/0001-00001\.tar: is not what its receipt"):
        version.publish(TASKS, ENVIRONMENT)
    assert current(version.home) is None
