"""Sweeps beside other processes, and sweeps that are killed: used objects stay, unused ones go."""

import contextlib
import itertools
import os
import time
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfkd.dataset.published import PublishedVersion, advance, current, open_version
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import begin
from dfkd.errors import LeaseError
from dfkd.operations import kept_versions, sweep
from dfkd.storage import layout, lease
from dfkd.storage.base import MissingObject
from dfkd.storage.local import LocalStorage
from tests.helpers.jobs import contents
from tests.helpers.partial_version import IDENTITY, TASKS, fill, regenerated
from tests.helpers.swept_run import Run, age


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def objects(version: PublishedVersion) -> dict[str, bytes]:
    """All of a version's own objects."""
    return {key: version.storage.get(key) for key in version.storage.list("")}


def test_a_version_that_is_leased_after_the_plan_stays(run: Run) -> None:
    first, second, _ = run.old_chain()
    planned = run.plan()
    with lease.protecting(run.storage, [f"vanilla/{first.id}"]):
        run.remove(planned)
    advance(run.home, first.id)
    assert verify(first) == []
    assert not first.storage.exists(layout.REMOVING)
    with pytest.raises(MissingObject):
        open_version(run.home, second.id)


@pytest.mark.parametrize("state", ["abandoned", "only shards that others had carried"])
def test_a_version_that_a_job_takes_up_after_the_plan_stays(run: Run, state: str) -> None:
    """The job looked for the mark before it was written, and the second look sees its lease."""
    first, second, _ = run.chain(3)
    first.storage.delete(layout.PUBLISHED)
    if state == "abandoned":
        first.storage.put(layout.ABANDONED, b"")
    else:
        for key in [key for key in objects(first) if not key.startswith(layout.SHARDS)]:
            first.storage.delete(key)
    age(run.root)
    planned = run.plan()
    assert f"vanilla/{first.id}" in {removal.version for removal in planned.removals}
    with lease.protecting(run.storage, [f"vanilla/{first.id}"]):
        begin(run.home, IDENTITY)
        before = objects(first)
        run.remove(planned)
        assert objects(first) == before
        begin(run.home, IDENTITY)  # the mark is gone too
    with pytest.raises(MissingObject):
        open_version(run.home, second.id)


def test_work_that_ended_between_mark_and_removal_stays(run: Run) -> None:
    """A job took the version up and ended, and the sweep was killed before it withdrew its mark."""
    first = run.chain(3)[0]
    first.storage.delete(layout.PUBLISHED)
    first.storage.put(layout.ABANDONED, b"")
    age(run.root)
    planned = run.plan()
    begin(run.home, IDENTITY)
    before = objects(first)

    def killed() -> None:
        raise Killed

    with pytest.raises(Killed):
        run.remove(planned, fence=killed)
    assert first.storage.exists(layout.REMOVING)
    for _ in range(2):
        run.remove(run.plan())
    assert objects(first) == before


def test_a_sweep_that_lost_its_lease_deletes_nothing(run: Run) -> None:
    """It was suspended, another one did the work, and the version may be in the making again."""
    run.old_chain()
    planned = run.plan()
    with lease.holding(run.storage, "clean") as lost:
        lease.Lease(run.storage, layout.lease("clean", 2), "host:1", time.time()).renew()
        before = contents(run.root)
        with pytest.raises(LeaseError, match="lease clean: is held by"):
            run.remove(planned, fence=lost.fence)
    assert before.keys() <= contents(run.root).keys()


def test_a_long_removal_checks_its_lease_again_and_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.old_chain()
    monkeypatch.setattr(sweep, "FENCE_SECONDS", 0.0)  # so each deletion is a long one
    checks = itertools.count()
    removed, _ = run.remove(run.plan(), fence=lambda: next(checks))
    assert next(checks) > removed > 0


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


def whole_or_gone(run: Run) -> None:
    """Whatever a reader can open is whole, and so is the current version."""
    for name in run.home.folders("versions/"):
        with contextlib.suppress(MissingObject):
            version = open_version(run.home, name)
            marked = version.storage.exists(layout.REMOVING)
            assert marked or verify(version) == []
    assert verify(current(run.home)) == []


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 2, 4, 7, 12, 20, 28])
def test_a_killed_sweep_is_finished_by_the_next_one(run: Run, steps: int, keep: int) -> None:
    """Also if more versions are to be kept than the first one left."""
    versions = run.chain(3)
    run.put_student(versions[0], f"vanilla-s0-{'a' * 12}")
    age(run.root)
    planned = run.plan()
    Mortal.left[0] = steps
    with pytest.raises(Killed):
        run.remove(planned, storage=Mortal(run.root))
    whole_or_gone(run)
    run.sweep(keep)
    assert run.plan(keep).removals == ()
    for version in versions:
        published = version.storage.exists(layout.PUBLISHED)
        assert published or not version.storage.exists(layout.IDENTITY)
    if keep == 1:
        needed = {receipt.key.split("/")[1] for receipt in list(versions[2].receipts())}
        assert set(run.home.folders("versions/")) == needed
    assert verify(versions[2]) == []


def test_a_killed_removal_goes_on_although_an_object_is_young(run: Run) -> None:
    """A worker that took very long has stored it since."""
    first = run.old_chain()[0]
    first.storage.put(layout.REMOVING, kept_versions.BEGUN)
    first.storage.delete(layout.PUBLISHED)
    os.utime(first.storage.location(layout.receipt(TASKS[0].id)))
    assert f"version vanilla/{first.id}" in run.removed()


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
def test_nothing_that_current_needs_is_ever_removed(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, bool]]
) -> None:
    """Random histories of regenerations, roll-backs and sweeps, with and without a grace."""
    run = Run(tmp_path_factory.mktemp("run"))
    versions = [fill(run.root)]
    for salt, (step, number, flag) in enumerate([*history, ("gc", 1, True)], 1):
        if step == "regenerate":
            base = current(run.home)
            versions.append(regenerated(run.root, base, salt, [TASKS[number]], flag))
        elif step == "back":
            chosen = versions[number % len(versions)]
            with contextlib.suppress(MissingObject):
                open_version(run.home, chosen.id)
                advance(run.home, chosen.id)
        else:
            if flag:
                age(run.root)
            run.sweep(keep=number)
        assert verify(current(run.home)) == []
    whole_or_gone(run)
