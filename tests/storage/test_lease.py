"""One holder at a time, whoever races and whoever dies; readers beside it."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.errors import CorruptionError, Exit, LeaseError
from dfkd.storage import lease
from dfkd.storage.base import Storage
from dfkd.storage.lease import (
    SECONDS,
    Lease,
    acquire,
    held_leases,
    holding,
    newest_lease,
    protecting,
    read,
)
from dfkd.storage.local import open_storage
from tests.helpers.jobs import ROOT, environment


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


@dataclass
class Clock:
    """Time as a test wants it, in place of the module `time`."""

    now: float = 0.0

    def time(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK.now = 1000.0
    monkeypatch.setattr(lease, "time", CLOCK)


def test_a_second_holder_is_refused_and_told_who_and_until_when(storage: Storage) -> None:
    lease = acquire(storage, "regenerate")
    with pytest.raises(LeaseError, match=rf"held by {lease.holder} until 1970-01-01 00:26:40") as e:
        acquire(storage, "regenerate")
    assert e.value.exit_code == Exit.RETRY
    assert acquire(storage, "other").key == "leases/other/00000001.json"
    lease.release()
    assert acquire(storage, "regenerate").key == "leases/regenerate/00000002.json"


def test_a_lease_says_since_when_it_is_held_however_often_it_is_renewed(storage: Storage) -> None:
    lease = acquire(storage, "regenerate")
    CLOCK.now += 30
    lease.renew()
    assert read(storage, lease.key).since == 1000.0
    assert read(storage, lease.key).expires == 1630.0
    with protecting(storage, ["vanilla/0"]):
        (reader,) = (each for key, each in held_leases(storage).items() if "readers" in key)
    assert (reader.since, reader.expires) == (1030.0, 1630.0)


def test_an_expired_lease_is_taken_over_and_its_holder_fenced_off(storage: Storage) -> None:
    dead = acquire(storage, "regenerate")
    CLOCK.now += SECONDS - 1
    dead.renew()
    CLOCK.now += SECONDS - 1
    with pytest.raises(LeaseError):
        acquire(storage, "regenerate")
    dead.fence()
    CLOCK.now += SECONDS
    successor = acquire(storage, "regenerate")
    with pytest.raises(LeaseError, match=successor.holder):
        dead.fence()
    dead.renew()  # it has not noticed yet
    dead.release()
    assert newest_lease(storage, "regenerate")[0] == successor.key
    successor.fence()


def test_of_racing_takers_one_wins(storage: Storage) -> None:
    acquire(storage, "regenerate")
    CLOCK.now += SECONDS
    start = threading.Barrier(8)

    def take(_: int) -> Lease | None:
        start.wait()
        try:
            return acquire(storage, "regenerate")
        except LeaseError:
            return None

    with ThreadPoolExecutor(8) as pool:
        winners = [lease for lease in pool.map(take, range(8)) if lease]
    assert len(winners) == 1
    winners[0].fence()


def test_whoever_looks_while_a_late_holder_passes_its_fence_is_refused(storage: Storage) -> None:
    """It was suspended beyond the end of its lease, which is free when it wakes."""
    late = acquire(storage, "regenerate")
    CLOCK.now += SECONDS

    class Raced(type(storage)):
        def list(self, prefix: str = "") -> Iterator[str]:
            keys = list(super().list(prefix))
            with pytest.raises(LeaseError, match="regenerate: is held by"):
                acquire(storage, "regenerate")
            return iter(keys)

    dataclasses.replace(late, storage=Raced(storage.root)).fence()  # type: ignore[attr-defined]


def test_a_newcomer_that_a_late_renewal_refuses_gives_its_own_lease_up(storage: Storage) -> None:
    """Else it would keep all others out for the whole of its length."""
    late = acquire(storage, "regenerate")
    CLOCK.now += SECONDS

    class Raced(type(storage)):
        def put_if_absent(self, key: str, data: bytes | Path) -> bool:
            late.renew()
            return super().put_if_absent(key, data)

    with pytest.raises(LeaseError, match="regenerate: is held by"):
        acquire(Raced(storage.root), "regenerate")  # type: ignore[attr-defined]
    with pytest.raises(LeaseError, match="regenerate: is held by"):
        acquire(storage, "regenerate")  # neither does the next one work beside it
    late.fence()
    CLOCK.now += SECONDS
    assert acquire(storage, "regenerate").key == "leases/regenerate/00000002.json"


def test_a_lease_that_was_given_up_since_it_was_listed_counts_for_nothing(
    storage: Storage,
) -> None:
    late = acquire(storage, "regenerate")

    class Raced(type(storage)):
        def list(self, prefix: str = "") -> Iterator[str]:
            return iter([*super().list(prefix), "leases/regenerate/00000002.json"])

    with pytest.raises(LeaseError, match=f"regenerate: is held by {late.holder} until"):
        acquire(Raced(storage.root), "regenerate")  # type: ignore[attr-defined]


def test_a_winner_that_has_vanished_is_not_named(storage: Storage) -> None:
    class Lost(type(storage)):
        def put_if_absent(self, key: str, data: bytes | Path) -> bool:
            return False

    with pytest.raises(LeaseError, match="regenerate: is held by another process; run"):
        acquire(Lost(storage.root), "regenerate")  # type: ignore[attr-defined]


@dataclass
class Memory:
    """The objects of a storage in a dict: enough for leases, and fast."""

    objects: dict[str, bytes] = field(default_factory=dict)

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.objects.setdefault(key, data) is data

    def get(self, key: str, limit: int | None = None) -> bytes:
        return self.objects[key]

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def location(self, key: str) -> str:
        return key


@given(st.lists(st.tuples(st.sampled_from("tfwrdx"), st.integers(0, 2)), max_size=40))
def test_never_two_holders_pass_their_fences(steps: list[tuple[str, int]]) -> None:
    """Whatever three processes do: take, fence, wait, release, or die and come back."""
    storage = Memory()
    leases: dict[int, Lease] = {}
    for step, who in steps:
        lease = leases.get(who)
        if step == "t" and lease is None:
            with contextlib.suppress(LeaseError):
                leases[who] = acquire(storage, "regenerate")
        elif step == "w":
            CLOCK.now += 240 * (who + 1)
        elif step == "f" and lease:
            try:
                lease.fence()
            except LeaseError:
                del leases[who]
        elif step == "r" and lease:
            lease.release()
            del leases[who]
        elif step == "d":
            leases.pop(who, None)
        passed = 0
        for each in list(leases.values()):
            try:
                storage_before = dict(storage.objects)
                each.fence()
                passed += 1
            except LeaseError:
                pass
            finally:
                storage.objects = storage_before
        assert passed <= 1


def test_a_lease_is_renewed_while_it_is_held_and_released_at_the_end(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SECONDS", 0.3)
    renewed = threading.Event()
    put = type(storage).put

    class Watched(type(storage)):
        def put(self, key: str, data: bytes | Path) -> None:
            put(self, key, data)
            renewed.set()

    watched = Watched(storage.root)  # type: ignore[attr-defined]
    with holding(watched, "regenerate") as held:
        assert renewed.wait(60)
        assert not read(storage, held.key).released
    assert read(storage, held.key).released
    acquire(storage, "regenerate")


def test_a_failure_releases_it_too(storage: Storage) -> None:
    with pytest.raises(RuntimeError), holding(storage, "regenerate"):
        raise RuntimeError
    acquire(storage, "regenerate")


def test_any_number_of_readers(storage: Storage) -> None:
    with protecting(storage, ["mix/a"]), protecting(storage, ["mix/b", "mix/a"]):
        found = [record.versions for record in held_leases(storage).values()]
        assert sorted(found) == [("mix/a",), ("mix/b", "mix/a")]
        with holding(storage, "regenerate"):
            assert len(held_leases(storage)) == 3
    assert held_leases(storage) == {}
    assert list(storage.list("leases/readers/")) == []


def test_what_has_expired_or_was_superseded_is_not_held(storage: Storage) -> None:
    acquire(storage, "regenerate")
    CLOCK.now += SECONDS
    last = acquire(storage, "regenerate")
    assert list(held_leases(storage)) == [last.key]
    CLOCK.now += SECONDS
    assert held_leases(storage) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"expires": "soon"},
        {"expires": float("inf")},
        {"expires": 1e15},
        {"holder": None},
        {"more": 1},
    ],
)
def test_a_damaged_lease_is_named(storage: Storage, change: dict[str, object]) -> None:
    lease = acquire(storage, "regenerate")
    storage.put(lease.key, json.dumps(json.loads(lease.record()) | change).encode())
    with pytest.raises(CorruptionError, match=r"00000001\.json: not a lease"):
        acquire(storage, "regenerate")


HOLD = """
import sys, time
from dfkd.storage.lease import holding
from dfkd.storage.local import open_storage
with holding(open_storage(sys.argv[1]), "regenerate") as lease:
    print(lease.holder, flush=True)
    time.sleep(3600)
"""


def test_a_killed_holder_is_succeeded_once_its_lease_has_expired(
    storage: Storage, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    own = environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=own) as holder:
        name = holder.stdout.readline().strip()
        assert name.endswith(f":{holder.pid}")
        with pytest.raises(LeaseError, match=name):
            acquire(storage, "regenerate")
        os.kill(holder.pid, signal.SIGKILL)
    with pytest.raises(LeaseError, match=name):
        acquire(storage, "regenerate")
    CLOCK.now = read(storage, "leases/regenerate/00000001.json").expires
    acquire(storage, "regenerate")
