"""How ranks and students share the nodes of a cluster, of which none is needed here."""

import pytest

from dfkd.cluster import capacity
from dfkd.cluster.capacity import (
    Ranks,
    WorkerResources,
    cpus_per_rank,
    divide_resources,
    plan_ranks,
    plan_students,
)
from dfkd.cluster.students import StudentActor, student_engine
from dfkd.config.manifest import Cluster


def test_ranks_are_sized_by_nodes_and_never_span_two() -> None:
    nodes = {"a": {"CPU": 3.0}, "b": {"CPU": 1.0}}
    assert [cpus_per_rank(nodes, wanted, 0.0) for wanted in (1, 2, 4, 5)] == [3.0, 1.0, 1.0, 0.0]
    nodes["a"]["GPU"] = 1.0
    assert [cpus_per_rank(nodes, wanted, 1.0) for wanted in (1, 2)] == [3.0, 0.0]


def test_ranks_with_gpus_fill_a_node_before_they_take_the_next_one() -> None:
    nodes = {name: {"CPU": 96.0, "GPU": 8.0} for name in "abcd"}
    assert [cpus_per_rank(nodes, wanted, 1.0) for wanted in (1, 4, 8, 32, 33)] == [12.0] * 4 + [0.0]
    nodes |= {"e": {"CPU": 0.0, "GPU": 8.0}, "f": {"CPU": 4.0, "GPU": 1.0}, "g": {"CPU": 999.0}}
    expected = [12.0] * 4 + [4.0, 0.0]
    assert [cpus_per_rank(nodes, wanted, 1.0) for wanted in (1, 4, 8, 32, 33, 34)] == expected


@pytest.mark.parametrize(
    ("nodes", "students", "expected"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], 3, (3, WorkerResources(4.0))),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 64.0}], 30, (4, WorkerResources(4.0, 1.0))),
        ([{}], 3, (1, WorkerResources(1.0))),
    ],
)
def test_gpus_and_cpus_are_divided_among_students(
    nodes: list[dict[str, float]], students: int, expected: tuple[int, WorkerResources]
) -> None:
    assert divide_resources(dict(zip("abc", nodes, strict=False)), students) == expected


def test_a_student_with_a_gpu_leaves_cpus_to_other_jobs() -> None:
    for share, reserved in ((8.0, 1.0), (1.0, 1.0)), ((8.0, 0.0), (8.0, 0.0)):
        engine = student_engine(StudentActor, WorkerResources(*share), 1, Cluster(), lambda task: 0)
        assert engine.resources == WorkerResources(*reserved)


def test_students_and_ranks_use_no_gpu_if_workers_shall_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity, "has_autoscaler", lambda: False)
    monkeypatch.setattr(capacity, "schedulable_nodes", lambda: {"a": {"CPU": 8.0, "GPU": 1.0}})
    cluster = Cluster(gpus_per_worker=0.0)
    assert plan_students(cluster, 2) == WorkerResources(4.0)
    assert plan_ranks((2, 2), cluster) == Ranks(2, 4.0, "cpu")
    monkeypatch.setattr(capacity, "own_device", lambda: "a GPU")
    monkeypatch.setattr(capacity, "trains_here", lambda ranks: ranks == (1, 1))
    assert plan_ranks((1, 1), cluster).device == "cpu"
    assert plan_ranks((1, 1), Cluster()).device == "a GPU"


@pytest.mark.parametrize(
    ("gpus", "nodes", "students", "cpus"),
    [
        (1.0, [{}, {"CPU": 8.0, "GPU": 4.0}], 6, 2.0),
        (1.0, [{"CPU": 9.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}], 20, 4.0),
        (0.0, [{"CPU": 64.0, "GPU": 1.0}, {"CPU": 2.0}], 2, 1.0),
        (1.0, [{}], 3, 1.0),  # the node has gone again
    ],
)
def test_an_autoscaler_is_asked_for_one_node_and_all_students_have_a_share_of_it(
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
    nodes: list[dict[str, float]],
    students: int,
    cpus: float,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(capacity, "has_autoscaler", lambda: True)
    monkeypatch.setattr(capacity, "wait_for_nodes", lambda *request: asked.append(request))
    monkeypatch.setattr(capacity, "schedulable_nodes", lambda: dict(zip("ab", nodes, strict=False)))
    cluster = Cluster(cpus_per_worker=0.5, gpus_per_worker=gpus / 2)
    assert plan_students(cluster, students) == WorkerResources(cpus, float(gpus > 0))
    assert asked == [(WorkerResources(1.0, gpus), 1)]
