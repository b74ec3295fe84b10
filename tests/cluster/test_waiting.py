"""What is asked of an autoscaler and of a busy cluster, and how long; no Ray is needed."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from dfkd.cluster import capacity
from dfkd.cluster.capacity import (
    CAPACITY_WAIT_SECONDS,
    WorkerResources,
    gpu_name,
    plan_ranks,
    wait_for_nodes,
)
from dfkd.config.manifest import Cluster
from dfkd.errors import InfrastructureError, ManifestError


@pytest.mark.parametrize(
    ("answers", "waits"),
    [([True], [1.0]), ([False, True], [1.0, 900.0]), ([False, False], [1.0, 900.0])],
    ids=["room is there", "nodes come", "none comes"],
)
def test_nodes_are_asked_for_all_workers_and_no_longer_than_needed(
    monkeypatch: pytest.MonkeyPatch, answers: list[bool], waits: list[float]
) -> None:
    asked: list[list[dict[str, float]]] = []
    waited: list[float] = []
    removed: list[object] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return answers[len(waited) - 1]

    group = SimpleNamespace(wait=wait)
    monkeypatch.setattr(capacity, "placement_group", lambda each: asked.append(each) or group)
    monkeypatch.setattr(capacity, "remove_placement_group", removed.append)
    if answers[-1]:
        wait_for_nodes(WorkerResources(2.0, 1.0), 3)
    else:
        with pytest.raises(InfrastructureError, match=r"no node had room .* for 900 seconds"):
            wait_for_nodes(WorkerResources(2.0, 1.0), 3)
    assert asked == [[{"CPU": 2.0, "GPU": 1.0}] * 3]
    assert waited == waits
    assert removed == [group]  # else it would hold what the workers need


Answer = tuple[str, InfrastructureError | None]
BROKEN: Answer = ("", InfrastructureError("cluster: torch cannot use the GPU; run it again"))


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([BROKEN, ("a GPU", None)], "a GPU"),
        ([BROKEN, BROKEN], "torch cannot use the GPU"),
        ([BROKEN], "torch cannot use the GPU"),
        ([], r"no node had room .*'GPU': 1\.0"),
    ],
    ids=["one is broken", "both are", "others hold one", "others hold both"],
)
def test_a_broken_gpu_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, answers: list[Answer], outcome: str
) -> None:
    """One probe for each GPU, and a limit for those that others hold."""
    limits: list[float] = []
    left = [*answers]

    def wait(probes: list[object], timeout: float) -> tuple[list[object], list[object]]:
        limits.append(timeout)
        return (probes[:1], probes[1:]) if left else ([], probes)

    monkeypatch.setattr(capacity, "schedulable_nodes", lambda: {"a": {"GPU": 2.0}})
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=object))
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda _: left.pop(0))
    monkeypatch.setattr(ray, "cancel", lambda _: None)
    if outcome == "a GPU":
        assert gpu_name() == outcome
    else:
        with pytest.raises(InfrastructureError, match=outcome):
            gpu_name()
    assert set(limits) == {CAPACITY_WAIT_SECONDS}


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: Any = {"a": {"CPU": 8.0, "GPU": 2.0}}
    monkeypatch.setattr(capacity, "schedulable_nodes", lambda: nodes)
    monkeypatch.setattr(capacity, "gpu_name", lambda: "a GPU")
    found = [plan_ranks(limits, Cluster()) for limits in ((2, 2), (1, 4))]
    assert [(each.count, each.cpus, each.device, each.elastic) for each in found] == [
        (2, 4.0, "a GPU", None),
        (2, 4.0, "a GPU", (1, 4)),
    ]
    with pytest.raises(ManifestError, match="must not exceed the cluster's 2 GPUs, got 3"):
        plan_ranks((3, 4), Cluster())
