"""Versions that are filled: begun, resumed, abandoned, and killed at every step."""

import dataclasses
import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.config.plan import Task
from dfkd.dataset.published import read_json
from dfkd.dataset.receipts import decode, encode
from dfkd.dataset.shards import read_shard
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import TaskSet, Version, begin
from dfkd.errors import CorruptionError, Exit, FingerprintError
from dfkd.storage import layout
from dfkd.storage.base import MissingObject
from tests.helpers import partial_version
from tests.helpers.jobs import contents
from tests.helpers.partial_version import IDENTITY, TASKS, commit, fill, home, write_task

CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return begin(home(tmp_path), IDENTITY)


def test_why_a_task_is_quarantined_is_stored_until_it_is_tried_again(version: Version) -> None:
    version.quarantine(TASKS[0].id, "no luck at s3://me:hunter2@bucket")
    reason = {"task": "0000-00000", "reason": "no luck at s3://***@bucket"}
    assert read_json(version.storage, "quarantined/0000-00000.json") == reason
    version.lift_quarantine()
    assert list(version.storage.list("quarantined/")) == []


def test_a_published_version_keeps_its_summary_of_prompts(tmp_path: Path) -> None:
    """A second driver that is late has other last digits on another processor."""
    published, version = fill(tmp_path), begin(home(tmp_path), IDENTITY)
    before = version.storage.get("prompts.json")
    version.seal_prompts([], {"vendi": 1.0000000000000002})
    assert version.storage.get("prompts.json") == before
    assert verify(published) == []


OTHER = IDENTITY | {"classes": ["owl", "rocket"], "generator.vqgan.steps": 9}


def test_unfinished_work_of_another_manifest_is_refused_with_the_difference(tmp_path: Path) -> None:
    commit(begin(home(tmp_path), IDENTITY), TASKS[0])
    before = contents(tmp_path)
    with pytest.raises(FingerprintError) as caught:
        begin(home(tmp_path), OTHER)
    text = str(caught.value)
    assert "classes: ['owl', 'tree'] there, ['owl', 'rocket'] here" in text
    assert "generator.vqgan.steps: None there, 9 here" in text
    assert "seed" not in text
    assert "--abandon" in text
    assert caught.value.exit_code == Exit.USAGE
    assert contents(tmp_path) == before


def test_abandoned_work_stays_and_can_be_taken_up_again(tmp_path: Path) -> None:
    commit(begin(home(tmp_path), IDENTITY), TASKS[0])
    other = begin(home(tmp_path), OTHER, abandon=True)
    assert len(other.done()) == 0
    begin(home(tmp_path), OTHER)
    with pytest.raises(FingerprintError, match=r"generator\.vqgan\.steps"):
        begin(home(tmp_path), IDENTITY)
    again = begin(home(tmp_path), IDENTITY, abandon=True).done()
    assert [task.id in again for task in TASKS] == [True, False, False, False]
    with pytest.raises(FingerprintError, match=r"generator\.vqgan\.steps"):
        begin(home(tmp_path), OTHER)


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


def test_the_first_receipt_wins(version: Version) -> None:
    first = commit(version, TASKS[0])
    stored = version.storage.get(first.shard)
    assert commit(version, TASKS[0], shift=1.0) == first
    assert commit(version, TASKS[0], failed=[1]) == first
    assert version.storage.get(first.shard) == stored
    assert version.receipt(TASKS[0]) == first


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
    assert version.receipt(TASKS[0]) == receipt


def test_a_damaged_shard_without_a_receipt_is_not_taken_for_complete(
    version: Version, tmp_path: Path
) -> None:
    whole = write_task(TASKS[0], tmp_path / "whole").read_bytes()
    version.storage.put("shards/0000-00000.tar", whole[: len(whole) // 2 // 512 * 512])
    with pytest.raises(CorruptionError, match=r"shards/0000-00000\.tar"):
        commit(version, TASKS[0])
    assert len(version.done()) == 0


def test_an_earlier_shard_may_hold_images_that_failed_now(version: Version, tmp_path: Path) -> None:
    whole = write_task(TASKS[0], tmp_path / "earlier")
    version.storage.put("shards/0000-00000.tar", whole)
    receipt = commit(version, TASKS[0], failed=[1])
    assert (receipt.samples, receipt.failed) == (TASKS[0].count, ())


def test_a_shard_of_another_task_is_refused(version: Version, tmp_path: Path) -> None:
    tar = write_task(TASKS[1], tmp_path / "x")
    with pytest.raises(CorruptionError, match="sample '0001-0000000' is not of this task"):
        version.commit(TASKS[0], tar)


def test_a_lost_sample_is_not_taken_for_a_failed_one(version: Version, tmp_path: Path) -> None:
    tar = write_task(TASKS[0], tmp_path / "x", failed=[1])
    with pytest.raises(CorruptionError, match=r"images \(1,\) are not in it, but \(\) failed"):
        version.commit(TASKS[0], tar)
    assert list(version.storage.list("shards/")) == []


@pytest.mark.parametrize("change", [{"task": "0000-00001"}, {"fingerprint": "0" * 64}])
def test_a_receipt_of_something_else_is_refused(version: Version, change: dict[str, str]) -> None:
    commit(version, TASKS[0])
    key = f"receipts/{TASKS[0].id}.json.gz"
    receipt, images = decode(version.storage.get(key), key)
    version.storage.put(key, encode(dataclasses.replace(receipt, **change), images))
    with pytest.raises(CorruptionError, match=r"0000-00000\.json\.gz: is about"):
        version.receipt(TASKS[0])


@given(st.sets(st.tuples(st.integers(0, 99999), st.integers(0, 999999))), st.data())
def test_a_set_of_tasks_holds_what_has_a_receipt(
    made: set[tuple[int, int]], data: st.DataObject
) -> None:
    tasks = [Task(row, shard, 0, 1) for row, shard in made]
    keys = [*(layout.receipt(task.id) for task in tasks), "receipts/notes.txt", "receipts/1-2.json"]
    done = TaskSet(keys)
    assert len(done) == len(made)
    assert all(task.id in done for task in tasks)
    row, shard = data.draw(st.tuples(st.integers(0, 99999), st.integers(0, 999999)))
    assert (Task(row, shard, 0, 1).id in done) == ((row, shard) in made)


def test_a_store_that_keeps_a_part_of_a_shard_is_noticed(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(version.storage), "size", lambda self, key: 512)
    with pytest.raises(CorruptionError, match=r"512 of \d+ bytes were stored; delete it"):
        commit(version, TASKS[0])
    assert len(version.done()) == 0


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


def test_prompts_of_other_images_are_refused(version: Version) -> None:
    version.put_prompts("00000", prompt_table(2))
    with pytest.raises(CorruptionError, match="2 prompts of class 0, not those of images 0 to 2"):
        version.prompts(TASKS[0])


def in_clean_process(target: Any, *arguments: Any) -> Any:
    """Call in a process without the threads that pytest's own has, so that it can fork."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(target, *arguments).result()


@pytest.mark.slow
def test_killed_at_every_step_and_resumed_is_undisturbed(tmp_path: Path) -> None:
    steps, objects = in_clean_process(partial_version.kill_at_every_step, tmp_path)
    assert steps > 3 * objects  # sync, link or rename, sync the directory
