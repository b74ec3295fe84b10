import hashlib
import io
import json
import multiprocessing
import random
import tarfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfkd.config.hashing import fingerprint
from dfkd.dataset import publication
from dfkd.dataset.published import (
    INDEX_SCHEMA,
    advance,
    current,
    open_version,
    read_json,
)
from dfkd.dataset.shards import read_shard
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import Version, begin
from dfkd.errors import CorruptionError, Exit, FingerprintError, PartialError
from dfkd.storage.base import MissingObject
from tests.helpers import partial_version
from tests.helpers.jobs import contents
from tests.helpers.partial_version import (
    ENVIRONMENT,
    IDENTITY,
    TASKS,
    commit,
    fill,
    home,
    make_sample,
    write_task,
)

CONTEXT = multiprocessing.get_context("forkserver")
ID = fingerprint(IDENTITY)[:16]
FAILED = {"0001-00001": [4]}


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return begin(home(tmp_path), IDENTITY)


def commit_all(version: Version, without: tuple[str, ...] = ()) -> None:
    for task in TASKS:
        if task.id not in without:
            commit(version, task)


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


def test_why_a_task_is_quarantined_is_stored_until_it_is_tried_again(version: Version) -> None:
    version.quarantine(TASKS[0].id, "no luck at s3://me:hunter2@bucket")
    reason = {"task": "0000-00000", "reason": "no luck at s3://***@bucket"}
    assert read_json(version.storage, "quarantined/0000-00000.json") == reason
    version.lift_quarantine()
    assert list(version.storage.list("quarantined/")) == []


def test_a_quarantined_task_may_be_missing_and_is_named(version: Version) -> None:
    commit_all(version, without=("0001-00000",))
    quarantined = ["0000-00000", "0001-00000"]  # the first has a receipt all the same
    published = version.publish(TASKS, ENVIRONMENT, quarantined)
    assert published.manifest["quarantined"] == ["0001-00000"]
    assert [r.task for r in published.shards] == ["0000-00000", "0000-00001", "0001-00001"]
    assert "left out: 0001-00000" in published.storage.get("README.md").decode()
    assert verify(published) == []


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    before = contents(tmp_path)
    fill(tmp_path)
    assert contents(tmp_path) == before


def test_a_published_version_keeps_its_summary_of_prompts(tmp_path: Path) -> None:
    """A second driver that is late has other last digits on another processor."""
    published, version = fill(tmp_path), begin(home(tmp_path), IDENTITY)
    before = version.storage.get("prompts.json")
    version.seal_prompts([], {"vendi": 1.0000000000000002})
    assert version.storage.get("prompts.json") == before
    assert verify(published) == []


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
    published = current(version.home)
    assert len(verify(published)) == 2
    version.publish(TASKS, ENVIRONMENT)
    assert verify(published) == []


# --- fingerprints ---------------------------------------------------------------------------------

OTHER = IDENTITY | {"classes": ["owl", "rocket"], "synthesis.steps": 9}


def test_unfinished_work_of_another_manifest_is_refused_with_the_difference(tmp_path: Path) -> None:
    commit(begin(home(tmp_path), IDENTITY), TASKS[0])
    before = contents(tmp_path)
    with pytest.raises(FingerprintError) as caught:
        begin(home(tmp_path), OTHER)
    text = str(caught.value)
    assert "classes: ['owl', 'tree'] there, ['owl', 'rocket'] here" in text
    assert "synthesis.steps: None there, 9 here" in text
    assert "seed" not in text
    assert "--abandon" in text
    assert caught.value.exit_code == Exit.USAGE
    assert contents(tmp_path) == before


def test_abandoned_work_stays_and_can_be_taken_up_again(tmp_path: Path) -> None:
    commit(begin(home(tmp_path), IDENTITY), TASKS[0])
    other = begin(home(tmp_path), OTHER, abandon=True)
    assert other.receipts() == {}
    begin(home(tmp_path), OTHER)
    with pytest.raises(FingerprintError, match=r"synthesis\.steps"):
        begin(home(tmp_path), IDENTITY)
    assert list(begin(home(tmp_path), IDENTITY, abandon=True).receipts()) == [TASKS[0].id]
    with pytest.raises(FingerprintError, match=r"synthesis\.steps"):
        begin(home(tmp_path), OTHER)


def test_the_version_that_was_published_last_is_current(tmp_path: Path) -> None:
    first = fill(tmp_path)
    second = begin(home(tmp_path), OTHER)
    assert current(home(tmp_path)) == first
    commit_all(second)
    assert second.publish(TASKS, ENVIRONMENT) == current(home(tmp_path))
    assert open_version(home(tmp_path), ID) == first
    fill(tmp_path)  # the first manifest again: its version is current again
    assert current(home(tmp_path)) == first
    assert len(list(home(tmp_path).list("current/"))) == 3


def test_the_first_summary_of_the_same_prompts_stays(version: Version) -> None:
    """A publisher may have hashed it already."""
    version.put_prompts("00000", prompt_table(3))
    version.seal_prompts(["00000"], {"vendi": 1.0})
    version.seal_prompts(["00000"], {"vendi": 1.0000000000000002})
    assert read_json(version.storage, "prompts.json")["vendi"] == 1.0
    version.storage.delete("prompts/00000.parquet")
    version.put_prompts("00000", prompt_table(2))
    version.seal_prompts(["00000"], {"vendi": 2.0})
    assert read_json(version.storage, "prompts.json")["vendi"] == 2.0


# --- commits --------------------------------------------------------------------------------------


def test_the_first_receipt_wins(version: Version) -> None:
    first = commit(version, TASKS[0])
    stored = version.storage.get(first.shard)
    assert commit(version, TASKS[0], shift=1.0) == first
    assert commit(version, TASKS[0], failed=[1]) == first
    assert version.storage.get(first.shard) == stored
    assert version.receipts() == {TASKS[0].id: first}


def test_a_receipt_describes_the_shard_that_an_earlier_attempt_left(
    version: Version, tmp_path: Path
) -> None:
    earlier = write_task(TASKS[0], tmp_path / "earlier", failed=[2], shift=1.0)
    version.storage.put("shards/0000-00000.tar", earlier)
    with pytest.raises(CorruptionError, match=r"images \(2,\) are not in it"):
        commit(version, TASKS[0])  # in which none failed
    receipt = commit(version, TASKS[0], failed=[2])
    assert receipt.sha256 == hashlib.sha256(earlier.read_bytes()).hexdigest()
    assert receipt.failed == (2,)
    assert len(list(read_shard(version.storage.get(receipt.shard), receipt))) == 2


def test_racing_attempts_commit_one_shard(version: Version) -> None:
    with ThreadPoolExecutor(8) as pool:
        receipts = set(pool.map(lambda n: commit(version, TASKS[0], shift=float(n)), range(8)))
    (receipt,) = receipts
    assert len(list(read_shard(version.storage.get(receipt.shard), receipt))) == 3
    assert version.receipts() == {TASKS[0].id: receipt}


def test_a_damaged_shard_without_a_receipt_is_not_taken_for_complete(
    version: Version, tmp_path: Path
) -> None:
    whole = write_task(TASKS[0], tmp_path / "whole").read_bytes()
    version.storage.put("shards/0000-00000.tar", whole[: len(whole) // 2 // 512 * 512])
    with pytest.raises(CorruptionError, match=r"shards/0000-00000\.tar"):
        commit(version, TASKS[0])
    assert version.receipts() == {}


def test_an_earlier_shard_may_hold_images_that_failed_now(version: Version, tmp_path: Path) -> None:
    whole = write_task(TASKS[0], tmp_path / "earlier")
    version.storage.put("shards/0000-00000.tar", whole)
    receipt = commit(version, TASKS[0], failed=[1])
    assert (receipt.samples, receipt.failed) == (TASKS[0].count, ())


def test_what_was_removed_does_not_become_current(version: Version) -> None:
    with pytest.raises(MissingObject, match=r"manifest\.json: no such object"):
        advance(version.home, version.id)


def test_a_shard_of_another_task_is_refused(version: Version, tmp_path: Path) -> None:
    tar = write_task(TASKS[1], tmp_path / "x")
    with pytest.raises(CorruptionError, match="sample '0001-0000000' is not of this task"):
        version.commit(TASKS[0], tar)


def test_a_lost_sample_is_not_taken_for_a_failed_one(version: Version, tmp_path: Path) -> None:
    tar = write_task(TASKS[0], tmp_path / "x", failed=[1])
    with pytest.raises(CorruptionError, match=r"images \(1,\) are not in it, but \(\) failed"):
        version.commit(TASKS[0], tar)
    assert list(version.storage.list("shards/")) == []


def test_a_task_of_which_every_image_failed(version: Version) -> None:
    for task in TASKS[1:]:
        commit(version, task)
    assert commit(version, TASKS[0], failed=[0, 1, 2]).samples == 0
    published = version.publish(TASKS, ENVIRONMENT)
    assert published.manifest["samples"] == 9
    assert verify(published) == []


@pytest.mark.parametrize("change", [{"task": "0000-00001"}, {"fingerprint": "0" * 64}])
def test_a_receipt_of_something_else_is_refused(version: Version, change: dict[str, str]) -> None:
    commit(version, TASKS[0])
    key = f"receipts/{TASKS[0].id}.json"
    receipt = json.loads(version.storage.get(key)) | change
    version.storage.put(key, json.dumps(receipt).encode())
    with pytest.raises(CorruptionError, match=r"0000-00000\.json: is about"):
        version.receipts()


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
    with pytest.raises(
        CorruptionError, match=r"shards/0001-00001\.tar: (sha256|more than|\d+ bytes)"
    ):
        version.publish(TASKS, ENVIRONMENT)
    assert current(version.home) is None


# --- prompts --------------------------------------------------------------------------------------


def prompt_table(count: int = 3) -> pa.Table:
    rows = [{"class_index": c, "index": i, "text": f"{c}{i}"} for c in (1, 0) for i in range(count)]
    return pa.Table.from_pylist(rows[::-1])


def test_prompts_of_a_task(version: Version) -> None:
    assert version.prompt_parts() == set()
    with pytest.raises(MissingObject, match=r"prompts/00000\.parquet"):
        version.prompts(TASKS[0])
    assert version.put_prompts("00000", prompt_table())
    assert not version.put_prompts("00000", prompt_table(2))
    assert version.prompt_parts() == {"00000"}
    assert version.prompts(TASKS[1])["text"].to_pylist() == ["10", "11", "12"]
    assert version.prompt_part("00000").equals(prompt_table())


def test_changed_prompts_are_found(tmp_path: Path) -> None:
    published = fill(tmp_path)
    storage = published.storage
    part, sealed = storage.get("prompts/00001.parquet"), storage.get("prompts.json")
    storage.put("prompts/00001.parquet", part[:-1] + b"x")
    assert ["prompts/00001.parquet: is not" in line for line in verify(published)] == [True]
    storage.put("prompts/00001.parquet", part)
    storage.put("prompts.json", sealed.replace(b"parts", b"ports"))
    assert ["prompts.json: is not" in line for line in verify(published)] == [True]
    storage.put("prompts.json", sealed)
    assert verify(published) == []


def test_missing_or_damaged_prompts_are_refused(version: Version) -> None:
    version.put_prompts("00000", prompt_table(2))
    with pytest.raises(CorruptionError, match="2 prompts of class 0, not those of images 0 to 2"):
        version.prompts(TASKS[0])
    version.storage.put("prompts/00000.parquet", b"PAR1 nonsense PAR1")
    with pytest.raises(CorruptionError, match="no readable Parquet"):
        version.prompts(TASKS[0])


# --- reading what was damaged ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", "README.md"])
def test_any_flipped_bit_of_a_published_file_is_found(tmp_path: Path, name: str) -> None:
    published = fill(tmp_path)
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


@pytest.mark.parametrize("schema", [1, 3, "2", None])
def test_a_version_of_another_format_is_refused(tmp_path: Path, schema: object) -> None:
    storage = fill(tmp_path).storage
    manifest = json.loads(storage.get("manifest.json"))
    storage.put("manifest.json", json.dumps(manifest | {"schema": schema}).encode())
    name = manifest["fingerprint"][:16]
    with pytest.raises(CorruptionError, match="is not the manifest that was published"):
        open_version(home(tmp_path), name)
    storage.put("manifest.json", json.dumps(manifest).encode())
    assert open_version(home(tmp_path), name).id == name


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {"samples": m["samples"] + 1},
        lambda m: {"bytes": m["bytes"] - 1},
        lambda m: {"failed": m["failed"] + 1},
        lambda m: {"inconsistent": None},
        lambda m: {"inconsistent": -1},
        lambda m: {"files": {}},
        lambda m: {"files": {"index.parquet": m["files"]["index.parquet"]}},
        lambda m: {"files": m["files"] | {"../README.md": "0" * 64}},
        lambda m: {"shards": [m["shards"][0] | {"samples": 1 << 62}, *m["shards"][1:]]},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    published = fill(tmp_path)
    altered = published.manifest | change(published.manifest)
    published.storage.put("manifest.json", json.dumps(altered).encode())
    with pytest.raises(CorruptionError, match="is not the manifest that was published"):
        open_version(home(tmp_path), ID)


def test_verify_names_each_problem(tmp_path: Path) -> None:
    published = fill(tmp_path)
    storage = published.storage
    flipped = bytearray(storage.get("shards/0000-00000.tar"))
    flipped[-5000] ^= 1
    storage.put("shards/0000-00000.tar", bytes(flipped))
    storage.put("shards/0000-00001.tar", storage.get("shards/0000-00001.tar")[:1024])
    storage.delete("shards/0001-00000.tar")
    storage.delete("receipts/0001-00001.json")
    reasons = [
        "receipts/0001-00001.json: no such",
        "0000-00000.tar: sha256",
        "0001-00000.tar: is missing",
        "0000-00001.tar: 1024 bytes",
    ]
    for problem, reason in zip(verify(published), reasons, strict=True):
        assert reason in problem
        assert "restore" in problem


def pointer(**changes: object) -> bytes:
    return json.dumps({"number": 2, "version": "0" * 16, "manifest": "0" * 64} | changes).encode()


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
        (pointer(manifest="../manifest"), "names no version"),
    ]:
        storage.put("current/00000002.json", content)
        with pytest.raises(CorruptionError, match=reason):
            current(storage)


# --- kill -9 --------------------------------------------------------------------------------------


def in_clean_process(target: Any, *arguments: Any) -> Any:
    """Call in a process without the threads that pytest's own has, so that it can fork."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(target, *arguments).result()


@pytest.mark.slow
def test_killed_at_every_step_and_resumed_is_undisturbed(tmp_path: Path) -> None:
    steps, objects = in_clean_process(partial_version.kill_at_every_step, tmp_path)
    assert steps > 3 * objects  # sync, link or rename, sync the directory
