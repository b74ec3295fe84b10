"""The engine on a real Ray: actors really die, tasks really fail, nothing is lost or done twice."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import ray

from dfkd.cluster.capacity import (
    WorkerResources,
    has_autoscaler,
    require_room,
    schedulable_nodes,
    worker_resources,
)
from dfkd.cluster.connection import _check_reachable
from dfkd.cluster.engine import Actor, Engine
from dfkd.config.manifest import Cluster
from dfkd.errors import (
    CorruptionError,
    DfkdError,
    Exit,
    InfrastructureError,
    ManifestError,
    WeightsError,
)
from tests.helpers.waiting import gone, wait_for


@dataclass(frozen=True)
class Item:
    number: int

    @property
    def id(self) -> str:
        return f"item {self.number}"


class Worker(Actor):
    """Notes every try in a file; `behaviour` says what an item does at its nth try."""

    def __init__(self, notes: Path, behaviour: dict[int, str]) -> None:
        self.notes, self.behaviour = notes, behaviour
        self.broken = False

    def run(self, item: Item) -> int:
        tries = self.notes / str(item.number)
        with tries.open("a") as stream:
            stream.write("x")
        first = len(tries.read_text()) == 1
        kind = self.behaviour.get(item.number, "fine")
        self.broken |= kind == "breaks its worker" and first
        if self.broken:
            raise RuntimeError("the GPU is lost")
        if kind == "dies always" or (kind == "dies once" and first):
            os._exit(1)
        if kind == "dies four times" and len(tries.read_text()) <= 4:
            os._exit(1)
        while kind == "meets" and len(list(self.notes.iterdir())) < 2:
            time.sleep(0.05)
        while kind == "waits" and not (self.notes / "gate").exists():
            time.sleep(0.05)
        if kind == "hangs always" or (kind == "hangs once" and first):
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "fails always" or (kind == "fails once" and first):
            raise RuntimeError(f"no luck with {item.number}")
        if kind == "tells a secret":
            raise RuntimeError(f"refused by https://me:hunter2@{'proxy' * 60}")
        if kind == "is damaged":
            raise CorruptionError(f"{item.id} is damaged; restore it")
        if kind == "no disk":
            raise InfrastructureError("disk: must have room, got 0; free some")
        return item.number


@pytest.fixture(scope="module")
def cluster(two_cpus: None) -> None:
    # Ray's workers do not have this folder on their path.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the cluster more often than a job does, because these tests wait for it."""
    monkeypatch.setattr("dfkd.cluster.engine.POLL_SECONDS", 0.1)


def engine(
    notes: Path, behaviour: dict[int, str], size: int = 2, attempts: int = 3, timeout: float = 0
) -> Engine[Item]:
    return Engine(Worker, (notes, behaviour), size, attempts, WorkerResources(0.5), timeout)


def tries(notes: Path) -> dict[int, int]:
    return {int(file.name): len(file.read_text()) for file in notes.glob("[0-9]*")}


def test_a_dead_actor_costs_only_the_item_it_held(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {3: "dies once", 5: "fails once"})
    assert sorted(working.run(Item(i) for i in range(10))) == list(range(10))
    assert tries(tmp_path) == {i: 2 if i in (3, 5) else 1 for i in range(10)}
    assert working.quarantine == []
    assert [working.tries(Item(i).id) for i in (3, 4, 5)] == [2, 1, 2]


def test_a_worker_that_is_broken_gets_no_further_item(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {1: "breaks its worker"}, size=1)
    assert sorted(working.run(Item(i) for i in range(6))) == list(range(6))
    assert tries(tmp_path) == {i: 2 if i == 1 else 1 for i in range(6)}
    assert working.quarantine == []


def test_poison_is_quarantined_after_its_attempts_and_named(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {2: "dies always", 4: "fails always"})
    assert sorted(working.run(Item(i) for i in range(8))) == [0, 1, 3, 5, 6, 7]
    assert tries(tmp_path) == {i: 3 if i in (2, 4) else 1 for i in range(8)}
    reasons = {item.unit.number: item.reason for item in working.quarantine}
    assert set(reasons) == {2, 4}
    assert "no luck with 4" in reasons[4]
    assert "its worker process has died" in reasons[2]
    assert "\n" not in reasons[2]


def test_attempts_that_got_further_are_forgotten(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {0: "dies four times"}, size=1, attempts=2)
    working.progress = lambda item: tries(tmp_path).get(item.number, 0)
    assert list(working.run(iter([Item(0)]))) == [0]
    assert tries(tmp_path) == {0: 5}


class Lasting(Actor):
    """Tells its process and what it is at the time."""

    def begin(self, folder: str, *work: str) -> None:
        (self.name,) = work
        if not self.name:
            raise WeightsError("teacher", "must be the same on every node", "none", "copy it")
        super().begin(folder)

    def run(self, item: Item) -> tuple[int, str]:
        if item.number == 1:
            raise CorruptionError("item 1: is damaged; delete it")
        if item.number == 2:
            raise InfrastructureError("disk: must have room, got 0; free some")
        return os.getpid(), self.name


def test_lasting_actors_serve_run_after_run_until_an_error_or_the_end(cluster: None) -> None:
    lasting: Engine[Item] = Engine(Lasting, (), 1, 2, WorkerResources(0.5), lasting=True)

    def run(name: str, *numbers: int) -> list[tuple[int, str]]:
        lasting.assignment = (name,)
        return list(lasting.run(Item(number) for number in numbers))

    with lasting:
        ((process, name),) = run("first", 0, 1)
        assert name == "first"
        assert [each.unit for each in lasting.quarantine] == [Item(1)]
        assert run("second", 0) == [(process, "second")]
        assert lasting.quarantine == []
        assert lasting.largest == 1
        with pytest.raises(InfrastructureError, match="disk: must have room"):
            run("third", 2)
        wait_for(lambda: gone(process))
        ((another, name),) = run("fourth", 0)
        assert (another == process, name) == (False, "fourth")
        with pytest.raises(WeightsError, match="must be the same on every node"):
            run("", 0)
        wait_for(lambda: gone(another))


@pytest.mark.timeout(120)  # one actor alone would wait for ever
def test_the_number_of_actors_may_change_between_runs(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {1: "meets", 2: "meets"}, size=1)
    working.lasting = True
    with working:
        assert list(working.run(iter([Item(0)]))) == [0]
        assert working.largest == 1
        (tmp_path / "0").unlink()
        working.size = 2
        assert sorted(working.run(iter([Item(1), Item(2)]))) == [1, 2]
        assert working.largest == 2


@pytest.mark.parametrize("known", [True, False], ids=["known number", "unknown number"])
def test_an_actor_without_a_task_frees_what_it_has_reserved(
    cluster: None, tmp_path: Path, known: bool
) -> None:
    """Not only when the last task has ended, which may take hours."""
    items = [Item(0), Item(1)]
    results = engine(tmp_path, {1: "waits"}).run(iter(items) if known else (i for i in items))
    assert next(results) == 0

    def watch() -> None:
        try:
            wait_for(lambda: ray.available_resources().get("CPU", 0.0) == 1.5, "a free share")
        finally:
            (tmp_path / "gate").touch()

    with ThreadPoolExecutor(1) as aside:
        watching = aside.submit(watch)
        assert list(results) == [1]
        watching.result()


class Lost(Actor):
    """Tells where it is."""

    def run(self, item: Item) -> str:
        return os.getcwd()


def test_relative_paths_mean_in_actors_what_they_mean_in_the_driver(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = Engine(Lost, (), 1, 1, WorkerResources(0.5)).run(iter([Item(0)]))
    assert list(there) == [str(tmp_path)]


def test_what_no_retry_mends_ends_the_run(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="disk: must have room"):
        list(engine(tmp_path, {0: "no disk"}).run(Item(i) for i in count()))
    assert tries(tmp_path)[0] == 1


def test_a_run_in_which_nothing_succeeds_ends_early(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, dict.fromkeys(range(1000), "fails always"), attempts=2)
    with pytest.raises(InfrastructureError, match="6 tries in a row failed"):
        list(working.run(Item(i) for i in range(1000)))
    assert len(tries(tmp_path)) < 10


def test_the_driver_holds_no_more_tasks_than_actors(cluster: None, tmp_path: Path) -> None:
    drawn = 0

    def endless() -> Iterator[Item]:
        nonlocal drawn
        while True:
            drawn += 1
            yield Item(drawn - 1)

    results = engine(tmp_path, {}).run(endless())
    for done in range(1, 20):
        next(results)
        assert drawn <= done + 1
    results.close()  # type: ignore[attr-defined]


def test_a_worker_that_hangs_is_replaced_and_its_item_tried_again(
    cluster: None, tmp_path: Path
) -> None:
    working = engine(tmp_path, {3: "hangs once"}, timeout=4)
    assert sorted(working.run(Item(i) for i in range(6))) == list(range(6))
    assert tries(tmp_path)[3] >= 2
    assert working.quarantine == []


def test_a_result_that_waited_for_the_driver_is_no_hang(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {0: "meets", 1: "meets"}, attempts=1, timeout=600)
    found, late = [], 0
    for result in working.run(Item(i) for i in range(6)):
        found.append(result)
        for place in (each for each in working.places if each.task is not None):
            ray.wait([place.call])
            place.since -= 601  # as if the driver had been away for so long
            late += 1
        working._looked = 0.0
    assert sorted(found) == list(range(6))
    assert tries(tmp_path) == dict.fromkeys(range(6), 1)
    assert late


def test_a_reason_holds_no_password(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {0: "tells a secret"}, attempts=1)
    assert list(working.run(iter([Item(0)]))) == []
    (item,) = working.quarantine
    assert "refused" in item.reason
    assert "hunter2" not in item.reason


def test_time_outs_before_any_success_blame_the_limit(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {0: "hangs always"}, size=1, attempts=2, timeout=2)
    with pytest.raises(
        ManifestError, match=r"^cluster\.task_timeout: .*2 tries .*within 2 seconds"
    ):
        list(working.run(Item(i) for i in range(4)))
    assert tries(tmp_path) == {0: 2}


def test_time_outs_after_a_success_blame_their_task(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {0: "hangs always"}, size=1, attempts=2, timeout=2)
    working.succeeded = {Item}  # as in a run that resumes another
    assert sorted(working.run(Item(i) for i in range(4))) == [1, 2, 3]
    (item,) = working.quarantine
    assert item.unit.number == 0
    assert item.reason.startswith("no result within 2 seconds")
    assert "cluster.task_timeout" in item.reason


@dataclass(frozen=True)
class OtherItem(Item):
    """Another kind of task, as prompts are beside images."""


def test_another_kind_of_task_does_not_vouch_for_the_limit(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {0: "hangs always", 1: "hangs always"}, size=1)
    results = working.run(iter([OtherItem(7), Item(0), Item(1)]))
    next(results)
    working.timeout = 2
    with pytest.raises(ManifestError, match=r"^cluster\.task_timeout: .*2 tries"):
        list(results)
    assert working.succeeded == {OtherItem}


def test_what_a_repetition_does_not_cure_is_no_matter_of_infrastructure(
    cluster: None, tmp_path: Path
) -> None:
    working = engine(tmp_path, dict.fromkeys(range(9), "is damaged"), attempts=2)
    with pytest.raises(DfkdError, match=r"6 tries in a row failed, .* restore") as told:
        list(working.run(Item(i) for i in range(9)))
    assert told.value.exit_code == Exit.FAILED


def test_an_engine_that_is_told_to_stop_finishes_what_flies(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {})
    assert sorted(working.run((Item(i) for i in count()), lambda item: item.number < 5)) == [
        *range(5)
    ]
    assert working.stopped
    assert working.in_flight == []
    assert working.busy_seconds > 0


def test_a_task_is_told_of_when_an_actor_is_there_to_begin_it(
    cluster: None, tmp_path: Path
) -> None:
    """Not while the first actors start, which would count as the cost of the first task."""
    working = engine(tmp_path, {1: "fails once"})
    started: list[tuple[int, bool]] = []

    def note(item: Item) -> None:
        started.append((item.number, working.largest > 0))

    assert sorted(working.run(iter([Item(0), Item(1)]), on_start=note)) == [0, 1]
    assert sorted(started) == [(0, True), (1, True), (1, True)]


def test_no_task_starts_no_actor(cluster: None, tmp_path: Path) -> None:
    working = engine(tmp_path, {})
    assert list(working.run(iter(()))) == []
    assert working.largest == 0
    assert not working.stopped


def test_a_share_that_never_fits_is_refused(cluster: None) -> None:
    share = worker_resources(Cluster(cpus_per_worker=0.5))
    assert share.count_fitting(schedulable_nodes()) >= 1
    assert not has_autoscaler()
    require_room(share)
    for cpus, gpus in ((1000.0, None), (1.0, 1.0)):
        share = worker_resources(Cluster(cpus_per_worker=cpus, gpus_per_worker=gpus))
        with pytest.raises(ManifestError, match="cpus_per_worker: must fit a node together"):
            list(Engine(Lost, (), 1, 1, share).run(iter([Item(0)])))


def test_a_share_never_spans_two_nodes() -> None:
    nodes = {"a": {"CPU": 3.0}, "b": {"CPU": 1.0, "GPU": 2.0}}
    assert WorkerResources(2.0).count_fitting(nodes) == 1
    assert WorkerResources(0.1).count_fitting({"a": {"CPU": 1.0}}) == 10
    assert WorkerResources(0.5, 1.0).count_fitting(nodes) == 2
    assert WorkerResources(2.0, 1.0).count_fitting(nodes) == 0


def test_a_cluster_that_listens_is_joined(cluster: None) -> None:
    _check_reachable(ray.get_runtime_context().gcs_address)
