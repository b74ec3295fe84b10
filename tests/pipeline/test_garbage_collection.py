"""Unused objects are removed and used ones stay, whenever the sweep is killed."""

import contextlib
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion, advance, current, open_version
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import begin
from dfkd.distillation.student_names import student_name
from dfkd.errors import CorruptionError, LeaseError, ManifestError
from dfkd.pipeline import garbage_collection
from dfkd.pipeline.attempts import Attempt
from dfkd.pipeline.listing import VERSION
from dfkd.storage import layout, lease
from dfkd.storage.base import MissingObject
from dfkd.storage.local import LocalStorage, open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers.jobs import contents
from tests.helpers.partial_version import IDENTITY, TASKS, commit, fill, home, regenerated
from tests.helpers.tiny_version import write_manifest

GRACE = 1000.0
CLAIM = "regenerations/00000001/claim.json"


def held() -> None:
    """The lease is held all the time."""


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest.read(write_manifest(tmp_path))


@pytest.fixture
def root(manifest: Manifest) -> Path:
    return Path(manifest.storage.root)


def age(root: Path, seconds: float = 2 * GRACE) -> None:
    """Make everything in a root so much older, as its file system says."""
    for file in (path for path in root.rglob("*") if path.is_file()):
        then = file.stat().st_mtime - seconds
        os.utime(file, (then, then))


def plan(manifest: Manifest, keep: int = 2, grace: float = GRACE) -> garbage_collection.RemovalPlan:
    return garbage_collection.plan(open_storage(manifest.storage.root), manifest, keep, grace)


def sweep(
    manifest: Manifest, keep: int = 2, grace: float = GRACE
) -> garbage_collection.RemovalPlan:
    """Plan and remove; what went is exactly what was planned."""
    root = Path(manifest.storage.root)
    before = contents(root)
    planned = plan(manifest, keep, grace)
    assert contents(root) == before
    objects, size = garbage_collection.remove(
        open_storage(str(root)), manifest, planned, keep, grace, held
    )
    gone = before.keys() - contents(root).keys()
    wanted = {entry.key for removal in planned.removals for entry in removal.entries}
    assert gone == wanted
    assert planned.as_dict()["objects"] == len(wanted) == objects
    assert planned.as_dict()["bytes"] == sum(len(before[key]) for key in wanted) == size
    return planned


def chain(root: Path, length: int) -> list[PublishedVersion]:
    """Versions that each make the next task anew and carry the others over."""
    versions = [fill(root)]
    for salt in range(1, length):
        versions.append(regenerated(root, versions[-1], salt, [TASKS[salt % len(TASKS)]]))
    return versions


def put_student(root: Path, version: PublishedVersion, name: str, card: bool = True) -> None:
    folder = open_storage(str(root)).child(f"students/{name}")
    folder.put("checkpoints/0000000003.safetensors", b"weights")
    if card:
        folder.put("student.json", b'{"version": "%s"}' % version.fingerprint.encode())


def test_the_last_versions_stay_with_the_shards_that_they_carry(
    manifest: Manifest, root: Path
) -> None:
    versions = chain(root, 4)
    age(root)
    planned = sweep(manifest)
    assert planned.kept == {
        f"vanilla/{versions[3].id}": "current 4",
        f"vanilla/{versions[2].id}": "current 3",
    }
    assert current(home(root)) == versions[3]
    for version in versions[2:]:
        assert verify(version) == []
    left = {key for key in contents(root) if versions[0].id in key or versions[1].id in key}
    assert left == {f"data/vanilla/{r.key}" for v in versions[2:] for r in v.shards} - {
        f"data/vanilla/versions/{v.id}/{r.shard}" for v in versions[2:] for r in v.shards
    }
    assert left
    with pytest.raises(MissingObject):
        open_version(home(root), versions[0].id)
    assert sweep(manifest).removals == ()


def test_a_carried_shard_goes_with_the_last_version_that_refers_to_it(
    manifest: Manifest, root: Path
) -> None:
    chain(root, 2)
    whole = begin(home(root), IDENTITY | {"salt": 9})
    for task in TASKS:
        commit(whole, task, shift=9.0)
    last = whole.publish(TASKS, {})
    age(root)
    sweep(manifest, keep=2)
    assert len(home(root).folders("versions/")) == 3
    sweep(manifest, keep=1)
    assert home(root).folders("versions/") == (last.id,)
    assert verify(last) == []


def test_objects_within_the_grace_period_stay(manifest: Manifest, root: Path) -> None:
    versions = chain(root, 3)
    put_student(root, versions[0], f"vanilla-s0-{'0' * 12}")
    age(root, GRACE - 100)
    assert sweep(manifest, keep=1).removals == ()
    age(root, 101)
    file = root / "data/vanilla/versions" / versions[0].id / "prompts.json"
    os.utime(file)  # one young object keeps its whole version
    removed = {removal.what for removal in sweep(manifest, keep=1).removals}
    assert f"version vanilla/{versions[0].id}" not in removed
    assert f"version vanilla/{versions[1].id}" in removed
    assert verify(versions[0]) == []


def test_a_lease_keeps_what_it_names_until_it_expires(
    manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = chain(root, 3)
    age(root)
    storage = open_storage(str(root))
    with lease.protecting(storage, [f"vanilla/{versions[0].id}"]):
        assert "held by" in sweep(manifest, keep=1).kept[f"vanilla/{versions[0].id}"]
        assert verify(versions[0]) == []
    names = (f"vanilla/{versions[0].id}",)
    monkeypatch.setattr(lease, "SECONDS", 0.0)
    lease.Lease(storage, "leases/readers/dead.json", "host:1", 0.0, names).renew()
    assert f"vanilla/{versions[0].id}" not in sweep(manifest, keep=1).kept
    assert verify(versions[2]) == []


def test_unfinished_work_and_its_base_stay_unless_abandoned(manifest: Manifest, root: Path) -> None:
    base = fill(root)
    commit(begin(home(root), IDENTITY | {"salt": 8}), TASKS[0])
    begin(home(root), IDENTITY | {"salt": 7}, abandon=True)
    half = begin(home(root), IDENTITY | {"salt": 1, "carried.from": base.fingerprint}, abandon=True)
    commit(half, TASKS[0], shift=1.0)
    other = begin(home(root), IDENTITY | {"salt": 2}, abandon=True)
    for task in TASKS:
        commit(other, task, shift=2.0)
    last = other.publish(TASKS, {})
    home(root).delete(f"versions/{half.id}/abandoned")
    age(root)
    planned = sweep(manifest, keep=1)
    assert planned.kept == {
        f"vanilla/{last.id}": "current 2",
        f"vanilla/{half.id}": "unfinished",
        f"vanilla/{base.id}": f"vanilla/{half.id} carries over from it",
    }
    assert verify(base) == []
    assert list(half.receipts()) == [TASKS[0].id]
    assert [removal.why for removal in planned.removals].count("abandoned") == 2


def test_an_unfinished_regeneration_keeps_its_candidate_and_a_finished_one_does_not(
    manifest: Manifest, root: Path
) -> None:
    base = fill(root)
    candidate = regenerated(root, base, 1, TASKS[:1], make_current=False)
    attempt = Attempt(open_storage(str(root)), 1)
    identity = candidate.manifest["identity"]
    attempt.storage.put("claim.json", canonical({"identity": identity}))
    attempt.storage.put("candidate/results.json", b"{}")
    age(root)
    assert f"vanilla/{candidate.id}" in sweep(manifest, keep=1).kept
    attempt.finish()
    age(root)
    removed = {removal.what for removal in sweep(manifest, keep=1).removals}
    assert removed == {f"version vanilla/{candidate.id}", "pages of regeneration 1"}
    assert set(attempt.storage.list()) == {"claim.json", "finished.json"}
    assert verify(base) == []


def test_an_unfinished_regeneration_keeps_its_base(manifest: Manifest, root: Path) -> None:
    base = fill(root)
    candidate = regenerated(root, base, 1, TASKS[:1], make_current=False)
    regenerated(root, base, 2, TASKS)
    claim = {"identity": candidate.manifest["identity"]}
    Attempt(open_storage(str(root)), 1).storage.put("claim.json", canonical(claim))
    age(root)
    assert sweep(manifest, keep=1).kept[f"vanilla/{base.id}"] == "regeneration 1 is unfinished"
    assert verify(base) == []


def test_young_students_and_pages_stay_although_their_version_goes(
    manifest: Manifest, root: Path
) -> None:
    candidate = regenerated(root, fill(root), 1, TASKS[:1], make_current=False)
    attempt = Attempt(open_storage(str(root)), 1)
    attempt.storage.put("claim.json", canonical({"identity": candidate.manifest["identity"]}))
    attempt.finish()
    age(root)
    attempt.storage.put("candidate/results.json", b"{}")
    put_student(root, candidate, f"vanilla-s0-{'a' * 12}")
    removed = [removal.what for removal in sweep(manifest, keep=1).removals]
    assert removed == [f"version vanilla/{candidate.id}"]


def test_students_are_removed_with_their_versions(manifest: Manifest, root: Path) -> None:
    versions = chain(root, 3)
    names = {
        name: student_name(manifest, versions[i].fingerprint, "vanilla", 0)
        for name, i in (("old", 0), ("new", 2))
    }
    put_student(root, versions[0], f"vanilla-s0-{'a' * 12}")
    put_student(root, versions[2], f"vanilla-s0-{'b' * 12}")
    put_student(root, versions[0], names["old"], card=False)
    put_student(root, versions[2], names["new"], card=False)
    put_student(root, versions[0], f"vanilla-s0-{'c' * 12}", card=False)  # of whom?
    age(root)
    sweep(manifest, keep=1)
    left = set(open_storage(str(root)).folders("students/"))
    assert left == {f"vanilla-s0-{'b' * 12}", f"vanilla-s0-{'c' * 12}", names["new"]}


def test_methods_with_batch_norm_statistics_are_collected_too(
    manifest: Manifest, root: Path
) -> None:
    versions = chain(root, 2)
    put_student(root, versions[0], f"vanilla-bn-s0-{'a' * 12}")
    (root / "data/vanilla").rename(root / "data/vanilla-bn")
    age(root)
    removed = {removal.what for removal in sweep(manifest, keep=1).removals}
    gone = {f"version vanilla-bn/{versions[0].id}", f"student vanilla-bn-s0-{'a' * 12}"}
    assert gone <= removed
    assert not any(versions[1].id in what for what in removed)


def test_a_root_of_studies_is_left_alone(manifest: Manifest, root: Path) -> None:
    chain(root, 1)
    cell = root / "cells" / "vanilla-s0-0123456789ab-0123456789ab" / "cell.json"
    cell.parent.mkdir(parents=True)
    cell.write_text("{}")
    with pytest.raises(ManifestError, match=r"storage\.root: must not hold studies"):
        plan(manifest)


def test_ended_leases_are_removed_and_foreign_files_stay(manifest: Manifest, root: Path) -> None:
    version, storage = fill(root), open_storage(str(root))
    foreign = ["notes.txt", "data/vanilla/mine.json", "students/me/student.json", "results.json"]
    foreign += [f"data/vanilla/versions/{version.id}/shards/mine.tar"]
    for key in foreign:
        storage.put(key, b"x")
    lease.acquire(storage, "gc").release()
    last = lease.acquire(storage, "gc")
    last.release()
    age(root)
    gone = {entry.key for removal in sweep(manifest).removals for entry in removal.entries}
    assert gone == {"leases/gc/00000001.json"}
    assert storage.exists(last.key)
    assert all(storage.exists(key) for key in foreign)


def test_a_version_that_is_leased_after_the_plan_stays(manifest: Manifest, root: Path) -> None:
    versions = chain(root, 3)
    age(root)
    storage = open_storage(str(root))
    planned = plan(manifest, keep=1)
    with lease.protecting(storage, [f"vanilla/{versions[0].id}"]):
        garbage_collection.remove(storage, manifest, planned, 1, GRACE, held)
    advance(home(root), versions[0].id)
    assert verify(versions[0]) == []
    assert not storage.exists(f"data/vanilla/versions/{versions[0].id}/{layout.REMOVING}")
    with pytest.raises(MissingObject):
        open_version(home(root), versions[1].id)


@pytest.mark.parametrize("state", ["abandoned", "only shards that others had carried"])
def test_a_version_that_a_job_takes_up_after_the_plan_stays(
    manifest: Manifest, root: Path, state: str
) -> None:
    """The job looked for the mark before it was written, and the second look sees its lease."""
    versions = chain(root, 3)
    first, storage = versions[0], open_storage(str(root))
    first.storage.delete(layout.MANIFEST)
    if state == "abandoned":
        first.storage.put(layout.ABANDONED, b"")
    else:
        for key in [key for key in first.storage.list("") if not key.startswith(layout.SHARDS)]:
            first.storage.delete(key)
    age(root)
    planned = plan(manifest, keep=1)
    assert f"vanilla/{first.id}" in {removal.version for removal in planned.removals}
    with lease.protecting(storage, [f"vanilla/{first.id}"]):
        resumed = begin(home(root), IDENTITY)
        before = {key: first.storage.get(key) for key in resumed.storage.list("")}
        garbage_collection.remove(storage, manifest, planned, 1, GRACE, held)
        assert {key: first.storage.get(key) for key in resumed.storage.list("")} == before
        begin(home(root), IDENTITY)  # the mark is gone too
    with pytest.raises(MissingObject):
        open_version(home(root), versions[1].id)


def test_work_that_ended_between_mark_and_removal_stays(manifest: Manifest, root: Path) -> None:
    """A job took the version up and ended, and the sweep was killed before it withdrew its mark."""
    first, storage = chain(root, 3)[0], open_storage(str(root))
    first.storage.delete(layout.MANIFEST)
    first.storage.put(layout.ABANDONED, b"")
    age(root)
    planned = plan(manifest, keep=1)
    begin(home(root), IDENTITY)
    before = {key: first.storage.get(key) for key in first.storage.list("")}

    def killed() -> None:
        raise Killed

    with pytest.raises(Killed):
        garbage_collection.remove(storage, manifest, planned, 1, GRACE, killed)
    assert first.storage.exists(layout.REMOVING)
    for _ in range(2):
        garbage_collection.remove(storage, manifest, plan(manifest, 1), 1, GRACE, held)
    assert {key: first.storage.get(key) for key in first.storage.list("")} == before


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": 7, "number": "one"}'])
@pytest.mark.parametrize("key", ["data/vanilla/current/00000002.json", CLAIM])
def test_a_damaged_object_that_names_versions_is_an_error(
    manifest: Manifest, root: Path, key: str, content: bytes
) -> None:
    chain(root, 2)
    storage = open_storage(str(root))
    storage.put(key, content)
    with pytest.raises(CorruptionError, match=storage.location(key)):
        plan(manifest)


def test_a_sweep_that_lost_its_lease_deletes_nothing(manifest: Manifest, root: Path) -> None:
    """It was suspended, another one did the work, and the version may be in the making again."""
    chain(root, 3)
    age(root)
    storage = open_storage(str(root))
    planned = plan(manifest, keep=1)
    with lease.holding(storage, "clean") as lost:
        lease.Lease(storage, layout.lease("clean", 2), "host:1", time.time()).renew()
        before = contents(root)
        with pytest.raises(LeaseError, match="lease clean: is held by"):
            garbage_collection.remove(storage, manifest, planned, 1, GRACE, lost.fence)
    assert before.keys() <= contents(root).keys()


def test_a_long_removal_checks_its_lease_again_and_again(
    manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(root, 3)
    age(root)
    monkeypatch.setattr(garbage_collection, "FENCE_SECONDS", 0.0)  # so each deletion is a long one
    storage, planned, checks = open_storage(str(root)), plan(manifest, keep=1), itertools.count()
    objects, _ = garbage_collection.remove(
        storage, manifest, planned, 1, GRACE, lambda: next(checks)
    )
    assert next(checks) > objects > 0


class Killed(BaseException):
    """The process is gone."""


class Mortal(LocalStorage):
    """A storage whose process dies before its n-th write or deletion."""

    left: ClassVar = [0]

    def _live(self) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise Killed

    def put(self, key: str, data: bytes | Path) -> None:
        self._live()
        super().put(key, data)

    def delete(self, key: str) -> None:
        self._live()
        super().delete(key)


def whole_or_gone(root: Path) -> None:
    """Whatever a reader can open is whole, and so is the current version."""
    for name in home(root).folders("versions/"):
        with contextlib.suppress(MissingObject):
            version = open_version(home(root), name)
            marked = version.storage.exists(layout.REMOVING)
            assert marked or verify(version) == []
    held = current(home(root))
    assert verify(held) == []


@pytest.mark.parametrize("steps", [4, 7, 12, 20])
def test_a_killed_sweep_goes_on_even_if_more_versions_are_to_be_kept(
    manifest: Manifest, root: Path, steps: int
) -> None:
    versions = chain(root, 3)
    age(root)
    planned = plan(manifest, keep=1)
    Mortal.left[0] = steps
    with pytest.raises(Killed):
        garbage_collection.remove(Mortal(root), manifest, planned, 1, GRACE, held)
    sweep(manifest, keep=3)
    assert plan(manifest, keep=3).removals == ()
    for version in versions:
        published = version.storage.exists("manifest.json")
        assert published or not version.storage.exists("identity.json")
    assert verify(versions[2]) == []


def test_a_killed_removal_goes_on_although_an_object_is_young(
    manifest: Manifest, root: Path
) -> None:
    """A worker that took very long has stored it since."""
    first = chain(root, 3)[0]
    age(root)
    first.storage.put(layout.REMOVING, garbage_collection.BEGUN)
    first.storage.delete(layout.MANIFEST)
    os.utime(first.storage.location(layout.receipt(TASKS[0].id)))
    removed = {removal.what for removal in sweep(manifest, keep=1).removals}
    assert f"version vanilla/{first.id}" in removed


def test_a_current_version_without_its_manifest_is_an_error(manifest: Manifest, root: Path) -> None:
    """Its shards may lie in folders of others, which nobody else refers to."""
    versions = chain(root, 3)
    age(root)
    versions[2].storage.delete("manifest.json")
    with pytest.raises(MissingObject, match=r"manifest\.json: no such object"):
        plan(manifest, keep=1)


def test_checkpoints_go_with_their_version_however_young(manifest: Manifest, root: Path) -> None:
    """Later nothing says whose they are."""
    versions = chain(root, 3)
    age(root)
    (seed,) = manifest.distillation.seeds
    name = student_name(manifest, versions[0].fingerprint, "vanilla", seed)
    put_student(root, versions[0], name, card=False)
    sweep(manifest, keep=1)
    assert list(open_storage(str(root)).list(f"students/{name}/")) == []


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 7, 12, 20, 28])
def test_a_killed_sweep_is_finished_by_the_next_one(
    manifest: Manifest, root: Path, steps: int
) -> None:
    versions = chain(root, 3)
    put_student(root, versions[0], f"vanilla-s0-{'a' * 12}")
    age(root)
    planned = plan(manifest, keep=1)
    Mortal.left[0] = steps
    with pytest.raises(Killed):
        garbage_collection.remove(Mortal(root), manifest, planned, 1, GRACE, held)
    whole_or_gone(root)
    sweep(manifest, keep=1)
    assert plan(manifest, keep=1).removals == ()
    assert home(root).folders("versions/") == tuple(
        sorted({r.key.split("/")[1] for r in versions[2].shards})
    )
    assert verify(versions[2]) == []


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("regenerate"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("back"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("gc"), st.integers(1, 3), st.booleans()),
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPERATIONS)
def test_nothing_that_current_needs_is_ever_removed(history: list[tuple[str, int, bool]]) -> None:
    """Random histories of regenerations, roll-backs and sweeps, with and without a grace."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest.read(write_manifest(Path(folder)))
        root = Path(manifest.storage.root)
        versions = [fill(root)]
        for salt, (step, number, flag) in enumerate([*history, ("gc", 1, True)], 1):
            held = current(home(root))
            if step == "regenerate":
                versions.append(regenerated(root, held, salt, [TASKS[number]], flag))
            elif step == "back":
                chosen = versions[number % len(versions)]
                with contextlib.suppress(MissingObject):
                    open_version(home(root), chosen.id)
                    advance(home(root), chosen.id)
            else:
                if flag:
                    age(root)
                sweep(manifest, keep=number)
            held = current(home(root))
            assert verify(held) == []
        whole_or_gone(root)


@pytest.mark.parametrize(
    "name", ["shards/0001-00002.tar", "receipts/12345-123456.json", "quarantined/0001-00002.json"]
)
def test_keys_of_the_layout_are_listed_in_full_or_not_at_all(name: str) -> None:
    """There may be more than 9,999 classes; a key that only resembles one is left alone."""
    folder = "data/vanilla-bn/versions/0123456789abcdef"
    match = VERSION.fullmatch(f"{folder}/{name}")
    assert (match["method"], match["id"], match["name"]) == ("vanilla-bn", folder[-16:], name)
    for other in (name.replace(".", "x"), f"{name}.old", f"more/{name}"):
        assert not VERSION.fullmatch(f"{folder}/{other}")
