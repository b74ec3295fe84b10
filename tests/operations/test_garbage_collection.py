"""Unused objects go and used ones stay; `test_garbage_collection_races` kills the sweep."""

import os
from pathlib import Path

import pytest

from dfkd.dataset.published import current, open_version
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import begin
from dfkd.distillation.student_names import student_name, student_names
from dfkd.errors import CorruptionError, ManifestError
from dfkd.operations.status.students import stored_students
from dfkd.storage import layout, lease
from dfkd.storage.base import MissingObject
from tests.helpers.jobs import contents
from tests.helpers.partial_version import BLOCKS, IDENTITY, TASKS, commit, fill, regenerated
from tests.helpers.swept_run import CLAIM, GRACE, Run, age


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_last_versions_stay_with_the_shards_that_they_carry(run: Run) -> None:
    versions = run.chain(4)
    age(run.root)
    assert run.sweep(keep=2).kept == {
        f"vanilla/{versions[3].id}": "current 4",
        f"vanilla/{versions[2].id}": "current 3",
    }
    assert current(run.home) == versions[3]
    for version in versions[2:]:
        assert verify(version) == []
    left = {key for key in contents(run.root) if versions[0].id in key or versions[1].id in key}
    assert left == {f"data/vanilla/{r.key}" for v in versions[2:] for r in v.receipts()} - {
        f"data/vanilla/versions/{v.id}/{r.shard}" for v in versions[2:] for r in list(v.receipts())
    }
    assert left
    with pytest.raises(MissingObject):
        open_version(run.home, versions[0].id)
    assert run.sweep(keep=2).removals == ()


def test_a_carried_shard_goes_with_the_last_version_that_refers_to_it(run: Run) -> None:
    run.chain(2)
    whole = begin(run.home, IDENTITY | {"salt": 9})
    for task in TASKS:
        commit(whole, task, shift=9.0)
    last = whole.publish(BLOCKS, {})
    age(run.root)
    run.sweep(keep=2)
    assert len(run.home.folders("versions/")) == 3
    run.sweep()
    assert run.home.folders("versions/") == (last.id,)
    assert verify(last) == []


def test_objects_within_the_grace_period_stay(run: Run) -> None:
    versions = run.chain(3)
    run.put_student(versions[0], f"vanilla-s0-{'0' * 12}")
    age(run.root, GRACE - 100)
    assert run.sweep().removals == ()
    age(run.root, 101)
    os.utime(versions[0].storage.location("prompts.json"))  # a young object keeps its version
    removed = run.removed()
    assert f"version vanilla/{versions[0].id}" not in removed
    assert f"version vanilla/{versions[1].id}" in removed
    assert verify(versions[0]) == []


def test_a_lease_keeps_what_it_names_until_it_expires(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = run.old_chain()
    names = (f"vanilla/{versions[0].id}",)
    with lease.protecting(run.storage, names):
        assert "held by" in run.sweep().kept[names[0]]
        assert verify(versions[0]) == []
    monkeypatch.setattr(lease, "SECONDS", 0.0)
    lease.Lease(run.storage, f"leases/readers/{'d' * 32}.json", "host:1", 0.0, names).renew()
    assert names[0] not in run.sweep().kept
    assert verify(versions[2]) == []


def test_unfinished_work_and_its_base_stay_unless_abandoned(run: Run) -> None:
    base = fill(run.root)
    commit(begin(run.home, IDENTITY | {"salt": 8}), TASKS[0])
    begin(run.home, IDENTITY | {"salt": 7}, abandon=True)
    half = begin(run.home, IDENTITY | {"salt": 1, "carried.from": base.fingerprint}, abandon=True)
    commit(half, TASKS[0], shift=1.0)
    other = begin(run.home, IDENTITY | {"salt": 2}, abandon=True)
    for task in TASKS:
        commit(other, task, shift=2.0)
    last = other.publish(BLOCKS, {})
    half.storage.delete(layout.ABANDONED)
    age(run.root)
    planned = run.sweep()
    assert planned.kept == {
        f"vanilla/{last.id}": "current 2",
        f"vanilla/{half.id}": "unfinished",
        f"vanilla/{base.id}": f"vanilla/{half.id} carries over from it",
    }
    assert verify(base) == []
    assert [task.id in half.done() for task in TASKS] == [True, False, False, False]
    assert [removal.why for removal in planned.removals].count("abandoned") == 2


def test_an_unfinished_regeneration_keeps_its_candidate_and_base_and_a_finished_one_does_not(
    run: Run,
) -> None:
    base = fill(run.root)
    challenger = regenerated(run.root, base, 1, TASKS[:1], make_current=False)
    regenerated(run.root, base, 2, TASKS)
    attempt, both = run.claim(challenger), {f"vanilla/{each.id}" for each in (base, challenger)}
    attempt.storage.put("challenger/results.json", b"{}")
    run.storage.put("regenerations/00000007/notes.txt", b"of somebody else")
    age(run.root)
    kept = run.sweep().kept
    assert {kept[name] for name in both} == {"regeneration 1 is unfinished"}
    assert verify(base) == verify(challenger) == []
    attempt.finish()
    age(run.root)
    pages = "pages of regeneration 1"
    assert run.removed() == {*(f"version {name}" for name in both), pages}
    assert set(attempt.storage.list()) == {"claim.json", "finished.json"}


def test_young_students_and_pages_stay_although_their_version_goes(run: Run) -> None:
    challenger = regenerated(run.root, fill(run.root), 1, TASKS[:1], make_current=False)
    attempt = run.claim(challenger)
    attempt.finish()
    age(run.root)
    attempt.storage.put("challenger/results.json", b"{}")
    run.put_student(challenger, f"vanilla-s0-{'a' * 12}")
    assert run.removed() == {f"version vanilla/{challenger.id}"}


def test_students_are_removed_with_their_versions(run: Run) -> None:
    versions = run.chain(3)
    old, new = (student_name(run.manifest, versions[i].fingerprint, "vanilla", 0) for i in (0, 2))
    run.put_student(versions[0], f"vanilla-s0-{'a' * 12}")
    run.put_student(versions[2], f"vanilla-s0-{'b' * 12}")
    run.put_student(versions[2], new, card=False)
    run.put_student(versions[0], f"vanilla-s0-{'c' * 12}", card=False)  # of whom?
    age(run.root)
    # However young its checkpoints are: later nothing says whose they are.
    run.put_student(versions[0], old, card=False)
    run.sweep()
    left = {f"vanilla-s0-{'b' * 12}", f"vanilla-s0-{'c' * 12}", new}
    assert set(run.storage.folders("students/")) == left


def test_labels_of_other_labellers_go_with_their_version(run: Run) -> None:
    versions = run.chain(3)
    old, new = (f"labels/{versions[i].id}-{'a' * 12}.safetensors" for i in (0, 2))
    young = f"labels/{versions[1].id}-{'b' * 12}.safetensors"
    for key in (old, new):
        run.storage.put(key, b"moments")
    age(run.root)
    run.storage.put(young, b"moments")
    assert f"labels of version {versions[0].id}" in run.removed()
    assert {key for key in contents(run.root) if key.startswith("labels/")} == {new, young}
    age(run.root)
    assert run.removed() == {f"labels of version {versions[1].id}"}


def test_unfinished_students_of_each_architecture_go_with_their_version(run: Run) -> None:
    versions, several = run.old_chain(), ("timm:test_resnet", "timm:test_efficientnet")
    run.manifest = run.manifest.with_values(distillation={"student": several, "seeds": (0, 1)})
    old, new = (student_names(run.manifest, versions[i].fingerprint, "vanilla") for i in (0, 2))
    for number, names in ((0, old), (2, new)):
        assert len(names) == 4
        for name in names:
            run.put_student(versions[number], name, card=False)
    run.removed()
    assert set(run.storage.folders("students/")) == set(new)


@pytest.mark.parametrize("mark", [b"vanilla/0123456789abcdef", b"\xff", b"\x1b[2Jx"])
def test_a_damaged_mark_removes_no_student(run: Run, mark: bytes) -> None:
    version, name = fill(run.root), f"vanilla-s0-{'a' * 12}"
    run.put_student(version, name)
    run.put_student(version, half := f"vanilla-s0-{'b' * 12}", card=False)
    run.storage.put(f"students/{name}/removing", mark)
    if not mark.startswith(b"vanilla/"):  # else it says that the version of the other is gone
        run.storage.put(f"students/{half}/removing", mark)
    age(run.root)
    assert run.removed() == {f"mark of student {name}"}
    assert run.storage.folders("students/") == (name, half)


@pytest.mark.parametrize("method", ["vanilla-bn", "contrastive_variant", "shout2-sharp"])
def test_methods_of_any_name_and_source_are_seen_and_collected(run: Run, method: str) -> None:
    versions = run.chain(2)
    run.put_student(versions[0], name := f"{method}-s0-{'a' * 12}")
    assert stored_students(run.storage)[name].method == method
    (run.root / "data/vanilla").rename(run.root / "data" / method)
    run.storage.put(label := f"labels/{versions[1].id}-{'a' * 12}.safetensors", b"moments")
    age(run.root)
    removed = run.removed()
    assert {f"version {method}/{versions[0].id}", f"student {name}"} <= removed
    assert not any(versions[1].id in what for what in removed)
    assert label in contents(run.root)


@pytest.mark.parametrize("key", [layout.STUDIES, "cells/vanilla-s0-0123456789ab-0123456789ab/x"])
def test_a_root_of_studies_is_left_alone(run: Run, key: str) -> None:
    run.storage.put(key, b"{}")
    with pytest.raises(ManifestError, match=r"storage\.root: must not hold studies"):
        run.plan()


def test_ended_leases_are_removed_and_foreign_files_stay(run: Run) -> None:
    fill(run.root)
    storage = run.storage
    foreign = [
        "notes.txt",
        "leases/notes.txt",
        "data/vanilla/mine.json",
        "students/me/student.json",
        "results.json",
    ]
    for key in foreign:
        storage.put(key, b"x")
    lease.acquire(storage, "gc").release()
    last = lease.acquire(storage, "gc")
    last.release()
    age(run.root)
    gone = {entry.key for removal in run.sweep().removals for entry in removal.entries}
    assert gone == {"leases/gc/00000001.json"}
    assert storage.exists(last.key)
    assert all(storage.exists(key) for key in foreign)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": 7, "number": "one"}'])
@pytest.mark.parametrize("key", ["data/vanilla/current/00000002.json", CLAIM])
def test_a_damaged_object_that_names_versions_is_an_error(
    run: Run, key: str, content: bytes
) -> None:
    run.chain(2)
    run.storage.put(key, content)
    with pytest.raises(CorruptionError, match=run.storage.location(key)):
        run.plan(keep=2)


def test_a_current_version_without_its_manifest_is_an_error(run: Run) -> None:
    """Its shards may lie in folders of others, which nobody else refers to."""
    chain = run.old_chain()
    chain[2].storage.delete(layout.PUBLISHED)
    with pytest.raises(MissingObject, match=r"version\.json: no such object"):
        run.plan()
    # Also if something else than the pointer is named as the reason for keeping it.
    with lease.protecting(run.storage, [f"vanilla/{chain[2].id}"]), pytest.raises(MissingObject):
        run.plan()
