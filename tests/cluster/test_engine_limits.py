"""When an engine gives up, waits or tries again; no process is started."""

import errno
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from dfkd.cluster import engine as module
from dfkd.cluster.capacity import WorkerResources
from dfkd.cluster.engine import MAX_NODE_LOSSES, MAX_WAITING_ACTORS, Actor, Engine, Place
from dfkd.errors import CorruptionError, InfrastructureError

pytestmark = pytest.mark.timeout(60)  # an engine that does not give up waits for ever

Nodes = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Item:
    id: str


ITEM = Item("item")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """The nodes that accept work; there is none yet."""
    found: Nodes = {}
    monkeypatch.setattr(module, "schedulable_nodes", lambda: dict(found))
    monkeypatch.setattr(module, "require_room", lambda resources: None)
    monkeypatch.setattr(module, "has_autoscaler", lambda: False)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    return found


def start() -> Any:
    """An actor that never answers."""
    return SimpleNamespace(locate=SimpleNamespace(remote=lambda *_: object()))


def engine(attempts: int = 2, size: int = 1) -> Engine[Item]:
    made: Engine[Item] = Engine(Actor, (), size, attempts, WorkerResources(1.0))
    made._start = start  # type: ignore[method-assign]
    made._begin_run()
    return made


def lose(working: Engine[Item], node: str) -> bool:
    """Let an attempt die on a node; whether the task is tried again."""
    working._fail(ITEM, "died", node)
    return bool(working._ready) and working._ready.pop() == ITEM


def test_a_cluster_without_room_is_given_up_after_a_while(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CAPACITY_WAIT_SECONDS", 0.05)
    begun = time.monotonic()
    with pytest.raises(InfrastructureError, match=r"room for a worker .*, or it hung before"):
        list(engine().run(iter([ITEM])))
    assert time.monotonic() - begun >= 0.05


def test_room_counts_from_the_last_moment_that_an_actor_had_a_node(nodes: Nodes) -> None:
    """A run may take days, and so may what a driver does between two runs of lasting actors."""
    working = engine()
    working._placed = -1e6
    working._begin_run()
    working._look()
    nodes["a"] = {"CPU": 1.0}
    working.places = [Place(start(), object(), time.monotonic(), "a", True, task=ITEM)]
    working._placed = -1e6
    for _ in range(2):
        working._look()
        working.places.clear()  # its node has gone, and there may be another one soon
        nodes.clear()


def test_few_actors_wait_for_the_nodes_of_an_autoscaler(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_autoscaler", lambda: True)
    monkeypatch.setattr(module, "CAPACITY_WAIT_SECONDS", 0.0)
    working, started = engine(size=1000), []
    working._start = lambda: started.append(0) or start()  # type: ignore[method-assign]
    with pytest.raises(InfrastructureError, match="no node had room"):
        list(working.run(iter([Item(str(number)) for number in range(1000)])))
    assert len(started) == MAX_WAITING_ACTORS


def test_a_task_that_is_lost_with_node_after_node_is_suspected_in_the_end(nodes: Nodes) -> None:
    working = engine(attempts=2)
    again = [lose(working, f"gone {number}") for number in range(2 + MAX_NODE_LOSSES)]
    assert again == [True] * (1 + MAX_NODE_LOSSES) + [False]
    assert [each.unit for each in working.quarantine] == [ITEM]


@pytest.mark.parametrize("dies", [True, False], ids=["with its node", "by itself"])
def test_a_node_is_asked_before_a_death_on_it_is_held_against_a_task(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """Ray may tell of an actor's death seconds before that of its node."""
    nodes["a"] = {"CPU": 1.0}
    working = engine(attempts=1)
    working._refresh()
    ping = "dfkd.cluster.engine.ping"
    monkeypatch.setattr(ping, lambda node: nodes.pop(node) if dies else None)
    assert lose(working, "a") == dies
    assert [each.unit for each in working.quarantine] == ([] if dies else [ITEM])


def test_a_task_that_gets_further_is_no_sign_of_a_broken_cluster(nodes: Nodes) -> None:
    """Nor are the failures before it, however many tasks have failed in a row."""
    working, reached = engine(attempts=2), iter(range(1, 9))
    working.progress = lambda task: next(reached)
    assert [lose(working, "") for _ in range(8)] == [True] * 8


def test_failures_with_successes_between_them_are_no_broken_cluster(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of six tasks is lost once; four in a row would end the run."""
    nodes["a"] = {"CPU": 1.0}
    tried: list[str] = []

    def get(reference: str) -> str:
        if reference not in ("a", "begun"):
            tried.append(reference)
            if tried.count(reference) == 1:
                raise ActorDiedError
        return reference

    locate = SimpleNamespace(remote=lambda: "a")
    begin = SimpleNamespace(remote=lambda *_: "begun")
    run = SimpleNamespace(remote=lambda task: task.id)
    monkeypatch.setattr(ray, "wait", lambda awaited, **_: (awaited[:1], []))
    monkeypatch.setattr(ray, "get", get)
    working = engine(attempts=2)
    working._start = lambda: SimpleNamespace(  # type: ignore[method-assign]
        locate=locate, begin=begin, run=run
    )
    names = [str(number) for number in range(6)]
    assert list(working.run(iter([Item(name) for name in names]))) == names
    assert tried == [name for name in names for _ in range(2)]
    assert working.quarantine == []


@pytest.mark.parametrize(
    ("error", "curable"),
    [
        (ActorDiedError(), True),
        (RayTaskError("run", "", OSError("no luck")), True),
        (RayTaskError("run", "", PermissionError(errno.EACCES, "no entry")), False),
        (RayTaskError("run", "", KeyError("a defect")), False),
        (RayTaskError("run", "", CorruptionError("x: cut; restore it")), False),
    ],
    ids=["death", "disk", "permission", "defect", "damage"],
)
def test_what_a_repetition_of_the_run_might_cure_is_noted(
    nodes: Nodes, error: RayError, curable: bool
) -> None:
    working = engine(attempts=1)
    place = Place(start(), None, 0.0, "", True, task=ITEM)
    working.places = [place]
    working._handle_error(place, ITEM, error)
    assert [each.curable for each in working.quarantine] == [curable]


def test_the_time_of_an_attempt_that_was_lost_counts(nodes: Nodes) -> None:
    """A budget and the record of cost are of all that was spent."""
    working = engine()
    place = Place(start(), object(), time.monotonic() - 5, "a", True, task=ITEM)
    working.places = [place]
    assert 5 <= working.busy_seconds < 60
    working._remove(place)
    assert 5 <= working.busy_seconds < 60
